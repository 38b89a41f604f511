"""`folder:NAME`: image files in a folder per class, with or without folders for the splits.

`folder_listing` finds the files, `folder_groups` says which belong together; here they are decoded,
cached and split.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_sources.content import SHOWN_AFTER_SECONDS, content_hashes
from data_sources.folder_groups import (
    Grouping,
    check_groups_stay_together,
    group_images,
    is_table,
)
from data_sources.folder_listing import Listing, list_images
from data_sources.image_cache import cached_images
from data_sources.image_file import BACKGROUND, MAX_PIXELS, decode
from data_sources.names import readable
from data_sources.raw import (
    UNLABELLED,
    Notes,
    RawSplit,
    RawSplits,
    check_memory,
    describe_os_error,
)
from data_sources.sources import FileSources
from data_sources.splitting import (
    TEST,
    TRAIN,
    VALIDATION,
    SplitRequest,
    duplicate_groups,
    grouped_split,
    joined_groups,
    stratified_split,
)
from errors import UserError

DECODING_VERSION = 2  # part of the cache's key: raise it when decoding gives other pixels
# Brightest 8-bit value of 16-bit images of which only the lower 12 bits are used.
DARK = 15

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class FolderOptions:
    """What a user can say of a folder.

    Attributes:
        group_by: which images stay in one split, as `folder_groups` reads it; empty: no groups.
        allow_unlabelled: keep images without a class, with the label -1.
        max_pixels: a larger image is refused before it is decoded.
    """

    group_by: str = ""
    allow_unlabelled: bool = False
    max_pixels: int = MAX_PIXELS


def load(
    name: str,
    data_dir: Path,
    image_size: int,
    request: SplitRequest,
    options: FolderOptions,
    caches: Sequence[Path],
) -> RawSplits:
    """The images of `data_dir/name` as uint8 `[N, image_size, image_size, 1 or 3]`.

    One channel if every image is grey, else three. Each is resized whole, without keeping its
    aspect ratio. The decoded arrays are cached in one of the folders `caches`, by the content of
    the files. Images that come out equal share a split, unless the folders decide otherwise.

    Raises:
        UserError: the folder is missing, its layout is not clear, or an image cannot be used.
    """
    root = data_dir / name
    table = (options.group_by,) if is_table(options.group_by) else ()
    listing = list_images(root, options.allow_unlabelled, table)
    notes = listing.notes
    grouping = group_images(root, listing.paths, options.group_by) if options.group_by else None
    check_memory(str(root), len(listing.paths), image_size, 3)
    files = [root / path for path in listing.paths]
    images, decoding_facts = cached_images(
        caches,
        f"folder_{name}_{image_size}.npz",
        _cache_key(listing, files, image_size),
        lambda: _decode_all(files, image_size, options.max_pixels),
    )
    notes.facts += decoding_facts
    duplicates = duplicate_groups(images)
    _warn_of_contradictions(listing, duplicates, notes)
    parts = _split(root, listing, grouping, duplicates, request, options.group_by)
    sources = FileSources(root, listing.paths)
    train, val, test = (
        RawSplit(
            images[part],
            listing.labels[part],
            f"{root}: {kind}",
            f"{root}: {kind} labels",
            sources.take(part),
        )
        for kind, part in zip(("train", "val", "test"), parts, strict=True)
    )
    return RawSplits(name, listing.class_names, train, val, test, notes=notes)


def _split(
    root: Path,
    listing: Listing,
    grouping: Grouping | None,
    duplicates: Indices,
    request: SplitRequest,
    group_by: str,
) -> tuple[Indices, Indices, Indices]:
    """Indices of the train, validation and test images; the notes say how they were found."""
    notes = listing.notes
    given, origin = listing.splits, "the folders"
    if grouping is not None and grouping.splits is not None:
        given, origin = grouping.splits, group_by
    if given is not None:
        if grouping is not None:
            check_groups_stay_together(grouping, given, listing.paths, root)
        _warn_of_duplicates_across(given, duplicates, listing, notes)
        parts = _given_split(given, listing, grouping, duplicates, request)
        drawn = [
            word
            for word, number in (("validation", VALIDATION), ("test", TEST))
            if not (given == number).any()
        ]
        rest = f"; {' and '.join(drawn)} drawn from train" if drawn else ""
        how = f"as {origin} give them{rest}"
    else:
        parts = _drawn_split(listing.labels, grouping, duplicates, listing.class_names, request)
        how = "drawn by image; set group_by if several images come from one patient or slide"
        if grouping is not None:
            how = f"drawn by group, {len(grouping.names)} groups by {group_by!r}"
    sizes = " / ".join(str(len(part)) for part in parts)
    notes.facts.append(f"{root}: {sizes} images to train, validate and test; splits {how}")
    unlabelled = int((listing.labels == UNLABELLED).sum())
    if unlabelled:
        notes.facts.append(f"{root}: {unlabelled} of {len(listing.labels)} images have no label")
    return parts


def _given_split(
    given: Indices,
    listing: Listing,
    grouping: Grouping | None,
    duplicates: Indices,
    request: SplitRequest,
) -> tuple[Indices, Indices, Indices]:
    """The splits that are given; those of them that are empty are drawn from train."""
    train, val, test = (np.flatnonzero(given == number) for number in (TRAIN, VALIDATION, TEST))
    if len(train) == 0:
        raise UserError(f"{listing.paths[0]}: no image is in train; give train some images")
    if len(val) and len(test):
        return train, val, test
    part = Grouping(grouping.groups[train], grouping.names, None) if grouping else None
    rest, drawn_val, drawn_test = (
        train[indices]
        for indices in _drawn_split(
            listing.labels[train], part, duplicates[train], listing.class_names, request
        )
    )
    # What is drawn for a split that is there stays in train.
    if len(val):
        return np.sort(np.concatenate([rest, drawn_val])), val, drawn_test
    if len(test):
        return np.sort(np.concatenate([rest, drawn_test])), drawn_val, test
    return rest, drawn_val, drawn_test


def _drawn_split(
    labels: Indices,
    grouping: Grouping | None,
    duplicates: Indices,
    class_names: Sequence[str],
    request: SplitRequest,
) -> tuple[Indices, Indices, Indices]:
    if grouping is None:
        return stratified_split(labels, duplicates, class_names, request)
    return grouped_split(labels, joined_groups(grouping.groups, duplicates), request)


def _cache_key(listing: Listing, files: Sequence[Path], image_size: int) -> str:
    """Changes with any file's path or content, and with how it is decoded."""
    digest = hashlib.sha256(json.dumps([DECODING_VERSION, image_size]).encode())
    try:
        for path, content in zip(listing.paths, content_hashes(files), strict=True):
            digest.update(os.fsencode(path) + b"\0" + content)
    except OSError as error:
        raise UserError(
            f"{readable(error.filename or '')}: cannot be read ({describe_os_error(error)}); "
            "replace or remove it"
        ) from error
    return digest.hexdigest()


