"""What every source of images returns, before it is checked, and the limits they share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_sources.sources import Sources
from errors import UserError

UNLABELLED = -1  # label of an image whose class nobody has said yet

# More than the largest set that this package is meant for (PatchCamelyon at 96x96 has 7.2 GB), and
# far less than a forged header can claim.
MAX_ARRAY_BYTES = 8 * 2**30
# Real images never shrink by this factor; a file that does is made to fill memory.
BOMB_RATIO = 400
BOMB_BYTES = 2**28  # fewer do no harm


@dataclass
class Notes:
    """What a user should know about how a data set was read: one line each.

    `facts` are as they should be; `warnings` ask for a look at the data.
    """

    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RawSplit:
    """One split as its source stores it: `[N, H, W]` or `[N, H, W, C]` images and their labels.

    `images_from` and `labels_from` name the file and key, for error messages. `sources` say of each
    image where it came from.
    """

    images: NDArray[np.generic]
    labels: NDArray[np.generic]
    images_from: str
    labels_from: str
    sources: Sources


@dataclass(frozen=True)
class RawSplits:
    """A data set as its source stores it. `channels` is None where the source does not fix it."""

    name: str
    class_names: tuple[str, ...]
    train: RawSplit
    val: RawSplit
    test: RawSplit
    channels: int | None = None
    notes: Notes = field(default_factory=Notes)


def describe_os_error(error: OSError) -> str:
    """`error` in one line, without the file name, which the caller's message gives."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def check_memory(where: str, count: int, image_size: int, channels: int) -> None:
    """Raise UserError if `count` images of that size are more than one array may hold."""
    needed = count * image_size * image_size * channels
    if needed > MAX_ARRAY_BYTES:
        raise UserError(
            f"{where}: {count} images of {image_size}x{image_size} pixels take {needed / 2**30:.1f}"
            f" GiB (limit {MAX_ARRAY_BYTES / 2**30:.0f}); lower image_size"
        )


def is_bomb(claimed: int, stored: int) -> bool:
    """Whether `claimed` bytes are packed into so few `stored` ones that they cannot be images."""
    return claimed > BOMB_BYTES and claimed > BOMB_RATIO * stored
