"""Loads the data set that the hyperparameters name, and selects the images to evaluate."""

from __future__ import annotations

from pathlib import Path

import torch

from data import ImageStore, Splits, load_splits
from training.hyperparameters import Hyperparameters
from training.seeds import make_generator


def load_data(hp: Hyperparameters, data_dir: Path | None = None, read_only: bool = False) -> Splits:
    """Load the data set from `data_dir`, or from `hp.data_dir` if that is None.

    A MedMNIST file that is missing is downloaded. Otherwise nothing is written into the folder with
    `read_only`.

    Raises:
        UserError: the data set is missing or cannot be used.
    """
    return load_splits(
        hp.dataset,
        hp.data_dir if data_dir is None else data_dir,
        image_size=hp.image_size,
        split_seed=hp.split_seed,
        validation_fraction=hp.validation_fraction,
        test_fraction=hp.test_fraction,
        group_by=hp.group_by,
        max_pixels=hp.max_pixels,
        read_only=read_only,
        allow_unlabelled=hp.oracle == "people",
    )


def evaluated_part(store: ImageStore, size: int) -> ImageStore:
    """A random but fixed selection of `size` images of `store`; all of them for 0."""
    if not 0 < size < len(store):
        return store
    chosen = torch.randperm(len(store), generator=make_generator(0, "evaluation"))[:size]
    return store.subset(chosen)
