"""Decoded images kept on disk, so that tens of thousands of small files are read only once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from data_sources.npz import read_npz
from data_sources.raw import describe_os_error
from errors import UserError

logger = logging.getLogger(__name__)

Images = NDArray[np.uint8]


def cached_images(cache: Path, key: str, build: Callable[[], Images]) -> Images:
    """The images in the .npz file `cache` if it was written under `key`, else those of `build()`.

    One process builds while others wait. Where the cache cannot be written, one warning is
    logged and every process builds for itself.
    """
    images = _read(cache, key)
    if images is not None:
        return images
    lock = FileLock(cache.with_name(f".{cache.name}.lock"))
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter: no locks on this file system
        _warn(cache, error)
        return build()
    try:
        images = _read(cache, key)
        if images is None:
            images = build()
            _write(cache, key, images)
        return images
    finally:
        lock.release()


def _read(cache: Path, key: str) -> Images | None:
    """The cached images, or None if there are none, of this key, in one piece."""
    try:
        if not cache.exists():
            return None
        stored = read_npz(cache, ["key"], "it is made again")["key"]
        if stored.tobytes() != key.encode():
            return None
        return read_npz(cache, ["images"], "it is made again")["images"].astype(
            np.uint8, casting="no", copy=False
        )
    except (UserError, OSError, TypeError) as error:
        logger.warning("cache ignored: %s", error)
        return None


def _write(cache: Path, key: str, images: Images) -> None:
    partial = cache.with_name(f".{cache.name}.part")
    try:
        try:
            with partial.open("wb") as file:
                np.savez(file, key=np.frombuffer(key.encode(), dtype=np.uint8), images=images)
            partial.replace(cache)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        _warn(cache, error)


def _warn(cache: Path, error: OSError | NotImplementedError) -> None:
    reason = describe_os_error(error) if isinstance(error, OSError) else error
    logger.warning("%s: not cached (%s); images are decoded at every start", cache, reason)
