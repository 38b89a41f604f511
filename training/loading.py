"""The data set that a trial's hyperparameters name, and the part of it that is evaluated."""

from __future__ import annotations

from pathlib import Path

import torch

from data import ImageStore, Splits, load_splits
from training.hyperparameters import Hyperparameters
from training.seeds import make_generator


def load_data(hp: Hyperparameters, data_dir: Path | None = None) -> Splits:
    """Read it from `data_dir`, or else `hp.data_dir`; downloaded first where it is missing.

    Raises:
        UserError: it is not there, or cannot be used.
    """
    return load_splits(
        hp.dataset,
        hp.data_dir if data_dir is None else data_dir,
        image_size=hp.image_size,
        split_seed=hp.split_seed,
        validation_fraction=hp.validation_fraction,
        test_fraction=hp.test_fraction,
    )


def evaluated_part(store: ImageStore, size: int) -> ImageStore:
    """`size` images of `store`, drawn at random and always the same; all of them for 0."""
    if not 0 < size < len(store):
        return store
    chosen = torch.randperm(len(store), generator=make_generator(0, "evaluation"))[:size]
    return ImageStore(store.images[chosen], store.labels[chosen], store.class_names)
