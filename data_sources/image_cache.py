"""Decoded images kept on disk, so that tens of thousands of small files are decoded only once.

Also: the folders in which this cache and that of `disk_images` lie.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from data_sources.npz import read_npz
from data_sources.raw import describe_os_error
from errors import UserError

logger = logging.getLogger(__name__)

# Images, and one line for each thing that a user should know about their decoding.
Built = tuple[NDArray[np.uint8], list[str]]


def cache_folders(data_dir: Path, read_only: bool) -> tuple[Path, ...]:
    """Where images of the data sets in `data_dir` may be cached; new caches go into the first.

    That is `data_dir/.cache`, which all users of the data share. With `read_only`, nothing is
    written into `data_dir`: new caches go into a folder of the user's own. Where the user has no
    home, that folder lasts as long as the process.
    """
    shared = data_dir / ".cache"
    if not read_only:
        return (shared,)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a container's user may have no home
        return (_temporary_folder(), shared)
    name = hashlib.sha256(os.fsencode(os.path.realpath(data_dir))).hexdigest()[:16]
    return home / "active_learning_images" / name, shared


@functools.cache
def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="active_learning_images_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def cached_images(
    folders: Sequence[Path], name: str, key: str, build: Callable[[], Built]
) -> Built:
    """What a file `name` in one of `folders` holds under `key`, else what `build()` gives.

    What is built is written into the first folder. One process builds while others wait. Where it
    cannot be written, one warning is logged and every process builds for itself.
    """
    for folder in folders:
        built = _read(folder / name, key)
        if built is not None:
            return built
    cache = folders[0] / name
    lock = FileLock(cache.with_name(f".{cache.name}.lock"))
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter: no locks on this file system
        _warn(cache, error)
        return build()
    try:
        built = _read(cache, key)
        if built is None:
            built = build()
            _write(cache, key, built)
        return built
    finally:
        lock.release()


def _read(cache: Path, key: str) -> Built | None:
    """What is cached, or None where there is no whole cache of this key."""
    try:
        if not cache.exists():
            return None
        stored = read_npz(cache, ["key"], "it is made again")["key"]
        if stored.tobytes() != key.encode():
            return None
        arrays = read_npz(cache, ["images", "facts"], "it is made again")
        facts = json.loads(arrays["facts"].tobytes())
        return arrays["images"].astype(np.uint8, casting="no", copy=False), facts
    except (UserError, OSError, TypeError, ValueError) as error:
        logger.warning("cache ignored: %s", error)
        return None


def _write(cache: Path, key: str, built: Built) -> None:
    partial = cache.with_name(f".{cache.name}.part")
    images, facts = built
    try:
        try:
            with partial.open("wb") as file:
                np.savez(
                    file, key=_as_bytes(key), facts=_as_bytes(json.dumps(facts)), images=images
                )
            partial.replace(cache)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        _warn(cache, error)


def _as_bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _warn(cache: Path, error: OSError | NotImplementedError) -> None:
    reason = describe_os_error(error) if isinstance(error, OSError) else error
    logger.warning("%s: not cached (%s); images are decoded at every start", cache, reason)
