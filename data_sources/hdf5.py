"""Image arrays in HDF5, in the layout of PatchCamelyon: `NAME_{train,valid,test}_{x,y}.h5`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sources.disk_images import fits_in_memory, mapped_images
from data_sources.raw import MAX_ARRAY_BYTES, RawSplit, RawSplits, check_memory, describe_os_error
from data_sources.resizing import resize
from data_sources.sources import ArraySources
from errors import UserError

BLOCK_BYTES = 32 * 2**20  # read and resized at a time, through a float32 copy
MAX_IMAGE_BYTES = 2**28  # of one image as it is stored
# Read at a time where chunks span many images: each would be decompressed for every block of it.
LARGEST_BLOCK_BYTES = 512 * 2**20
SPLITS = {"train": "train", "val": "valid", "test": "test"}


def load(name: str, data_dir: Path, image_size: int) -> RawSplits:
    """Images `x` [N, H, W] or [N, H, W, C] uint8 and labels `y`, resized to `image_size`.

    Each split is read in blocks, so that what is held is the resized images, not the file; and
    where those are too many for memory (`disk_images.fits_in_memory`), they are held in a file in
    `data_dir/.cache`. Classes are named by their numbers, as the files hold no names.
    """
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise UserError(f"hdf5:{name} needs the package h5py; pip install h5py") from error
    paths = {split: data_dir / f"{name}_{word}_x.h5" for split, word in SPLITS.items()}
    in_memory = fits_in_memory(sum(_image_bytes(path, image_size) for path in paths.values()))
    splits = {}
    for split, path in paths.items():
        labels_path = data_dir / f"{name}_{SPLITS[split]}_y.h5"
        cache = data_dir / ".cache" / f"{path.stem}_{image_size}"
        images = _load_images(path, image_size, None if in_memory else cache)
        splits[split] = RawSplit(
            images=images,
            labels=_load_labels(labels_path),
            images_from=f"{path}: x",
            labels_from=f"{labels_path}: y",
            sources=ArraySources(f"{path.name}:x", range(len(images))),
        )
    labels = np.concatenate([split.labels.reshape(-1) for split in splits.values()])
    class_names = tuple(str(label) for label in np.unique(labels) if label >= 0)
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


def _image_bytes(path: Path, size: int) -> int:
    """What the images in the file take, once resized to `size`."""
    with _opened(path) as file:
        count, *_, channels = _resized_shape(_dataset(file, path, "x"), size, f"{path}: x")
        return count * size * size * channels


def _load_images(path: Path, size: int, cache: Path | None) -> NDArray[np.uint8]:
    """uint8 [N, size, size, C]: in memory, or mapped from a file named after `cache`."""
    with _opened(path) as file:
        dataset = _dataset(file, path, "x")
        if cache is None:
            return _read_images(dataset, size, f"{path}: x")
        shape = _resized_shape(dataset, size, f"{path}: x")

        def blocks() -> Iterator[NDArray[np.uint8]]:
            try:
                yield from _blocks(dataset, size)
            except OSError as error:  # of reading, not of writing, which the caller looks after
                raise _unreadable(path, error) from error

        return mapped_images(cache, path, shape, blocks)


def _load_labels(path: Path) -> NDArray[np.generic]:
    with _opened(path) as file:
        return _read_labels(_dataset(file, path, "y"), f"{path}: y")


def _dataset(file: Any, path: Path, key: str) -> Any:
    import h5py

    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset):
        found = ", ".join(map(repr, file)) or "nothing"
        raise UserError(f"{path}: no data set {key!r} (found: {found}); rename yours")
    if file.get(key, getlink=True, getclass=True) is h5py.ExternalLink or dataset.external:
        raise UserError(f"{path}: {key}: its values lie in another file; copy them into this one")
    return dataset


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open h5py.File; whatever goes wrong with it becomes a UserError."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    # h5py raises OSError for most damage, and KeyError, RuntimeError, ValueError for the rest.
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.errno:
        reason = describe_os_error(error)
    else:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(f"{path}: cannot be read ({reason}); put a whole file there")


def _read_labels(dataset: Any, where: str) -> NDArray[np.generic]:
    too_many = dataset.size * dataset.dtype.itemsize > MAX_ARRAY_BYTES
    if too_many or dataset.dtype.kind not in "iu":
        raise UserError(
            f"{where}: {dataset.dtype} of shape {dataset.shape}; give one whole number per image"
        )
    return np.asarray(dataset[()])


def _read_images(dataset: Any, size: int, where: str) -> NDArray[np.uint8]:
    shape = _resized_shape(dataset, size, where)
    check_memory(where, shape[0], size, shape[3])
    images = np.empty(shape, dtype=np.uint8)
    start = 0
    for block in _blocks(dataset, size):
        images[start : start + len(block)] = block
        start += len(block)
    return images


def _resized_shape(dataset: Any, size: int, where: str) -> tuple[int, int, int, int]:
    """[N, size, size, C]; UserError where the data set does not hold images."""
    if dataset.dtype != np.uint8 or dataset.ndim not in (3, 4) or 0 in dataset.shape:
        raise UserError(
            f"{where}: {dataset.dtype} of shape {dataset.shape}; "
            "give images as uint8 [N, H, W] or [N, H, W, C]"
        )
    if dataset.size // dataset.shape[0] > MAX_IMAGE_BYTES:
        raise UserError(
            f"{where}: one image of {dataset.shape[2]}x{dataset.shape[1]} pixels; "
            "cut it into smaller ones"
        )
    return dataset.shape[0], size, size, (*dataset.shape, 1)[3]


def _blocks(dataset: Any, size: int) -> Iterator[NDArray[np.uint8]]:
    """All images, resized, uint8 [b, size, size, C]; read in whole chunks, if they allow it."""
    count, channels = dataset.shape[0], (*dataset.shape, 1)[3]
    image_bytes = dataset.size // count
    step = max(1, BLOCK_BYTES // image_bytes)
    rows = step
    if dataset.chunks:
        chunk = dataset.chunks[0]
        rows = min(max(step // chunk, 1) * chunk, max(1, LARGEST_BLOCK_BYTES // image_bytes))
    for start in range(0, count, rows):
        block = dataset[start : start + rows].reshape(-1, *dataset.shape[1:3], channels)
        for first in range(0, len(block), step):
            yield resize(block[first : first + step], size)
