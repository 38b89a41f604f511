"""Stratified train/val/test splits for sources that bring none, with duplicates kept together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from errors import UserError

Indices = NDArray[np.int64]


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


def stratified_split(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    class_names: Sequence[str],
    request: SplitRequest,
) -> tuple[Indices, Indices, Indices]:
    """Indices of the train, validation and test images, each sorted: three int64 arrays.

    Images of one group (labelled alike or not) always share a split; a group counts towards the
    class of its first image. Every class reaches every split. Raises UserError for a class with
    too few distinct images for that.
    """
    _, first, group_of, sizes = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    group_labels = labels[first]
    rng = np.random.default_rng(request.seed)
    split_of_group = np.zeros(len(sizes), dtype=np.int64)  # 0 train, 1 validation, 2 test
    for label, name in enumerate(class_names):
        members = np.flatnonzero(group_labels == label)
        if len(members) < 3:
            raise UserError(
                f"class {name!r}: {len(members)} distinct images, at least 3 are needed (one each "
                "for train, validation and test); add images or remove the class"
            )
        members = rng.permutation(members)
        # Two groups are kept back from validation and one from test, so that none stays empty.
        total = sizes[members].sum()
        val = _take(sizes[members], total * request.validation_fraction, len(members) - 2)
        rest = members[val:]
        test = _take(sizes[rest], total * request.test_fraction, len(rest) - 1)
        split_of_group[members[:val]] = 1
        split_of_group[rest[:test]] = 2
    split = split_of_group[group_of.reshape(-1)]  # numpy 2.0 gave the inverse another shape
    return np.flatnonzero(split == 0), np.flatnonzero(split == 1), np.flatnonzero(split == 2)


def _take(sizes: NDArray[np.int64], wanted: float, most: int) -> int:
    """How many groups from the front hold nearest to `wanted` images: between 1 and `most`."""
    count = int(np.argmin(np.abs(np.cumsum(sizes) - wanted))) + 1
    return min(count, most)
