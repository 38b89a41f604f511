"""What there is to know of a data set before a run, and of its labels after one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data import ImageStore, Splits, channel_histograms
from data_sources.names import printable
from reporting.duplicates import MOST_COPIES, Pairs, exact_copies, near_copies
from reporting.label_errors import suspected_labels
from run_folder.reader import Run
from training.seeds import make_generator

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
NEAR = 0.95  # correlation from which on two images are reported as nearly the same
LISTED = 1000  # pairs and labels that the JSON holds of each kind; it says how many there are
BLOCK = 4096
UNLABELLED = "(unlabelled)"  # shown where a class would be


@dataclass(frozen=True)
class Place:
    """Where an image is: its split, its index there and the index of its class, -1 for none."""

    split: str
    index: int
    label: int


@dataclass(frozen=True)
class Twins:
    """Two images that are alike; `similarity` is 1 for equal bytes."""

    first: Place
    second: Place
    similarity: float

    @property
    def across(self) -> bool:
        """Whether they lie in different splits."""
        return self.first.split != self.second.split

    @property
    def contradictory(self) -> bool:
        """Whether they have different labels."""
        return (
            self.first.label != self.second.label and min(self.first.label, self.second.label) >= 0
        )


@dataclass(frozen=True)
class Suspicion:
    """A label that the run's network confidently disagrees with.

    `trained_on`: the network has learned this very label, so its doubt weighs more and is rarer.
    """

    place: Place
    suggested: int
    given_probability: float
    suggested_probability: float
    trained_on: bool


@dataclass(frozen=True)
class Exploration:
    """What was found in `splits`.

    counts: int64 [3, C], images of each class in each split.
    unlabelled: images without a label in each split.
    histograms: int64 [3, channels, 256].
    brightness: float64 [C, 2], mean and deviation over a class's training images of their mean
    grey level, 0 to 255; NaN for a class without any.
    exact: each copy of an earlier image with the first one. near: pairs of nearly equal images,
    the most alike first; of several equal ones only the first takes part.
    suspicions: None without a run.
    """

    splits: Splits
    counts: Tensor
    unlabelled: list[int]
    histograms: Tensor
    brightness: Tensor
    exact: list[Twins]
    near: list[Twins]
    suspicions: list[Suspicion] | None

    def source(self, place: Place) -> str:
        """The file or array position of an image."""
        return printable(stores(self.splits)[place.split].sources[place.index])

    def class_name(self, label: int) -> str:
        """The class's name; `UNLABELLED` for -1."""
        return self.splits.class_names[label] if label >= 0 else UNLABELLED


def stores(splits: Splits) -> dict[str, ImageStore]:
    """The three splits by name."""
    return {"train": splits.train, "val": splits.val, "test": splits.test}


def explore_data(splits: Splits, run: Run | None) -> Exploration:
    """Everything; `run` is one on these data."""
    parts = list(stores(splits).values())
    images = [part.images for part in parts]
    exact = exact_copies(images)
    originals = torch.ones(sum(map(len, parts)), dtype=torch.bool)
    originals[exact.second] = False
    near = near_copies(images, originals.nonzero().flatten(), NEAR, make_generator(0, "duplicates"))
    return Exploration(
        splits=splits,
        counts=torch.stack([_counts(part) for part in parts]),
        unlabelled=[int((part.labels < 0).sum()) for part in parts],
        histograms=torch.stack([channel_histograms(part.images) for part in parts]),
        brightness=_brightness(splits.train),
        exact=_twins(splits, exact),
        near=_twins(splits, near),
        suspicions=None if run is None else _suspicions(run),
    )


def _twins(splits: Splits, pairs: Pairs) -> list[Twins]:
    places = [
        Place(name, index, label)
        for name, store in stores(splits).items()
        for index, label in enumerate(store.labels.tolist())
    ]
    return [
        Twins(places[first], places[second], similarity)
        for first, second, similarity in zip(
            pairs.first.tolist(), pairs.second.tolist(), pairs.similarity.tolist(), strict=True
        )
    ]


def _counts(store: ImageStore) -> Tensor:
    return torch.bincount(store.labels[store.labels >= 0], minlength=store.num_classes)


def _brightness(store: ImageStore) -> Tensor:
    """Mean and deviation over images of their mean grey level, of each class: float64 [C, 2]."""
    means = torch.cat(
        [
            store.images[start : start + BLOCK].double().mean((1, 2, 3))
            for start in range(0, len(store), BLOCK)
        ]
    )
    classes = [means[store.labels == c] for c in range(store.num_classes)]
    return torch.stack([torch.stack([one.mean(), one.std(correction=0)]) for one in classes])


