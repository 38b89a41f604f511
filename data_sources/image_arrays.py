"""Which arrays of an NPZ or HDF5 file are images, and how many of which size.

A shape alone can mean several things. What is clear is read, and the rest is refused:

- [N, H, W] are N grey images, [N, H, W, 1] and [N, H, W, 3] are N images of one or three channels;
- [H, W, 3] is one colour image and [H, W, 1] one grey image, as no image is one or three pixels
  wide;
- [3, H, W] may be three grey images or one colour image, so it is refused;
- [N, 3, H, W], with the channels first, is refused, and so are other numbers of channels.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from errors import UserError

Shape = tuple[int, int, int, int]

# Names of arrays that hold answers, not images, whatever their shape.
_LABEL_NAME = re.compile(r"(.*_)?(y|labels?|targets?|masks?|ids?)", re.IGNORECASE)
_CHANNELS = (1, 3)
MAX_IMAGE_BYTES = 2**28  # of one image as it is stored


def may_hold_images(name: str, shape: tuple[int, ...]) -> bool:
    """Whether an array of a file is meant as images: three or four axes, and not called labels.

    Labels are stored as [N, 1, 1, 1] too.
    """
    if _LABEL_NAME.fullmatch(name) or len(shape) not in (3, 4):
        return False
    return not (len(shape) == 4 and shape[1:3] == (1, 1))


def image_shape(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> Shape:
    """[N, H, W, C] of an array of images, C being 1 or 3.

    Raises:
        UserError: the array holds no images, or its shape can mean several things.
    """
    described = f"{where}: {dtype} of shape {shape}"
    if dtype != np.uint8:
        raise UserError(
            f"{described}; give images as uint8 [N, H, W] or [N, H, W, C], scaled to 0 to 255"
        )
    if len(shape) not in (3, 4) or 0 in shape:
        raise UserError(f"{described}; give images as uint8 [N, H, W] or [N, H, W, C]")
    if len(shape) == 3:
        full = _of_three_axes(shape, described)
    elif shape[3] in _CHANNELS and not (shape[1] in _CHANNELS and shape[1] != shape[3]):
        full = (shape[0], shape[1], shape[2], shape[3])
    elif shape[1] in _CHANNELS:
        raise UserError(f"{described} has the channels first; transpose it to [N, H, W, C]")
    else:
        raise UserError(f"{described}: {shape[3]} channels; give 1 or 3")
    if full[1] * full[2] * full[3] > MAX_IMAGE_BYTES:
        raise UserError(
            f"{where}: one image of {full[2]}x{full[1]} pixels; cut it into smaller ones"
        )
    return full


def _of_three_axes(shape: tuple[int, ...], described: str) -> Shape:
    first, second, last = shape
    if first == 3:
        raise UserError(
            f"{described} may be three grey images or one colour image; give [3, H, W, 1] or "
            "[1, H, W, 3]"
        )
    if last in _CHANNELS:
        return 1, first, second, last
    return first, second, last, 1
