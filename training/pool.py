"""The pool: what is known of every training image, and how that changes.

One row per training image is the whole state of active learning. Indices are dataset indices,
which are the positions of these rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

NONE = -1  # no round, no label, no annotator


class ImageState(IntEnum):
    """What has happened to an image. States from `SKIPPED_UNSURE` on are the reasons of a skip."""

    UNLABELLED = 0
    ASKED = 1
    LABELLED = 2
    SKIPPED_UNSURE = 3
    SKIPPED_UNUSABLE = 4
    SKIPPED_NOT_IN_CLASSES = 5


FIRST_SKIP = ImageState.SKIPPED_UNSURE


@dataclass(frozen=True)
class Added:
    """Images from outside of the pool that people gave a class.

    images: uint8 [k, C, S, S].
    labels: int64 [k], class indices.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Answers:
    """What an oracle said of k images.

    indices: int64 [k], distinct dataset indices.
    labels: int64 [k], class indices; -1 for a skipped image.
    states: int64 [k], of `ImageState`: LABELLED, or the reason of the skip.
    annotators: who answered, k names.
    corrections: dataset index -> (class index, by whom), of labels that were changed since they
        were given.
    added: all images from outside of the pool so far, which the round trains on as well.
    seconds: dataset index -> time spent on the image for these answers, where it is known.
    """

    indices: Tensor
    labels: Tensor
    states: Tensor
    annotators: tuple[str, ...]
    corrections: Mapping[int, tuple[int, str]] = field(default_factory=dict)
    added: Added | None = None
    seconds: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def all_labelled(cls, indices: Tensor, labels: Tensor, annotator: str) -> Answers:
        """Answers that label every image and skip none."""
        states = torch.full((len(indices),), int(ImageState.LABELLED))
        return cls(indices, labels, states, (annotator,) * len(indices))


