"""`hdf5:NAME`: PatchCamelyon's layout, read and resized in blocks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import Splits, load_splits
from data_sources import hdf5
from errors import UserError

SIZE = 8


def load(data_dir: Path, image_size: int = SIZE) -> Splits:
    return load_splits(
        "hdf5:camelyon",
        data_dir,
        image_size=image_size,
        split_seed=0,
        validation_fraction=0.1,
        test_fraction=0.1,
    )


def write(path: Path, **arrays: Any) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array)


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The training images of a good set in `tmp_path`."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 3), dtype=np.uint8)
    for split in ("train", "valid", "test"):
        write(tmp_path / f"camelyon_{split}_x.h5", x=pixels)
        labels = (np.arange(10, dtype=np.uint8) % 2).reshape(10, 1, 1, 1)
        write(tmp_path / f"camelyon_{split}_y.h5", y=labels)
    return pixels


@pytest.mark.parametrize("block_bytes", [1, 3 * SIZE * SIZE * 3, 2**20])
def test_blocks_make_up_the_whole(
    tmp_path: Path,
    images: np.ndarray[Any, np.dtype[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
    block_bytes: int,
) -> None:
    monkeypatch.setattr(hdf5, "BLOCK_BYTES", block_bytes)
    splits = load(tmp_path)
    np.testing.assert_array_equal(splits.train.images, images.transpose(0, 3, 1, 2))
    assert splits.train.labels.tolist() == [0, 1] * 5
    assert splits.class_names == ("0", "1")
    halved = load(tmp_path, SIZE // 2).train.images
    assert halved.shape == (10, 3, SIZE // 2, SIZE // 2)
    means = images.mean(axis=(1, 2))
    np.testing.assert_allclose(halved.float().mean((2, 3)), means, atol=12)


def test_damaged_and_missing_files(tmp_path: Path, images: object) -> None:
    path = tmp_path / "camelyon_valid_x.h5"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=f"{path}: cannot be read"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: cannot be read .*No such file"):
        load(tmp_path)


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="pip install h5py"):
        load(tmp_path)
