"""Reads arrays from an .npz that may be damaged or hostile: no pickles, no zip bombs."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from data_sources.folder_tree import is_litter
from data_sources.raw import MAX_ARRAY_BYTES, describe_os_error, is_bomb
from errors import UserError


def read_npz(path: Path, keys: Iterable[str] | None, remedy: str) -> dict[str, NDArray[np.generic]]:
    """The arrays `keys` of the .npz at `path`, of any dtype and shape; all of them for None.

    Args:
        path: of the file.
        keys: names of arrays.
        remedy: the end of each message; only the caller knows where a good file comes from.

    Raises:
        UserError: the file or an array cannot be read; the message names file and key.
    """
    try:
        with path.open("rb") as file:
            return _read_archive(file, path, keys, remedy)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({describe_os_error(error)}); {remedy}") from error


def _read_archive(
    file: IO[bytes], path: Path, keys: Iterable[str] | None, remedy: str
) -> dict[str, NDArray[np.generic]]:
    try:
        archive = zipfile.ZipFile(file)
    # A damaged directory makes zipfile raise far more than BadZipFile (struct, Unicode, overflow).
    except Exception as error:
        raise UserError(f"{path}: not a whole .npz file ({_line(error)}); {remedy}") from error
    with archive:
        members = set(archive.namelist())
        if keys is None:
            keys = sorted(
                name[:-4]
                for name in members
                if name.endswith(".npy") and not any(map(is_litter, name.split("/")))
            )
        missing = [key for key in keys if f"{key}.npy" not in members]
        if missing:
            present = ", ".join(sorted(name.removesuffix(".npy")[:40] for name in members)[:12])
            raise UserError(
                f"{path}: lacks {', '.join(missing)} (found: {present or 'nothing'}); {remedy}"
            )
        arrays = {}
        left = MAX_ARRAY_BYTES
        for key in keys:
            try:
                arrays[key] = _read_member(archive, archive.getinfo(f"{key}.npy"), left)
                left -= arrays[key].nbytes
            # Decompression and numpy's header parser raise a dozen types on bad bytes. The user
            # needs to know the same about all of them.
            except Exception as error:
                raise UserError(f"{path}: {key} {_line(error)}; {remedy}") from error
    return arrays


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int
) -> NDArray[np.generic]:
    """One array of at most `limit` bytes.

    Everything that its header claims is checked before any of it is decompressed.
    """
    with archive.open(member) as stream:
        # Later versions are for record types only, and let a header itself claim 4 GB.
        version = npy.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"has .npy version {version}, which no plain array needs")
        shape, _, dtype = npy.read_array_header_1_0(stream)
        header_bytes = stream.tell()
    if dtype.hasobject:
        raise ValueError("holds Python objects (a pickle), which are never loaded")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > limit:
        raise ValueError(f"claims {claimed:.3g} bytes (limit {MAX_ARRAY_BYTES:.3g} in all)")
    if is_bomb(claimed, member.compress_size):
        raise ValueError(f"is {claimed} bytes packed into {member.compress_size}, a zip bomb")
    if claimed != member.file_size - header_bytes:
        raise ValueError(f"claims shape {shape} but has {member.file_size - header_bytes} bytes")
    with archive.open(member) as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