def _suspicions(run: Run) -> list[Suspicion]:
    """Of all labelled images; those that the network was trained on are judged by themselves.

    Labels of the training split are the given ones, which simulated annotators may have got wrong.
    """
    suspicions: list[Suspicion] = []
    for split, store in stores(run.splits).items():
        probabilities = run.inference.logits(run.inference.embed(store.images, split)).softmax(1)
        labels = store.labels.clone()
        trained = torch.zeros(len(store), dtype=torch.bool)
        if split == "train":
            given = run.pool.labelled
            labels[given], trained[given] = run.pool.labels[given], True
        for group in (trained, ~trained):
            members = (group & (labels >= 0)).nonzero().flatten()
            suspicions += _suspicions_among(
                split, members, labels, probabilities.cpu(), bool(trained[members].any())
            )
    return sorted(suspicions, key=lambda one: one.given_probability - one.suggested_probability)


def _suspicions_among(
    split: str, members: Tensor, labels: Tensor, probabilities: Tensor, trained_on: bool
) -> Iterator[Suspicion]:
    positions, suggested = suspected_labels(probabilities[members], labels[members])
    for index, other in zip(members[positions].tolist(), suggested.tolist(), strict=True):
        label = int(labels[index])
        given, likelier = float(probabilities[index, label]), float(probabilities[index, other])
        yield Suspicion(Place(split, index, label), other, given, likelier, trained_on)


def copy_counts(twins: Iterable[Twins]) -> Counter[tuple[str, str]]:
    """How many images of a split are the second of a pair, by the splits of first and second."""
    images = {(one.first.split, one.second.split, one.second.index) for one in twins}
    return Counter((first, second) for first, second, _ in images)


def pixel_table(exploration: Exploration) -> list[dict[str, Any]]:
    """Statistics of each channel of each split, in grey levels of 0 to 255."""
    levels = torch.arange(256, dtype=torch.float64)
    rows = []
    for name, channels in zip(SPLIT_NAMES, exploration.histograms, strict=True):
        for channel, histogram in zip(channel_names(len(channels)), channels, strict=True):
            share = histogram.double() / histogram.sum()
            mean = float(share @ levels)
            present = histogram.nonzero().flatten()
            rows.append(
                {
                    "split": name,
                    "channel": channel,
                    "mean": mean,
                    "deviation": float(share @ (levels - mean).square()) ** 0.5,
                    "lowest": int(present[0]),
                    "highest": int(present[-1]),
                    "black": float(share[0]),
                    "white": float(share[255]),
                }
            )
    return rows


def channel_names(count: int) -> tuple[str, ...]:
    """What the channels of an image are called."""
    return ("grey",) if count == 1 else ("red", "green", "blue")


def report(exploration: Exploration, run: Run | None) -> dict[str, Any]:
    """All numbers, ready for JSON."""
    splits = exploration.splits
    numbers: dict[str, Any] = {
        "dataset": splits.name,
        "fingerprint": splits.fingerprint(),
        "image_size": splits.train.images.shape[-1],
        "channels": splits.channels,
        "notes": {"facts": splits.notes.facts, "warnings": splits.notes.warnings},
        "unlabelled": dict(zip(SPLIT_NAMES, exploration.unlabelled, strict=True)),
        "classes": [
            {
                "name": name,
                "images": dict(zip(SPLIT_NAMES, counts, strict=True)),
                "brightness": {"mean": _number(mean), "deviation": _number(deviation)},
            }
            for name, counts, (mean, deviation) in zip(
                splits.class_names,
                exploration.counts.T.tolist(),
                exploration.brightness.tolist(),
                strict=True,
            )
        ],
        "pixels": pixel_table(exploration),
        "near_threshold": NEAR,
        "most_copies_listed_of_an_image_in_a_split": MOST_COPIES,
        "duplicates": {
            kind: _duplicates(exploration, twins)
            for kind, twins in (("exact", exploration.exact), ("near", exploration.near))
        },
    }
    if run is not None and exploration.suspicions is not None:
        numbers["suspected_labels"] = {
            "run": str(run.path),
            "checkpoint": run.uuid,
            "suspected": len(exploration.suspicions),
            "listed": [
                {
                    **_place(exploration, one.place),
                    "suggested": splits.class_names[one.suggested],
                    "given_probability": one.given_probability,
                    "suggested_probability": one.suggested_probability,
                    "trained_on": one.trained_on,
                }
                for one in exploration.suspicions[:LISTED]
            ],
        }
    return numbers


def _number(value: float) -> float | None:
    return None if value != value else value


def _duplicates(exploration: Exploration, twins: list[Twins]) -> dict[str, Any]:
    return {
        "pairs": len(twins),
        "across_splits": sum(one.across for one in twins),
        "labelled_differently": sum(one.contradictory for one in twins),
        "listed": [
            {
                "first": _place(exploration, one.first),
                "second": _place(exploration, one.second),
                "similarity": one.similarity,
            }
            for one in twins[:LISTED]
        ],
    }


def _place(exploration: Exploration, place: Place) -> dict[str, Any]:
    return {
        "split": place.split,
        "index": place.index,
        "image": exploration.source(place),
        "class": exploration.class_name(place.label),
    }
