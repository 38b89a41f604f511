"""Opens HDF5 files from anywhere without being led to the bytes of other files.

A data set in HDF5 may lie in another file: by external storage (any file of the machine), by an
external link, by a soft link through one, or as a virtual data set. Its declared size says nothing
of what is stored either. Both are refused before anything is read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_sources.raw import describe_os_error, is_bomb
from errors import UserError


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The open h5py.File; whatever goes wrong while it is open becomes a UserError."""
    import h5py

    try:
        # Without a lock, which network file systems and read-only ones may not have.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except UserError:
        raise
    # h5py raises OSError for most damage, and KeyError, RuntimeError, ValueError for the rest.
    except Exception as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """The error of a file that is missing or damaged, in one line."""
    if isinstance(error, OSError) and error.errno:
        reason = describe_os_error(error)
    else:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(f"{path}: cannot be read ({reason}); put a whole file there")


def array_names(file: Any) -> list[str]:
    """The names at the top of the file that mean arrays, in this file or in another."""
    import h5py

    return [
        name
        for name in file
        if isinstance(file.get(name, getlink=True), h5py.ExternalLink)
        or isinstance(file.get(name), h5py.Dataset)
    ]


def get_array(file: Any, path: Path, name: str) -> Any:
    """The h5py.Dataset called `name`, whose values are known to lie in this file.

    Raises:
        UserError: there is no such data set, or its values lie elsewhere.
    """
    import h5py

    link = file.get(name, getlink=True)
    elsewhere = UserError(
        f"{path}: {name}: its values lie in another file; copy them into this one"
    )
    if isinstance(link, h5py.ExternalLink):
        raise elsewhere
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        found = ", ".join(map(repr, file)) or "nothing"
        raise UserError(f"{path}: no data set {name!r} (found: {found}); rename yours")
    home, own = (h5py.h5o.get_info(thing.id).fileno for thing in (dataset, file))
    if home != own or dataset.external or dataset.is_virtual:
        raise elsewhere
    return dataset


def check_written(dataset: Any, where: str) -> None:
    """Refuse an array of which parts were never written, or that is packed to fill memory.

    Reading parts that were never written gives zeros, and takes as much memory as was declared.

    Raises:
        UserError: there are such parts.
    """
    stored = dataset.id.get_storage_size()
    if dataset.chunks:
        chunks = math.prod(
            math.ceil(size / chunk)
            for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)
        )
        written = dataset.id.get_num_chunks()
        if written < chunks:
            raise UserError(
                f"{where}: shape {dataset.shape}, but only {written} of {chunks} chunks were ever "
                "written; write all of it, or shorten it to what is there"
            )
    elif stored == 0 and dataset.size:
        raise UserError(f"{where}: shape {dataset.shape} was never written; write its values")
    claimed = dataset.size * dataset.dtype.itemsize
    if is_bomb(claimed, stored):
        raise UserError(
            f"{where}: {claimed} bytes packed into {stored}, as in a zip bomb; give real images"
        )