class Pool:
    """Per training image: state, round, place in its query, label, annotator and uncertainty.

    All tensors have N entries and lie on the CPU.

    Attributes:
        state: int64, of `ImageState`.
        round: int64, the round that asked for the image; -1 if none has.
        order: int64, its place in that query, from 0; -1 if it was not asked for.
        labels: int64, class indices; -1 where there is no label.
        annotator: int64, a position in `annotators`; -1 where nobody has answered.
        uncertainty: float32, predictive entropy in nats when it was asked for; NaN if not scored.
        seconds: float64, annotators' time for the image in all; NaN where it is not known.
        annotators: names of those who have answered so far.
        rounds: how many rounds have all their answers.
    """

    TENSORS = ("state", "round", "order", "labels", "annotator", "uncertainty", "seconds")

    def __init__(self, size: int) -> None:
        self.state = torch.full((size,), int(ImageState.UNLABELLED))
        self.round = torch.full((size,), NONE)
        self.order = torch.full((size,), NONE)
        self.labels = torch.full((size,), NONE)
        self.annotator = torch.full((size,), NONE)
        self.uncertainty = torch.full((size,), torch.nan)
        self.seconds = torch.full((size,), torch.nan, dtype=torch.float64)
        self.annotators: list[str] = []
        self.rounds = 0

    def __len__(self) -> int:
        return len(self.state)

    # --- changes ---------------------------------------------------------------------------

    def ask(self, indices: Tensor, round_: int, uncertainty: Tensor | None = None) -> None:
        """Record that `round_` asks for the images at `indices` (int64 [k]), in this order.

        Raises:
            ValueError: an index occurs twice, is out of range or is not unlabelled.
        """
        self._check_indices(indices, ImageState.UNLABELLED, f"round {round_} asks for")
        start = int((self.round == round_).sum())
        self.state[indices] = int(ImageState.ASKED)
        self.round[indices] = round_
        self.order[indices] = torch.arange(start, start + len(indices))
        if uncertainty is not None:
            self.uncertainty[indices] = uncertainty

    def answer(self, answers: Answers) -> None:
        """Record the answers to images that were asked for.

        Raises:
            ValueError: an index occurs twice, is out of range or was not asked for; or labels and
                indices differ in number.
        """
        if not len(answers.indices) == len(answers.labels) == len(answers.states):
            raise ValueError(
                f"{len(answers.indices)} indices came with {len(answers.labels)} labels"
            )
        self._check_indices(answers.indices, ImageState.ASKED, "an answer names")
        self.state[answers.indices] = answers.states
        self.labels[answers.indices] = answers.labels
        positions = [self._annotator(name) for name in answers.annotators]
        self.annotator[answers.indices] = torch.tensor(positions, dtype=torch.int64)
        for index, seconds in answers.seconds.items():
            before = float(self.seconds[index])
            self.seconds[index] = seconds if math.isnan(before) else before + seconds

    def correct(self, corrections: Mapping[int, tuple[int, str]]) -> None:
        """Replace labels of labelled images: dataset index -> (class index, by whom).

        Raises:
            ValueError: an index is out of range or has no label.
        """
        indices = torch.tensor(list(corrections), dtype=torch.int64)
        self._check_indices(indices, ImageState.LABELLED, "a correction names")
        for index, (label, annotator) in corrections.items():
            self.labels[index] = label
            self.annotator[index] = self._annotator(annotator)

    def _check_indices(self, indices: Tensor, state: ImageState, what: str) -> None:
        if len(indices.unique()) != len(indices):
            raise ValueError(f"{what} an image twice")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise ValueError(f"{what} an image outside the pool")
        if (self.state[indices] != state).any():
            raise ValueError(f"{what} an image that is not {state.name.lower()}")

    def _annotator(self, name: str) -> int:
        if name not in self.annotators:
            self.annotators.append(name)
        return self.annotators.index(name)

    # --- views -----------------------------------------------------------------------------

    @property
    def labelled(self) -> Tensor:
        """Dataset indices of labelled images, ascending: int64 [m]."""
        return self._indices(self.state == ImageState.LABELLED)

    @property
    def unlabelled(self) -> Tensor:
        """Dataset indices of images that nobody was asked about, ascending: int64 [u]."""
        return self._indices(self.state == ImageState.UNLABELLED)

    @property
    def asked(self) -> Tensor:
        """Dataset indices of images that wait for an answer, in query order: int64 [a]."""
        indices = self._indices(self.state == ImageState.ASKED)
        return indices[self.order[indices].argsort()]

    @property
    def skipped(self) -> Tensor:
        """Dataset indices of images that an oracle skipped, ascending: int64 [s]."""
        return self._indices(self.state >= FIRST_SKIP)

    @property
    def acquired_round(self) -> Tensor:
        """The round that labelled each image, int64 [N]; -1 where there is no label."""
        return torch.where(self.state == ImageState.LABELLED, self.round, NONE)

    def query_of(self, round_: int) -> Tensor:
        """Dataset indices of all images that `round_` asked for, in query order: int64 [k]."""
        indices = self._indices(self.round == round_)
        return indices[self.order[indices].argsort()]

    def labels_of(self, round_: int) -> int:
        """How many labels `round_` has received."""
        return int(((self.round == round_) & (self.state == ImageState.LABELLED)).sum())

    def labelled_by(self, annotator: str) -> Tensor:
        """Which images have their label from `annotator`, bool [N]."""
        if annotator not in self.annotators:
            return torch.zeros(len(self), dtype=torch.bool)
        position = self.annotators.index(annotator)
        return (self.annotator == position) & (self.state == ImageState.LABELLED)

    def minutes(self, seconds_per_label: float) -> float:
        """Annotators' time so far; an image of unknown time costs `seconds_per_label` if labelled.

        The unknown ones are counted together, so that their sum is exact.
        """
        unknown = self.seconds.isnan()
        assumed = int((unknown & (self.state == ImageState.LABELLED)).sum())
        return (float(self.seconds[~unknown].sum()) + assumed * seconds_per_label) / 60

    @staticmethod
    def _indices(mask: Tensor) -> Tensor:
        return mask.nonzero().squeeze(1)

    # --- state -----------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, copied."""
        return {name: getattr(self, name).clone() for name in self.TENSORS}

    def values(self) -> dict[str, Any]:
        """The rest of the state, as plain values."""
        return {"rounds": self.rounds, "annotators": list(self.annotators)}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over what `tensors` and `values` returned.

        Raises:
            ValueError: they belong to a pool of another size.
        """
        if tensors["state"].shape != self.state.shape:
            raise ValueError(
                f"the checkpoint's pool has {len(tensors['state'])} images, this one {len(self)}; "
                "resume on the same data set"
            )
        # Earlier checkpoints do not have it.
        tensors = {"seconds": torch.full_like(self.seconds, torch.nan), **tensors}
        for name in self.TENSORS:
            setattr(self, name, tensors[name].clone())
        self.rounds = int(values["rounds"])
        self.annotators = [str(name) for name in values["annotators"]]
