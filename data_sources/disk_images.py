"""Images that would take too much memory: uncompressed in one file, read page by page as needed.

The file is mapped, so an array of it looks like any other. The system reads its pages on first use
and keeps them while there is room; `release` gives them back at once.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import mmap
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from data_sources.content import content_hash
from data_sources.raw import MAX_ARRAY_BYTES, describe_os_error
from errors import UserError

# Of the available memory, for images read into it. They are there twice while a store is made, and
# each data-parallel rank reads a copy of its own.
MEMORY_SHARE = 1 / 8
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
FORMAT_VERSION = 2  # part of the ending: raise it when the layout of the file changes

logger = logging.getLogger(__name__)

Images = NDArray[np.uint8]
Shape = tuple[int, int, int, int]

# The mapping behind each mapped array, by the array's address.
_mappings: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()


def available_memory() -> int:
    """Bytes that can be allocated without swapping, within a container's limit if there is one."""
    limits = [psutil.virtual_memory().available]
    for name in CGROUP_LIMITS:
        try:
            limits.append(int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)


def fits_in_memory(needed: int) -> bool:
    """Whether images of `needed` bytes may be read into memory."""
    return needed <= min(MEMORY_SHARE * available_memory(), MAX_ARRAY_BYTES)


def mapped_images(
    folders: Sequence[Path],
    name: str,
    source: Path,
    shape: Shape,
    blocks: Callable[[], Iterable[Images]],
) -> Images:
    """The images of `source`, uint8 `[N, H, W, C]` = `shape`, mapped from a file and read-only.

    The file lies in one of `folders`. It is called `name`, with an ending made from the content of
    `source`. Where there is none, it is written from `blocks()` into the first folder, and those
    with other endings are removed. One process writes while others wait. In the file, images lie
    channels first, as stores hold them.

    Raises:
        UserError: the file cannot be written.
    """
    count, height, width, channels = shape
    size = count * height * width * channels
    file_name = f"{name}.{_ending(source, shape)}"
    file = next(
        (folder / file_name for folder in folders if _is_whole(folder / file_name, size)),
        folders[0] / file_name,
    )
    try:
        if not _is_whole(file, size):
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_name(f".{name}.lock")):
                if not _is_whole(file, size):
                    for stale in set(file.parent.glob(f"{glob.escape(name)}.*")) - {file}:
                        stale.unlink()
                    _write(file, size, source, blocks())
        with file.open("rb") as opened:
            mapping = mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ)
    except (OSError, NotImplementedError) as error:  # the latter: no locks on this file system
        reason = describe_os_error(error) if isinstance(error, OSError) else error
        raise UserError(
            f"{file}: {size / 2**30:.1f} GiB of images, too many for memory, cannot be kept there "
            f"({reason}); set data_dir to a copy of the data in a folder that can be written"
        ) from error
    array: Images = np.frombuffer(mapping, dtype=np.uint8)
    _mappings[array.ctypes.data] = mapping
    return array.reshape(count, channels, height, width).transpose(0, 2, 3, 1)


def release(images: torch.Tensor) -> None:
    """Give back the memory of `images` if they are mapped from a file; otherwise do nothing.

    They can be used as before: their pages are then read again, if possible from the system's
    cache.
    """
    mapping = _mappings.get(images.untyped_storage().data_ptr())
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def _ending(source: Path, shape: Shape) -> str:
    """Differs for every other content of `source` and every other shape."""
    try:
        content = content_hash(source, "checking " + source.name)
    except OSError as error:
        raise UserError(
            f"{source}: cannot be read ({describe_os_error(error)}); put a whole file there"
        ) from error
    described = json.dumps([FORMAT_VERSION, content.hex(), shape])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _is_whole(file: Path, size: int) -> bool:
    return file.exists() and file.stat().st_size == size


def _write(file: Path, size: int, source: Path, blocks: Iterable[Images]) -> None:
    free = shutil.disk_usage(file.parent).free
    if size > free:
        raise OSError(f"{free / 2**30:.1f} GiB of disk are free")
    logger.info(
        "%s: writing its images, %.2f GiB, to %s, to be read from there as they are needed; the "
        "set is too large for the %.1f GiB of memory available",
        source, size / 2**30, file, available_memory() / 2**30,
    )  # fmt: skip
    partial = file.with_name(f".{file.name}.part")
    try:
        with (
            partial.open("wb") as opened,
            tqdm(desc=source.name, total=size, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for images in blocks:
                opened.write(np.ascontiguousarray(images.transpose(0, 3, 1, 2)).data)
                bar.update(images.nbytes)
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
