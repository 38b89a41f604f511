"""Reads images of any size from files, folders and arrays, in batches ready for a network.

Memory stays bounded however many images there are: files are decoded and HDF5 arrays are read a
batch at a time. Nothing is written.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_sources import hdf5, image_file
from data_sources.folder_tree import Tree, describe_left_out
from data_sources.image_arrays import image_shape, may_hold_images
from data_sources.names import readable
from data_sources.npz import read_npz
from data_sources.raw import describe_os_error
from data_sources.resizing import resize
from errors import UserError

ARRAY_SUFFIXES = {".npz", ".h5", ".hdf5"}
# Weights of red, green and blue in grey (ITU-R BT.601), as in PIL's conversion to mode L.
LUMINANCE = np.array([0.299, 0.587, 0.114])

logger = logging.getLogger(__name__)


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

    Images are recognised by their content. A warning says what else lies in a folder.

    Raises:
        UserError: a path does not exist, is of no known kind, or is a folder without images.
    """
    inputs: list[Path] = []
    for path in paths:
        if path.is_dir():
            inputs += _images_below(path)
        elif not path.is_file():
            raise UserError(f"{readable(path)}: no such file or folder; check the name")
        elif (
            _is_array_file(path)
            or path.suffix.lower() in image_file.SUFFIXES
            or image_file.is_image(path)
        ):
            inputs.append(path)
        else:
            kinds = ", ".join(sorted(ARRAY_SUFFIXES))
            raise UserError(
                f"{readable(path)}: not a kind of file that is read; give an image or one of "
                f"{kinds}"
            )
    return inputs


def read_batches(
    files: Sequence[Path],
    size: int,
    channels: int,
    batch_size: int,
    *,
    max_pixels: int = image_file.MAX_PIXELS,
    on_damage: Callable[[UserError], None] | None = None,
) -> Iterator[ImageBatch]:
    """All images of `files`, in their order, resized to `size` and with `channels` 1 or 3.

    Resized whole, without keeping the aspect ratio, by the same code as training images. Grey
    images fill all three channels; colour becomes luminance for a network of one channel.

    Args:
        files: as `find_inputs` gives them.
        size: side of the images in pixels.
        channels: 1 or 3.
        batch_size: images per batch, at most.
        max_pixels: an image file with more is refused before it is decoded.
        on_damage: called for each file that cannot be read, which is then left out. None: the first
            such file ends the reading.

    Raises:
        UserError: a file cannot be read, or an array holds no images.
    """
    for is_array, group in groupby(files, _is_array_file):
        if not is_array:
            yield from _file_batches(list(group), size, channels, batch_size, max_pixels, on_damage)
            continue
        for path in group:
            try:
                yield from _array_batches(path, size, channels, batch_size)
            except UserError as error:
                if on_damage is None:
                    raise
                on_damage(error)


def _is_array_file(path: Path) -> bool:
    return path.suffix.lower() in ARRAY_SUFFIXES


def _images_below(folder: Path) -> list[Path]:
    try:
        tree = Tree.of(folder)
    except (OSError, RuntimeError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else "a loop of links"
        raise UserError(
            f"{readable(folder)}: cannot be read ({reason}); name a folder that can"
        ) from error
    if tree.others:
        logger.warning("%s: %s", readable(folder), describe_left_out(tree.others))
    if not tree.images:
        raise UserError(f"{readable(folder)}: no image in it; name a folder with some")
    return [folder / path for path in tree.images]


def _file_batches(
    files: Sequence[Path],
    size: int,
    channels: int,
    batch_size: int,
    max_pixels: int,
    on_damage: Callable[[UserError], None] | None,
) -> Iterator[ImageBatch]:
    def read(path: Path) -> image_file.DecodedImage:
        return image_file.decode(path, size, name=readable(path), max_pixels=max_pixels)

    left = iter(files)
    names, sizes, arrays = [], [], []
    with ThreadPoolExecutor() as pool:  # PIL decodes and resizes outside Python's global lock
        # A batch ahead is decoded while the network is busy with the one before.
        coming: deque[tuple[Path, Future[image_file.DecodedImage]]] = deque()
        try:
            while True:
                while len(coming) < 2 * batch_size and (path := next(left, None)) is not None:
                    coming.append((path, pool.submit(read, path)))
                if not coming:
                    break
                path, future = coming.popleft()
                try:
                    image = future.result()
                except UserError as error:
                    if on_damage is None:
                        raise
                    on_damage(error)
                    continue
                width, height = image.original_size
                names.append(readable(path))
                sizes.append(f"{width}x{height}")
                arrays.append(_with_channels(image.pixels[np.newaxis], channels))
                if len(arrays) == batch_size:
                    yield _batch(names, sizes, arrays)
                    names, sizes, arrays = [], [], []
        finally:
            pool.shutdown(cancel_futures=True)  # else one bad file waits for all the others
    if arrays:
        yield _batch(names, sizes, arrays)


def _array_batches(path: Path, size: int, channels: int, batch_size: int) -> Iterator[ImageBatch]:
    blocks = _npz_blocks if path.suffix.lower() == ".npz" else hdf5.image_blocks
    for key, start, original, block in blocks(path, size):
        for first in range(0, len(block), batch_size):
            part = block[first : first + batch_size]
            names = [f"{readable(path)}:{key}[{start + first + i}]" for i in range(len(part))]
            yield _batch(names, [original] * len(part), [_with_channels(part, channels)])


def _npz_blocks(path: Path, size: int) -> Iterator[tuple[str, int, str, NDArray[np.uint8]]]:
    """The same as `hdf5.image_blocks` for an NPZ file, whose arrays can only be read whole."""
    arrays = read_npz(path, None, "put a whole file there")
    usable = {key: array for key, array in arrays.items() if may_hold_images(key, array.shape)}
    if not usable:
        found = ", ".join(f"{key}: {array.dtype} {array.shape}" for key, array in arrays.items())
        raise UserError(
            f"{path}: no images (found: {found or 'nothing'}); give arrays of uint8 [N, H, W] or "
            "[N, H, W, C]"
        )
    for key, array in usable.items():
        shape = image_shape(array.shape, array.dtype, f"{path}: {key}")
        images = array.reshape(shape).astype(np.uint8, copy=False)
        rows = max(1, hdf5.BLOCK_BYTES // (shape[1] * shape[2] * shape[3]))
        for start in range(0, len(images), rows):
            yield (
                key, start, f"{shape[2]}x{shape[1]}", resize(images[start : start + rows], size)
            )  # fmt: skip


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
