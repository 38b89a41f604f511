"""Image arrays in HDF5, in the layout of PatchCamelyon: `NAME_{train,valid,test}_{x,y}.h5`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sources.raw import (
    MAX_ARRAY_BYTES,
    DataError,
    RawSplit,
    RawSplits,
    check_memory,
    describe_os_error,
)
from data_sources.resizing import resize

BLOCK_BYTES = 32 * 2**20  # read and resized at a time, through a float32 copy
MAX_IMAGE_BYTES = 2**28  # of one image as it is stored
SPLITS = {"train": "train", "val": "valid", "test": "test"}


def load(name: str, data_dir: Path, image_size: int) -> RawSplits:
    """Images `x` [N, H, W] or [N, H, W, C] uint8 and labels `y`, resized to `image_size`.

    Each split is read in blocks, so that what is held is the resized images, not the file.
    Classes are named by their numbers, as the files hold no names.
    """
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise DataError(f"hdf5:{name} needs the package h5py; pip install h5py") from error
    splits = {
        split: _load_split(
            data_dir / f"{name}_{word}_x.h5", data_dir / f"{name}_{word}_y.h5", image_size
        )
        for split, word in SPLITS.items()
    }
    labels = np.concatenate([split.labels.reshape(-1) for split in splits.values()])
    class_names = tuple(str(label) for label in np.unique(labels))
    return RawSplits(name, class_names, splits["train"], splits["val"], splits["test"])


def read_images(path: Path, image_size: int) -> dict[str, tuple[str, NDArray[np.uint8]]]:
    """Every array of images at the top of the file: its size, as in "96x96", and its images.

    By the array's name. Images uint8 [N, image_size, image_size, C] are resized block by block;
    anything that is not uint8 [N, H, W] or [N, H, W, C] is passed over.
    """
    with _opened(path) as file:
        arrays = {}
        for key, dataset in file.items():
            if getattr(dataset, "dtype", None) == np.uint8 and dataset.ndim in (3, 4):
                size = f"{dataset.shape[2]}x{dataset.shape[1]}"
                arrays[key] = (size, _read_images(dataset, image_size, f"{path}: {key}"))
        return arrays


def _load_split(images_path: Path, labels_path: Path, image_size: int) -> RawSplit:
    return RawSplit(
        images=_read(images_path, "x", image_size),
        labels=_read(labels_path, "y", None),
        images_from=f"{images_path}: x",
        labels_from=f"{labels_path}: y",
    )


def _read(path: Path, key: str, image_size: int | None) -> NDArray[np.generic]:
    """Data set `key` of the file: as images of `image_size`, or as it is where that is None."""
    import h5py

    with _opened(path) as file:
        dataset = file.get(key)
        if not isinstance(dataset, h5py.Dataset):
            found = ", ".join(map(repr, file)) or "nothing"
            raise DataError(f"{path}: no data set {key!r} (found: {found}); rename yours")
        if file.get(key, getlink=True, getclass=True) is h5py.ExternalLink or dataset.external:
            raise DataError(
                f"{path}: {key}: its values lie in another file; copy them into this one"
            )
        if image_size is None:
            return _read_labels(dataset, f"{path}: {key}")
        return _read_images(dataset, image_size, f"{path}: {key}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open h5py.File; whatever goes wrong with it becomes a DataError."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    # h5py raises OSError for most damage, and KeyError, RuntimeError, ValueError for the rest.
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            reason = describe_os_error(error)
        else:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); put a whole file there") from error


def _read_labels(dataset: Any, where: str) -> NDArray[np.generic]:
    too_many = dataset.size * dataset.dtype.itemsize > MAX_ARRAY_BYTES
    if too_many or dataset.dtype.kind not in "iu":
        raise DataError(
            f"{where}: {dataset.dtype} of shape {dataset.shape}; give one whole number per image"
        )
    return np.asarray(dataset[()])


def _read_images(dataset: Any, size: int, where: str) -> NDArray[np.uint8]:
    if dataset.dtype != np.uint8 or dataset.ndim not in (3, 4) or 0 in dataset.shape:
        raise DataError(
            f"{where}: {dataset.dtype} of shape {dataset.shape}; "
            "give images as uint8 [N, H, W] or [N, H, W, C]"
        )
    count, channels = dataset.shape[0], (*dataset.shape, 1)[3]
    if dataset.size // count > MAX_IMAGE_BYTES:
        raise DataError(
            f"{where}: one image of {dataset.shape[2]}x{dataset.shape[1]} pixels; "
            "cut it into smaller ones"
        )
    check_memory(where, count, size, channels)
    images = np.empty((count, size, size, channels), dtype=np.uint8)
    rows = max(1, BLOCK_BYTES * count // dataset.size)
    for start in range(0, count, rows):
        block = dataset[start : start + rows].reshape(-1, *dataset.shape[1:3], channels)
        images[start : start + rows] = resize(block, size)
    return images
