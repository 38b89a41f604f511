"""What every source returns, unchecked, and the one error all of them raise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from errors import UserError

# Far above any set this package is meant for (PatchCamelyon at 96x96, the largest, has 7.2 GB),
# far below what a forged header can claim.
MAX_ARRAY_BYTES = 8 * 2**30


@dataclass(frozen=True)
class RawSplit:
    """One split as its source stores it: `[N, H, W]` or `[N, H, W, C]` images and their labels.

    `images_from` and `labels_from` name the file and key, for error messages.
    """

    images: NDArray[np.generic]
    labels: NDArray[np.generic]
    images_from: str
    labels_from: str


@dataclass(frozen=True)
class RawSplits:
    """A data set as its source stores it. `channels` is None where the source does not fix it."""

    name: str
    class_names: tuple[str, ...]
    train: RawSplit
    val: RawSplit
    test: RawSplit
    channels: int | None = None


def describe_os_error(error: OSError) -> str:
    """`error` in one line, without the file name that the caller's message gives already."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def check_memory(where: str, count: int, image_size: int, channels: int) -> None:
    """Raise UserError where so many images of that size are more than one array may hold."""
    needed = count * image_size * image_size * channels
    if needed > MAX_ARRAY_BYTES:
        raise UserError(
            f"{where}: {count} images of {image_size}x{image_size} pixels take {needed / 2**30:.1f}"
            f" GiB (limit {MAX_ARRAY_BYTES / 2**30:.0f}); lower image_size"
        )
