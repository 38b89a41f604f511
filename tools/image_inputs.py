"""Reads images of any size from files, folders and arrays, in batches ready for a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_sources import hdf5, image_file
from data_sources.npz import read_npz
from data_sources.resizing import resize
from errors import UserError

ARRAY_SUFFIXES = {".npz", ".h5", ".hdf5"}
# Weights of red, green and blue in grey (ITU-R BT.601), as in PIL's conversion to mode L.
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class ImageBatch:
    """Images uint8 [b, C, S, S], and for each of them its name and its size before resizing.

    A name is a path, followed by the array's name and the position where a file holds many.
    """

    names: list[str]
    sizes: list[str]  # width x height, as in "64x48"
    images: Tensor


def find_inputs(paths: Sequence[Path]) -> list[Path]:
    """The files that `paths` mean: themselves, and all images below those that are folders.

    Raises:
        UserError: one does not exist, is of no known kind, or is a folder without images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = [
                file
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in image_file.SUFFIXES and file.is_file()
            ]
            if not below:
                kinds = ", ".join(sorted(image_file.SUFFIXES))
                raise UserError(f"{path}: no image in it ({kinds}); name a folder with some")
            found += below
        elif not path.is_file():
            raise UserError(f"{path}: no such file or folder; check the name")
        elif path.suffix.lower() not in image_file.SUFFIXES | ARRAY_SUFFIXES:
            kinds = ", ".join(sorted(image_file.SUFFIXES | ARRAY_SUFFIXES))
            raise UserError(f"{path}: not a kind of file that is read; give one of {kinds}")
        else:
            found.append(path)
    return found


def read_batches(
    files: Sequence[Path], size: int, channels: int, batch_size: int
) -> Iterator[ImageBatch]:
    """All images of `files`, in their order, resized to `size` and with `channels` 1 or 3.

    Resized whole, without keeping the aspect ratio, by the same code as training images. Grey
    images fill all three channels; colour becomes luminance for a network of one channel.

    Raises:
        UserError: a file cannot be read, or an array holds no images.
    """
    with ThreadPoolExecutor() as pool:  # PIL decodes and resizes outside Python's global lock
        for is_array, group in groupby(files, lambda path: path.suffix.lower() in ARRAY_SUFFIXES):
            paths = list(group)
            if is_array:
                for path in paths:
                    yield from _array_batches(path, size, channels, batch_size)
                continue
            parts = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
            coming = [pool.submit(_read_file, path, size, channels) for path in parts[0]]
            for part, following in zip(parts, [*parts[1:], []], strict=True):
                # Decoded while the network is busy with the batch before.
                reading = coming
                coming = [pool.submit(_read_file, path, size, channels) for path in following]
                sizes, arrays = zip(*(future.result() for future in reading), strict=True)
                yield _batch(list(map(str, part)), list(sizes), list(arrays))


def _read_file(path: Path, size: int, channels: int) -> tuple[str, NDArray[np.uint8]]:
    """The image's own size, and its pixels [1, size, size, channels]."""
    image = image_file.decode(path, size)
    width, height = image.original_size
    return f"{width}x{height}", _with_channels(image.pixels[np.newaxis], channels)


def _array_batches(path: Path, size: int, channels: int, batch_size: int) -> Iterator[ImageBatch]:
    is_npz = path.suffix.lower() == ".npz"
    arrays = _npz_images(path) if is_npz else hdf5.read_images(path, size)
    if not arrays:
        raise UserError(f"{path}: no images; give arrays of uint8 [N, H, W] or [N, H, W, C]")
    for key, (original, images) in arrays.items():
        if images.shape[3] not in (1, 3):
            raise UserError(f"{path}: {key} has {images.shape[3]} channels; give 1 or 3")
        for start in range(0, len(images), batch_size):
            block = resize(images[start : start + batch_size], size)
            names = [f"{path}:{key}[{start + i}]" for i in range(len(block))]
            yield _batch(names, [original] * len(block), [_with_channels(block, channels)])


def _npz_images(path: Path) -> dict[str, tuple[str, NDArray[np.uint8]]]:
    """Every array of images in the file, uint8 [N, H, W, C], and its size, by its name."""
    arrays = {}
    for key, array in read_npz(path, None, "put a whole file there").items():
        if array.dtype == np.uint8 and array.ndim in (3, 4) and array.size:
            images = array.astype(np.uint8, copy=False)
            original = f"{array.shape[2]}x{array.shape[1]}"
            arrays[key] = (original, images if images.ndim == 4 else images[..., np.newaxis])
    return arrays


def _with_channels(images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """uint8 [n, S, S, 1 or 3] with `channels` in the last place."""
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return images.repeat(3, axis=3)
    return np.rint(images @ LUMINANCE).astype(np.uint8)[..., np.newaxis]


def _batch(names: list[str], sizes: list[str], arrays: list[NDArray[np.uint8]]) -> ImageBatch:
    images = torch.from_numpy(np.concatenate(arrays)).permute(0, 3, 1, 2)
    return ImageBatch(names, sizes, images)