def _decode_all(
    files: Sequence[Path], size: int, max_pixels: int
) -> tuple[NDArray[np.uint8], list[str]]:
    """All images, uint8 [N, size, size, 1 or 3], and what is to be said about decoding them."""
    pool = ThreadPoolExecutor()  # PIL decodes and resizes outside Python's global lock
    try:
        results = pool.map(lambda path: decode(path, size, max_pixels=max_pixels), files)
        # disable=None: quiet when stderr is not a terminal
        bar = tqdm(
            results, total=len(files), desc="decoding", unit=" images",
            delay=SHOWN_AFTER_SECONDS, disable=None,
        )  # fmt: skip
        decoded = list(bar)
    finally:
        pool.shutdown(cancel_futures=True)  # else one bad file waits for all the others
    channels = max(image.pixels.shape[2] for image in decoded)
    images = np.empty((len(decoded), size, size, channels), dtype=np.uint8)
    for index, image in enumerate(decoded):
        images[index] = image.pixels  # a grey image among coloured ones fills all three channels
    facts = []
    deep = [index for index, image in enumerate(decoded) if image.is_deep]
    if deep:
        if max(int(decoded[index].pixels.max()) for index in deep) <= DARK:
            raise UserError(
                f"{readable(files[deep[0]])}: this and all {len(deep)} images of 16 bits use the "
                "lower 12 bits only, so that they are nearly black; multiply their values by 16, "
                "or save them with 8 bits"
            )
        facts.append(f"{len(deep)} images of 16 bits a channel scaled to 8 (65535 becomes 255)")
    transparent = sum(image.is_transparent for image in decoded)
    if transparent:
        facts.append(f"{transparent} transparent images composed on grey level {BACKGROUND}")
    return images, facts


def _warn_of_contradictions(listing: Listing, duplicates: Indices, notes: Notes) -> None:
    labels, first = listing.labels, listing.labels[duplicates]
    other = np.flatnonzero((labels != first) & (labels != UNLABELLED) & (first != UNLABELLED))
    if len(other):
        notes.warnings.append(
            f"{len(other)} images also appear under another class, for example "
            f"{readable(listing.paths[other[0]])} and "
            f"{readable(listing.paths[duplicates[other[0]]])}"
        )


def _warn_of_duplicates_across(
    splits: Indices, duplicates: Indices, listing: Listing, notes: Notes
) -> None:
    across = np.flatnonzero(splits != splits[duplicates])
    if len(across):
        notes.warnings.append(
            f"{len(across)} images are in two splits, for example "
            f"{readable(listing.paths[across[0]])} and "
            f"{readable(listing.paths[duplicates[across[0]]])}"
        )
