"""The data set that a trial's hyperparameters name."""

from __future__ import annotations

from pathlib import Path

from data import Splits, load_splits
from training.hyperparameters import Hyperparameters


def load_data(hp: Hyperparameters, data_dir: Path | None = None) -> Splits:
    """Read it from `data_dir`, or else `hp.data_dir`; downloaded first where it is missing.

    Raises:
        DataError: it is not there, or cannot be used.
    """
    return load_splits(
        hp.dataset,
        hp.data_dir if data_dir is None else data_dir,
        image_size=hp.image_size,
        split_seed=hp.split_seed,
        validation_fraction=hp.validation_fraction,
        test_fraction=hp.test_fraction,
    )
