"""Any 2-D MedMNIST set (https://medmnist.com), from its .npz file, downloaded where it is missing.

The arrays are read directly. The classes of the package medmnist assert the official image counts,
which a subset or another split of the same images does not have.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from data_sources.download import download_once
from data_sources.medmnist_table import medmnist_sets
from data_sources.npz import read_npz
from data_sources.raw import RawSplit, RawSplits, describe_os_error
from data_sources.sources import ArraySources
from errors import UserError

FILE_SUFFIX = {28: "", 64: "_64"}
SPLITS = ("train", "val", "test")


def load(flag: str, data_dir: Path, image_size: int, download: bool) -> RawSplits:
    """MedMNIST set `flag` from `data_dir/<flag>.npz` (28x28) or `data_dir/<flag>_64.npz`.

    A file that is already there is used as it is. Only a download must have the official MD5.

    Raises:
        UserError: no such set or size, or its file is missing or damaged.
    """
    info = _info(flag)
    if image_size not in FILE_SUFFIX:
        raise UserError(f"image_size: {flag} comes in sizes 28 and 64, not {image_size}; use 28")
    suffix = FILE_SUFFIX[image_size]
    path = data_dir / f"{flag}{suffix}.npz"
    url = info[f"url{suffix}"]
    if not _exists(path):
        if not download:
            raise UserError(f"{path}: no such file, and download is off; get it from {url}")
        download_once(url, info[f"MD5{suffix}"], path)
    keys = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    arrays = read_npz(path, keys, f"remove the file, or replace it with {url}")
    splits = {
        split: RawSplit(
            images=arrays[f"{split}_images"],
            labels=arrays[f"{split}_labels"],
            images_from=f"{path}: {split}_images",
            labels_from=f"{path}: {split}_labels",
            sources=ArraySources(
                f"{path.name}:{split}_images", range(len(arrays[f"{split}_images"]))
            ),
        )
        for split in SPLITS
    }
    names = info["label"]
    class_names = tuple(names[str(label)] for label in range(len(names)))
    train, val, test = (splits[split] for split in SPLITS)
    return RawSplits(flag, class_names, train, val, test, info["n_channels"])


def _info(flag: str) -> dict[str, Any]:
    """The table's entry for `flag`.

    Raises:
        UserError: there is none, or its images or labels are of a kind that is not supported.
    """
    sets = medmnist_sets()
    usable = sorted(
        name
        for name, info in sets.items()
        if not name.endswith("3d") and "multi-label" not in info["task"]
    )
    if flag in usable:
        return sets[flag]
    if flag in sets:
        kind = "three-dimensional" if flag.endswith("3d") else "multi-label"
        raise UserError(
            f"dataset: {flag} is {kind}, this package classifies 2-D images with one label each; "
            f"choose one of {', '.join(usable)}"
        )
    other = ["digits", "folder:NAME", "hdf5:NAME"]
    nearest = difflib.get_close_matches(flag.lower(), usable + other, n=1)
    hint = f"did you mean {nearest[0]!r}? known" if nearest else "choose one of"
    raise UserError(f"dataset: unknown name {flag!r}; {hint}: {', '.join(usable + other)}")


def _exists(path: Path) -> bool:
    """Whether the file exists.

    Raises:
        UserError: its folder is a file or cannot be read.
    """
    try:
        if path.parent.exists() and not path.parent.is_dir():
            raise UserError(f"data_dir: {path.parent} is a file; give a folder")
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(
            f"{path}: cannot be reached ({describe_os_error(error)}); "
            "give a data_dir that can be read"
        ) from error
    return True
