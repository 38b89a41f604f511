"""Cuts one square picture per cell out of a smear, all at the same magnification."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segmentation.cells import Cell

# A phase of 0 is black in a crop and one whole wave is white, in every crop alike.
PHASE_RANGE = 2 * np.pi  # radians


def display(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """What of an image is written to files: uint8 [H, W, 3], or [H, W] of a phase image."""
    if pixels.dtype == np.uint8:
        return pixels
    phase = np.clip((pixels - np.median(pixels)) / PHASE_RANGE, 0, 1)
    return np.rint(255 * phase).astype(np.uint8)


def cut(shown: NDArray[np.uint8], cell: Cell, side: int, size: int) -> Image.Image:
    """The square of `side` pixels around a cell, resized to `size` x `size` pixels.

    What lies beyond the edge of the image is filled with the image's bright background, or with
    phase 0.
    """
    left = round(cell.centre[0] - side / 2)
    top = round(cell.centre[1] - side / 2)
    height, width = shown.shape[:2]
    is_colour = shown.ndim == 3
    square = np.zeros((side, side, *shown.shape[2:]), dtype=np.uint8)
    if is_colour and not (0 <= left <= width - side and 0 <= top <= height - side):
        square[:] = np.percentile(shown.reshape(-1, 3), 90, axis=0)
    rows = slice(max(top, 0), min(top + side, height))
    columns = slice(max(left, 0), min(left + side, width))
    square[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = shown[
        rows, columns
    ]
    return Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC)
