"""Real images, where there are any: in TEST_DATA_DIR, or in ../shared/data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data import Splits, channel_statistics, load_splits

HERE = Path(__file__).parents[1]
REAL = Path(os.environ.get("TEST_DATA_DIR", HERE.parent / "shared" / "data"))

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data in {REAL}")


def load(dataset: str, data_dir: Path) -> Splits:
    return load_splits(
        dataset,
        data_dir,
        image_size=28,
        split_seed=0,
        validation_fraction=0.1,
        test_fraction=0.2,
        download=False,
    )


@pytest.mark.parametrize(
    ("folder", "flag", "sizes", "channels", "classes"),
    [
        ("pathmnist_1000", "pathmnist", [700, 100, 200], 3, 9),
        (".", "breastmnist", [546, 78, 156], 1, 2),
        (".", "pneumoniamnist", [4708, 524, 624], 1, 2),
    ],
)
def test_medmnist_files(
    folder: str, flag: str, sizes: list[int], channels: int, classes: int
) -> None:
    splits = load(flag, REAL / folder)
    assert [len(store) for store in (splits.train, splits.val, splits.test)] == sizes
    assert (splits.channels, splits.num_classes) == (channels, classes)
    mean, std = channel_statistics(splits.train.images)
    assert ((mean > 0.2) & (mean < 0.9) & (std > 0.05)).all()


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    (tmp_path / "mednist").symlink_to(REAL / "mednist")  # so that the cache stays out of it
    splits = load("folder:mednist", tmp_path)
    assert splits.train.labels.bincount().tolist() == [105] * 6
    assert splits.val.labels.bincount().tolist() == [15] * 6
    assert splits.channels == 1
    assert load("folder:mednist", tmp_path).fingerprint() == splits.fingerprint()
