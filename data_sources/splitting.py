"""Train, validation and test splits for sources that bring none.

Classes are spread evenly over the splits. Images that belong together (equal pixels, one patient)
stay together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from errors import UserError

Indices = NDArray[np.int64]
TRAIN, VALIDATION, TEST = range(3)


@dataclass(frozen=True)
class SplitRequest:
    """How to split: `seed` and the share of every class that goes to validation and to test."""

    seed: int
    validation_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise UserError(f"{name}: {value} is not between 0 and 1; 0.1 is usual")
        if self.validation_fraction + self.test_fraction >= 1:
            raise UserError(
                f"validation_fraction {self.validation_fraction} and test_fraction "
                f"{self.test_fraction} leave nothing to train on; make their sum less than 1"
            )
        if self.seed < 0:
            raise UserError(f"split_seed: {self.seed} is negative; use 0 or more")

    def fractions(self) -> NDArray[np.float64]:
        """The shares of train, validation and test: float64 [3]."""
        held_out = (self.validation_fraction, self.test_fraction)
        return np.array([1 - sum(held_out), *held_out])


def duplicate_groups(images: NDArray[np.uint8]) -> Indices:
    """For each of the N images, the index of the first image with the same bytes: int64 [N]."""
    first: dict[bytes, int] = {}
    return np.array(
        [
            first.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), index)
            for index, image in enumerate(images)
        ],
        dtype=np.int64,
    )


def joined_groups(*groupings: Indices) -> Indices:
    """The finest grouping that keeps together what any of `groupings`, each int64 [N], does.

    Returns, for each of the N images, the index of the first image of its group: int64 [N].
    """
    count = len(groupings[0])
    parent = np.arange(count)

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    for groups in groupings:
        first: dict[int, int] = {}
        for index, group in enumerate(groups.tolist()):
            one, other = root(index), root(first.setdefault(group, index))
            parent[max(one, other)] = min(one, other)
    return np.array([root(index) for index in range(count)], dtype=np.int64)


def stratified_split(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    class_names: Sequence[str],
    request: SplitRequest,
) -> tuple[Indices, Indices, Indices]:
    """Indices of the train, validation and test images, each sorted: three int64 arrays.

    Images of one group (labelled alike or not) always share a split; a group counts towards the
    class of its first image. Images without a label (-1) are split as a class of their own. A class
    of three groups or more reaches every split; one of two reaches train and validation, and one of
    a single group only train.
    """
    _, first, group_of, sizes = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    group_labels = labels[first]
    rng = np.random.default_rng(request.seed)
    split_of_group = np.full(len(sizes), TRAIN, dtype=np.int64)
    for label in (*range(len(class_names)), -1):
        members = np.flatnonzero(group_labels == label)
        if len(members) < 2:
            continue
        members = rng.permutation(members)
        # Two groups are kept back from validation and one from test, so that none stays empty.
        total = sizes[members].sum()
        most = max(1, len(members) - 2)
        val = _count_nearest(sizes[members], total * request.validation_fraction, most)
        rest = members[val:]
        split_of_group[members[:val]] = VALIDATION
        if len(rest) > 1:
            test = _count_nearest(sizes[rest], total * request.test_fraction, len(rest) - 1)
            split_of_group[rest[:test]] = TEST
    return _by_split(split_of_group[group_of.reshape(-1)])  # numpy 2.0 gave it another shape


def grouped_split(
    labels: NDArray[np.int64], groups: NDArray[np.int64], request: SplitRequest
) -> tuple[Indices, Indices, Indices]:
    """The same for groups that may hold images of several classes, such as a patient's.

    The groups are taken in order of their size, the largest first and equal ones in random order.
    Each goes to the split that is then nearest to its share of every class. Splits that would stay
    empty get the smallest groups.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    group_of = group_of.reshape(-1)
    classes, label_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((group_of.max() + 1, len(classes)))
    np.add.at(counts, (group_of, label_of.reshape(-1)), 1)
    rng = np.random.default_rng(request.seed)
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    # Of each class, as shares, so that a rare class weighs as much as a frequent one.
    shares = counts / counts.sum(0)
    left = np.repeat(request.fractions()[:, None], len(classes), 1)
    split_of_group = np.full(len(counts), TRAIN, dtype=np.int64)
    groups_in = [0, 0, 0]
    for position, group in enumerate(order.tolist()):
        empty = [split for split in range(3) if not groups_in[split]]
        if len(order) - position <= len(empty):
            split = empty[0]
        else:
            split = int(np.argmax(left[:, shares[group] > 0].sum(1)))
        split_of_group[group] = split
        groups_in[split] += 1
        left[split] -= shares[group]
    return _by_split(split_of_group[group_of])


def _by_split(split: NDArray[np.int64]) -> tuple[Indices, Indices, Indices]:
    train, val, test = (np.flatnonzero(split == number) for number in (TRAIN, VALIDATION, TEST))
    return train, val, test


def _count_nearest(sizes: NDArray[np.int64], wanted: float, most: int) -> int:
    """How many groups from the front hold nearest to `wanted` images: between 1 and `most`."""
    count = int(np.argmin(np.abs(np.cumsum(sizes) - wanted))) + 1
    return min(count, most)
