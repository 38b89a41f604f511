"""Oracles answer a proposal with labels. This one is simulated: it knows the hidden labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from data import ImageStore
from training.hyperparameters import Hyperparameters
from training.label_noise import noisy_labels
from training.pool import Answers


@dataclass(frozen=True)
class Proposal:
    """The images that a round asks an oracle to label.

    round: which one, from 0.
    strategy: the name of the query strategy.
    indices: int64 [k], dataset indices in the strategy's order of preference.
    uncertainty: float32 [k], predictive entropy in nats; None where nothing was scored.
    candidates_uncertainty: its mean over all candidates, nats; None where nothing was scored.
    seconds: how long scoring and selection took.
    """

    round: int
    strategy: str
    indices: Tensor
    uncertainty: Tensor | None
    candidates_uncertainty: float | None
    seconds: float


class Oracle(Protocol):
    """Whoever labels images."""

    def answer(self, proposal: Proposal) -> Answers | None:
        """The answers to all images of `proposal`; None where they have yet to come."""


class SimulatedOracle:
    """Stands in for the annotator and answers at once. Only it sees hidden labels.

    Args:
        labels: the true ones, int64 [N].
        answers: what it says of each image, right or wrong, int64 [N]; None: the truth.
    """

    NAME = "simulated"

    def __init__(self, labels: Tensor, answers: Tensor | None = None) -> None:
        self._labels = labels.cpu()
        self._answers = self._labels if answers is None else answers.cpu()

    @classmethod
    def of_trial(cls, hp: Hyperparameters, train: ImageStore, seed: int) -> SimulatedOracle:
        """The annotator of a trial, who errs as often as `hp.label_noise` says."""
        answers = None
        if hp.label_noise:
            answers = noisy_labels(train, hp.label_noise, hp.label_noise_kind, seed)
        return cls(train.labels, answers)

    def answer(self, proposal: Proposal) -> Answers:
        """A label for every image; the same image always gets the same label."""
        labels = self._answers[proposal.indices]
        return Answers.all_labelled(proposal.indices, labels, self.NAME)

    def truth(self, indices: Tensor) -> Tensor:
        """The true labels, int64 [k]. They serve reports: nothing is trained or chosen by them."""
        return self._labels[indices]
