"""Images that would take too much memory: uncompressed in one file, of which pages are read as
they are needed.

The file is mapped, so that an array of it looks like any other. The system reads pages of it when
they are looked at, and keeps them while there is room; `release` gives them back at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import psutil
import torch
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from data_sources.raw import MAX_ARRAY_BYTES, describe_os_error
from errors import UserError

# Of the memory there is, for images read into it: they are there twice while a store is made, and
# data-parallel ranks read one copy each.
MEMORY_SHARE = 1 / 8
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
FORMAT_VERSION = 1  # part of the key: raise it when the file's content changes

logger = logging.getLogger(__name__)

Images = NDArray[np.uint8]
Shape = tuple[int, int, int, int]

# The mapping behind each mapped array, by the array's address.
_mappings: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()


def available_memory() -> int:
    """Bytes that can be had without swapping, in the container if this is one."""
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
    cache: Path, source: Path, shape: Shape, blocks: Callable[[], Iterable[Images]]
) -> Images:
    """The images of `source`, uint8 `[N, H, W, C]` = `shape`, mapped from a file and read-only.

    `cache` names that file but for its ending, which tells the state of `source`: where there is
    no such file, it is written from `blocks()`, and those of other states are removed. One process
    writes while others wait. In it, images lie channels first, as stores hold them.

    Raises:
        UserError: it cannot be written.
    """
    count, height, width, channels = shape
    stat = source.stat()
    described = json.dumps([FORMAT_VERSION, source.name, stat.st_size, stat.st_mtime_ns, shape])
    file = cache.with_name(f"{cache.name}.{hashlib.sha256(described.encode()).hexdigest()[:16]}")
    size = count * height * width * channels
    try:
        if not _is_whole(file, size):
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(cache.with_name(f".{cache.name}.lock")):
                if not _is_whole(file, size):
                    for stale in set(cache.parent.glob(f"{cache.name}.*")) - {file}:
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
    """Give the memory of `images` back, where they are mapped from a file; else do nothing.

    They can be used as before: what is looked at is read again, from the system's cache at best.
    """
    mapping = _mappings.get(images.untyped_storage().data_ptr())
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


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
