"""Image arrays in HDF5, in the layout of PatchCamelyon: `NAME_{train,valid,test}_{x,y}.h5`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sources.disk_images import fits_in_memory, mapped_images
from data_sources.hdf5_file import array_names, check_written, get_array, opened, unreadable
from data_sources.image_arrays import Shape, image_shape, may_hold_images
from data_sources.raw import RawSplit, RawSplits, check_memory
from data_sources.resizing import resize
from data_sources.sources import ArraySources
from errors import UserError

BLOCK_BYTES = 32 * 2**20  # read and resized at a time, through a float32 copy
# Read at a time where chunks span many images: each would be decompressed for every block of it.
LARGEST_BLOCK_BYTES = 512 * 2**20
SPLITS = {"train": "train", "val": "valid", "test": "test"}


def load(name: str, data_dir: Path, image_size: int, caches: Sequence[Path]) -> RawSplits:
    """Images `x` [N, H, W] or [N, H, W, C] uint8 and labels `y`, resized to `image_size`.

    Each split is read in blocks, so that memory holds the resized images and not the file. Where
    those are too many for memory (`disk_images.fits_in_memory`), they lie in a file in one of the
    folders `caches`.
    Classes are named by their numbers, as the files hold no names. The label -1 is no class.

    Raises:
        UserError: h5py is missing, or a file is missing, damaged or refused.
    """
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise UserError(f"hdf5:{name} needs the package h5py; pip install h5py") from error
    paths = {split: data_dir / f"{name}_{word}_x.h5" for split, word in SPLITS.items()}
    counts = {split: _count(path) for split, path in paths.items()}
    in_memory = fits_in_memory(sum(_image_bytes(path, image_size) for path in paths.values()))
    splits = {}
    for split, path in paths.items():
        labels_path = data_dir / f"{name}_{SPLITS[split]}_y.h5"
        splits[split] = RawSplit(
            # Labels first: they are read in no time, and tell whether the images are worth it.
            labels=_load_labels(labels_path, counts[split]),
            images=_load_images(path, image_size, () if in_memory else caches),
            images_from=f"{path}: x",
            labels_from=f"{labels_path}: y",
            sources=ArraySources(f"{path.name}:x", range(counts[split])),
        )
    labels = np.concatenate([split.labels.reshape(-1) for split in splits.values()])
    class_names = tuple(str(label) for label in np.unique(labels) if label >= 0)
    return RawSplits(name, class_names, splits["train"], splits["val"], splits["test"])


def image_blocks(path: Path, image_size: int) -> Iterator[tuple[str, int, str, NDArray[np.uint8]]]:
    """All images of the arrays at the top of the file, a block at a time.

    Yields the array's name, the position of the block's first image in it, the images' own size (as
    in "96x96"), and the images, uint8 [b, image_size, image_size, C].

    Raises:
        UserError: the file is damaged, refused or without images.
    """
    with opened(path) as file:
        found = []
        any_images = False
        for name in array_names(file):
            dataset = get_array(file, path, name)
            found.append(f"{name}: {dataset.dtype} {dataset.shape}")
            if not may_hold_images(name, dataset.shape):
                continue
            any_images = True
            shape = _checked_shape(dataset, f"{path}: {name}")
            start = 0
            for block in _blocks(dataset, shape, image_size):
                yield name, start, f"{shape[2]}x{shape[1]}", block
                start += len(block)
        if not any_images:
            raise UserError(
                f"{path}: no images (found: {', '.join(found) or 'nothing'}); give arrays of uint8 "
                "[N, H, W] or [N, H, W, C]"
            )


def _count(path: Path) -> int:
    with opened(path) as file:
        return _checked_shape(get_array(file, path, "x"), f"{path}: x")[0]


def _image_bytes(path: Path, size: int) -> int:
    """What the images in the file take, once resized to `size`."""
    with opened(path) as file:
        count, _, _, channels = _checked_shape(get_array(file, path, "x"), f"{path}: x")
        return count * size * size * channels


def _load_images(path: Path, size: int, caches: Sequence[Path]) -> NDArray[np.uint8]:
    """uint8 [N, size, size, C]: mapped from a file in one of `caches`; in memory without any."""
    with opened(path) as file:
        dataset = get_array(file, path, "x")
        shape = _checked_shape(dataset, f"{path}: x")
        resized = (shape[0], size, size, shape[3])
        if not caches:
            return _read_images(dataset, shape, size, f"{path}: x")

        def blocks() -> Iterator[NDArray[np.uint8]]:
            try:
                yield from _blocks(dataset, shape, size)
            except OSError as error:  # of reading; the caller handles those of writing
                raise unreadable(path, error) from error

        return mapped_images(caches, f"{path.stem}_{size}", path, resized, blocks)


def _load_labels(path: Path, count: int) -> NDArray[np.generic]:
    """One label for each of `count` images."""
    with opened(path) as file:
        dataset, where = get_array(file, path, "y"), f"{path}: y"
        if dataset.dtype.kind not in "iu" or dataset.size != count:
            raise UserError(
                f"{where}: {dataset.dtype} of shape {dataset.shape} for {count} images; give one "
                "whole number per image"
            )
        check_written(dataset, where)
        return np.asarray(dataset[()])


def _checked_shape(dataset: Any, where: str) -> Shape:
    """[N, H, W, C] of an array of images that are all there."""
    shape = image_shape(dataset.shape or (), dataset.dtype, where)
    check_written(dataset, where)
    return shape


def _read_images(dataset: Any, shape: Shape, size: int, where: str) -> NDArray[np.uint8]:
    check_memory(where, shape[0], size, shape[3])
    images = np.empty((shape[0], size, size, shape[3]), dtype=np.uint8)
    start = 0
    for block in _blocks(dataset, shape, size):
        images[start : start + len(block)] = block
        start += len(block)
    return images


def _blocks(dataset: Any, shape: Shape, size: int) -> Iterator[NDArray[np.uint8]]:
    """All images, resized, uint8 [b, size, size, C]; read in whole chunks where possible."""
    count, *image = shape
    image_bytes = int(np.prod(image))
    step = max(1, BLOCK_BYTES // image_bytes)
    if len(dataset.shape) == 3 and count == 1:  # one image of which the first axis is its height
        yield resize(dataset[()].reshape(shape), size)
        return
    rows = step
    if dataset.chunks:
        chunk = dataset.chunks[0]
        rows = min(max(step // chunk, 1) * chunk, max(1, LARGEST_BLOCK_BYTES // image_bytes))
    for start in range(0, count, rows):
        block = dataset[start : start + rows].reshape(-1, *image)
        for first in range(0, len(block), step):
            yield resize(block[first : first + step], size)
