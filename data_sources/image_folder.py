"""A folder of images per class: `<data_dir>/NAME/<class>/*.png` and the like, split by us."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from data_sources.image_cache import cached_images
from data_sources.raw import RawSplit, RawSplits, check_memory, describe_os_error
from data_sources.splitting import SplitRequest, duplicate_groups, stratified_split
from errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
# Only these parsers are tried, whatever a file is called.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
GREY_MODES = {"1", "L", "LA"}
COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"}
DECODING_VERSION = 1  # part of the cache's key: raise it when `decode` gives other pixels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Listing:
    """The image files, class by class in order of name, and what tells that one has changed."""

    class_names: tuple[str, ...]
    paths: list[Path]
    labels: NDArray[np.int64]
    stamps: list[tuple[str, int, int]]  # path inside the folder, bytes, modification time


def load(name: str, data_dir: Path, image_size: int, request: SplitRequest) -> RawSplits:
    """The images of `data_dir/name` as uint8 `[N, image_size, image_size, 1 or 3]`.

    One channel if every image is grey, else three. Resized whole, so without keeping the aspect
    ratio. Decoded arrays are cached in `data_dir/.cache`. Images that come out equal share a
    split. Raises UserError for a missing folder, an unreadable image or a class too small.
    """
    root = data_dir / name
    listing = _list_images(root)
    check_memory(str(root), len(listing.paths), image_size, 3)
    images = cached_images(
        data_dir / ".cache" / f"folder_{name}_{image_size}.npz",
        _cache_key(listing, image_size),
        lambda: _decode_all(listing.paths, image_size),
    )
    groups = duplicate_groups(images)
    _warn_of_contradictions(listing, groups)
    parts = stratified_split(listing.labels, groups, listing.class_names, request)
    train, val, test = (
        RawSplit(images[part], listing.labels[part], f"{root}: {kind}", f"{root}: {kind} labels")
        for kind, part in zip(("train", "val", "test"), parts, strict=True)
    )
    return RawSplits(name, listing.class_names, train, val, test)


def _list_images(root: Path) -> _Listing:
    try:
        return _walk(root, root.resolve(strict=True))
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = describe_os_error(error) if isinstance(error, OSError) else "a loop of links"
        where = getattr(error, "filename", None) or root
        raise UserError(
            f"{where}: cannot be read ({reason}); {root} must hold one folder of images per class"
        ) from error


def _walk(root: Path, real_root: Path) -> _Listing:
    folders = [entry for entry in _entries(root, real_root) if entry.is_dir()]
    if len(folders) < 2:
        raise UserError(
            f"{root}: {len(folders)} class folders; make one folder of images for each class"
        )
    paths: list[Path] = []
    labels: list[int] = []
    stamps: list[tuple[str, int, int]] = []
    for label, folder in enumerate(folders):
        before = len(paths)
        for entry in _entries(Path(folder.path), real_root):
            if Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
                stat = entry.stat()
                paths.append(Path(entry.path))
                labels.append(label)
                stamps.append((f"{folder.name}/{entry.name}", stat.st_size, stat.st_mtime_ns))
        if len(paths) == before:
            raise UserError(
                f"{folder.path}: no image ({', '.join(sorted(SUFFIXES))}); "
                "add some or remove the folder"
            )
    names = tuple(folder.name for folder in folders)
    return _Listing(names, paths, np.array(labels, dtype=np.int64), stamps)


def _entries(folder: Path, real_root: Path) -> Iterator[os.DirEntry[str]]:
    """What is in `folder`, by name. Hidden names are passed over; a link must stay inside.

    A link out of the data set is refused, not skipped: its images would be missing unnoticed, or
    whatever it leads to would become training data.
    """
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            target = Path(entry.path).resolve(strict=True)
            if not target.is_relative_to(real_root):
                raise UserError(
                    f"{entry.path}: link leads out of the data set, to {target}; "
                    "copy the images into the folder"
                )
        yield entry


def _cache_key(listing: _Listing, image_size: int) -> str:
    described = json.dumps([DECODING_VERSION, image_size, listing.stamps])
    return hashlib.sha256(described.encode()).hexdigest()


def _decode_all(paths: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """All images, uint8 `[N, size, size, 1]` if every one is grey, else `[N, size, size, 3]`."""
    pool = ThreadPoolExecutor()  # PIL decodes and resizes outside Python's global lock
    try:
        results = pool.map(lambda path: decode(path, size), paths)
        # disable=None: quiet when stderr is not a terminal
        decoded = list(
            tqdm(results, total=len(paths), desc="decoding", unit=" images", disable=None)
        )
    finally:
        pool.shutdown(cancel_futures=True)  # else one bad file waits for all the others
    channels = max(image.shape[2] for image in decoded)
    images = np.empty((len(decoded), size, size, channels), dtype=np.uint8)
    for index, image in enumerate(decoded):
        images[index] = image  # a grey image among coloured ones fills all three channels
    return images


def decode(path: Path, size: int) -> NDArray[np.uint8]:
    """One image, upright, uint8 `[size, size, 1]` if it is grey, else `[size, size, 3]`.

    Raises UserError for a file that is not an 8-bit PNG, JPEG, TIFF or BMP image of one page.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _refuse_unsuitable(image)
            grey = image.mode in GREY_MODES
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the work;
            # twice the size wanted leaves the resizing enough to average over.
            image.draft(image.mode, (2 * size, 2 * size))
            upright = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
            resized = upright.resize((size, size), Image.Resampling.BILINEAR)
    # PIL's parsers raise OSError, SyntaxError, struct.error and more on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path}: unusable image ({reason}); replace or remove it") from error
    pixels: NDArray[np.uint8] = np.asarray(resized, dtype=np.uint8)
    return pixels.reshape(size, size, -1)


def _refuse_unsuitable(image: Image.Image) -> None:
    """Refuse what could only be turned into 8-bit pixels by a choice that is the user's."""
    if image.mode not in GREY_MODES | COLOUR_MODES:
        raise ValueError(f"mode {image.mode}: choose a window and save it with 8 bits a channel")
    frames = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and frames > 1:
        raise ValueError(f"{frames} pages: save each as a file of its own")


def _warn_of_contradictions(listing: _Listing, groups: NDArray[np.int64]) -> None:
    other = np.flatnonzero(listing.labels != listing.labels[groups])
    if len(other):
        logger.warning(
            "%d images also appear under another class, for example %s and %s",
            len(other),
            listing.paths[other[0]],
            listing.paths[groups[other[0]]],
        )
