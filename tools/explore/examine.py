"""What there is to know of a data set before, and of its labels after, a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data import ImageStore, Splits, channel_histograms
from reporting.duplicates import Pairs, first_copies, near_pairs
from reporting.label_errors import suspected_labels
from run_folder.reader import Run
from training.seeds import make_generator

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
NEAR = 0.95  # correlation from which on two images are reported as nearly the same
LISTED = 1000  # pairs and labels that the JSON holds of each kind; it says how many there are
BLOCK = 4096


@dataclass(frozen=True)
class Place:
    """Where an image is: its split, its index there and the index of its class."""

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
        """Whether they are labelled differently."""
        return self.first.label != self.second.label


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
    """Counts int64 [3, C]; histograms int64 [3, channels, 256]; brightness float64 [C, 2], the
    mean and the deviation over a class's training images of their mean grey level, 0 to 255.

    exact, near: all pairs, the most alike first. `near` holds none that are in `exact`, and of
    several equal images the first alone. `near_threshold` is above `NEAR` where there were too many
    to keep. suspicions: None without a run.
    """

    splits: Splits
    counts: Tensor
    histograms: Tensor
    brightness: Tensor
    exact: list[Twins]
    near: list[Twins]
    near_threshold: float
    suspicions: list[Suspicion] | None


def stores(splits: Splits) -> dict[str, ImageStore]:
    """The three splits by name."""
    return {"train": splits.train, "val": splits.val, "test": splits.test}


def explore_data(splits: Splits, run: Run | None) -> Exploration:
    """Everything; `run` is one on these data."""
    parts = list(stores(splits).values())
    images = [part.images for part in parts]
    first = first_copies(images)
    everything = torch.arange(len(first))
    copies = everything[first != everything]
    exact = Pairs(first[copies], copies, torch.ones(len(copies)), 1.0)
    generator = make_generator(0, "duplicates")
    near = near_pairs(images, everything[first == everything], NEAR, generator)
    return Exploration(
        splits=splits,
        counts=torch.stack([_counts(part) for part in parts]),
        histograms=torch.stack([channel_histograms(part.images) for part in parts]),
        brightness=_brightness(splits.train),
        exact=_twins(splits, exact),
        near=_twins(splits, near),
        near_threshold=near.threshold,
        suspicions=None if run is None else _suspicions(run),
    )


def _counts(store: ImageStore) -> Tensor:
    return torch.bincount(store.labels, minlength=store.num_classes)


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


def _twins(splits: Splits, pairs: Pairs) -> list[Twins]:
    places = _places(splits)
    return [
        Twins(places[first], places[second], similarity)
        for first, second, similarity in zip(
            pairs.first.tolist(), pairs.second.tolist(), pairs.similarity.tolist(), strict=True
        )
    ]


def _places(splits: Splits) -> list[Place]:
    return [
        Place(name, index, label)
        for name, store in stores(splits).items()
        for index, label in enumerate(store.labels.tolist())
    ]


def _suspicions(run: Run) -> list[Suspicion]:
    """Of all images, those that the network was trained on judged by themselves.

    Their labels are those that were given, which simulated annotators may have got wrong.
    """
    probabilities = torch.cat(
        [
            run.inference.logits(run.inference.embed(store.images, name)).softmax(1).cpu()
            for name, store in stores(run.splits).items()
        ]
    )
    places = _places(run.splits)
    trained = torch.zeros(len(places), dtype=torch.bool)
    trained[: len(run.splits.train)] = run.pool.acquired_round >= 0
    for index in run.pool.labelled.tolist():  # training images come first among the places
        places[index] = Place("train", index, int(run.pool.labels[index]))
    labels = torch.tensor([place.label for place in places])
    found = []
    for group in (trained, ~trained):
        members = group.nonzero().flatten()
        positions, suggested = suspected_labels(probabilities[members], labels[members])
        for position, other in zip(members[positions].tolist(), suggested.tolist(), strict=True):
            place, row = places[position], probabilities[position]
            given, likelier = float(row[place.label]), float(row[other])
            found.append(Suspicion(place, other, given, likelier, bool(trained[position])))
    return sorted(found, key=lambda one: one.given_probability - one.suggested_probability)


def pair_counts(twins: list[Twins]) -> Counter[tuple[str, str]]:
    """How many pairs lie in each two splits, in the order train, val, test."""
    return Counter((one.first.split, one.second.split) for one in twins)


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
    names = splits.class_names
    kinds = {"exact": exploration.exact, "near": exploration.near}
    numbers: dict[str, Any] = {
        "dataset": splits.name,
        "fingerprint": splits.fingerprint(),
        "image_size": splits.train.images.shape[-1],
        "channels": splits.channels,
        "classes": [
            {
                "name": name,
                "images": dict(zip(SPLIT_NAMES, counts, strict=True)),
                "brightness": {"mean": brightness[0], "deviation": brightness[1]},
            }
            for name, counts, brightness in zip(
                names, exploration.counts.T.tolist(), exploration.brightness.tolist(), strict=True
            )
        ],
        "pixels": pixel_table(exploration),
        "near_threshold": exploration.near_threshold,
        "duplicates": {
            kind: {
                "pairs": len(twins),
                "across_splits": sum(one.across for one in twins),
                "labelled_differently": sum(one.contradictory for one in twins),
                "listed": [
                    {
                        "first": _place(one.first, names),
                        "second": _place(one.second, names),
                        "similarity": one.similarity,
                    }
                    for one in twins[:LISTED]
                ],
            }
            for kind, twins in kinds.items()
        },
    }
    if run is not None and exploration.suspicions is not None:
        numbers["suspected_labels"] = {
            "run": str(run.path),
            "checkpoint": run.uuid,
            "found": len(exploration.suspicions),
            "listed": [
                {
                    **_place(one.place, names),
                    "suggested": names[one.suggested],
                    "given_probability": one.given_probability,
                    "suggested_probability": one.suggested_probability,
                    "trained_on": one.trained_on,
                }
                for one in exploration.suspicions[:LISTED]
            ],
        }
    return numbers


def _place(place: Place, names: tuple[str, ...]) -> dict[str, Any]:
    return {"split": place.split, "index": place.index, "class": names[place.label]}
