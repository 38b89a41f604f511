"""Reads smears and quantitative-phase images, and checks their size before it decodes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sources import image_file
from data_sources.folder_tree import is_litter
from errors import UserError

PHASE_SUFFIXES = {".npy", ".h5", ".hdf5"}
MAX_PIXELS = 50_000_000  # in one image; about 2 GB of memory while it is segmented
PHASE_KEYS = ("phase/images", "phase")  # the first is the layout of the CellAI holograms


@dataclass(frozen=True)
class Smear:
    """One image to segment.

    `pixels` is uint8 [H, W, 3] for a stained smear, and float32 [H, W] in radians for a
    quantitative-phase image. `name` is unique among the images of one call.
    """

    name: str
    pixels: NDArray[Any]

    @property
    def is_phase(self) -> bool:
        return self.pixels.ndim == 2


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The image files among `paths`, and those below the folders among `paths`.

    Hidden files, and what operating systems leave in folders, are not among them.

    Raises:
        UserError: a path does not exist or is no image, or a folder holds none.
    """
    suffixes = image_file.SUFFIXES | PHASE_SUFFIXES
    kinds = ", ".join(sorted(suffixes))
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = [
                file
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in suffixes
                and file.is_file()
                and not any(is_litter(part) for part in file.relative_to(path).parts)
            ]
            if not below:
                raise UserError(f"{path}: no image in this folder; add files of type {kinds}")
            files += below
        elif not path.is_file():
            raise UserError(f"{path}: no such file or folder; check the name")
        elif path.suffix.lower() not in suffixes:
            raise UserError(f"{path}: not a type of file that is read; give one of {kinds}")
        else:
            files.append(path)
    return files


def read(files: Sequence[Path], max_pixels: int = MAX_PIXELS) -> Iterator[Smear]:
    """The images of `files` in order, one in memory at a time.

    A file of phase images may hold several. Names are the stems of the files, made unique.

    Raises:
        UserError: a file is damaged, too large, or holds no image of a layout that is read.
    """
    taken: set[str] = set()
    for path in files:
        for part, pixels in _read_file(path, max_pixels):
            stem = f"{path.stem}{part}"
            name, copies = stem, 1
            while name in taken:
                copies += 1
                name = f"{stem}-{copies}"
            taken.add(name)
            yield Smear(name, pixels)


def _read_file(path: Path, max_pixels: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Each image of the file, and what tells it from the others of the file."""
    try:
        if path.suffix.lower() in image_file.SUFFIXES:
            yield "", _read_colour(path, max_pixels)
        elif path.suffix.lower() == ".npy":
            yield from _frames(path, np.load(path, mmap_mode="r", allow_pickle=False), max_pixels)
        else:
            yield from _read_hdf5(path, max_pixels)
    except UserError:
        raise
    # The parsers raise OSError, ValueError, SyntaxError, struct.error and more on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); replace or remove it") from error


def _read_colour(path: Path, max_pixels: int) -> NDArray[np.uint8]:
    picture = image_file.read_picture(path, max_pixels=max_pixels)
    if picture.mode != "RGB":
        raise UserError(f"{path}: a grey image has no stain; give the smear in colour")
    return np.asarray(picture, dtype=np.uint8)


def _read_hdf5(path: Path, max_pixels: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    import h5py

    with h5py.File(path, "r") as file:
        for key in PHASE_KEYS:
            dataset = _own_dataset(file, key)
            if dataset is not None:
                yield from _frames(path, dataset, max_pixels)
                return
    raise UserError(f"{path}: no phase images; give them as the array phase/images [N, H, W]")


def _own_dataset(file: Any, key: str) -> Any:
    """The data set at `key` if its values lie in this file, else None.

    A link or an external storage could return the bytes of any other file.
    """
    import h5py

    place = file
    for part in key.split("/"):
        is_group = isinstance(place, h5py.Group)
        if not is_group or not isinstance(place.get(part, getlink=True), h5py.HardLink):
            return None
        place = place[part]
    is_own = isinstance(place, h5py.Dataset) and not place.external and not place.is_virtual
    return place if is_own else None


def _frames(path: Path, array: Any, max_pixels: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each phase image of an array [H, W] or [N, H, W]; only one of them is read at a time."""
    if array.dtype.kind != "f" or array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(
            f"{path}: {array.dtype} of shape {tuple(array.shape)}; "
            "give phases in radians as floats [H, W] or [N, H, W]"
        )
    _check_size(path, array.shape[-2], array.shape[-1], max_pixels)
    for index in range(len(array) if array.ndim == 3 else 1):
        phase = np.asarray(array[index] if array.ndim == 3 else array[()], dtype=np.float32)
        part = f"_{index:04d}" if array.ndim == 3 else ""
        if not np.isfinite(phase).all():
            raise UserError(f"{path}: image {index} has values that are not finite; mend the file")
        yield part, phase


def _check_size(path: Path, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise UserError(
            f"{path}: {width}x{height} pixels are more than the limit of {max_pixels:,}; "
            "cut the image into parts or raise --max-pixels"
        )
