"""Draws the cells that were found onto their image, for a person to check."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segmentation.cells import Cell

# Apart in hue and in lightness, for people who cannot tell red from green.
COLOURS = {"white": (0, 90, 255), "other": (0, 150, 90), "phase": (255, 190, 0)}


def draw(shown: NDArray[np.uint8], cells: Sequence[Cell], side: int) -> Image.Image:
    """The image uint8 [H, W] or [H, W, 3] with a numbered box for each cell.

    The thin outer square of a white cell is its crop, of `side` pixels.
    """
    picture = Image.fromarray(shown).convert("RGB")
    pen = ImageDraw.Draw(picture)
    width = max(1, round(max(picture.size) / 400))
    for number, cell in enumerate(cells):
        colour = COLOURS[cell.kind]
        left, top, right, bottom = cell.box
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
        if cell.kind == "white":
            x, y = (round(middle - side / 2) for middle in cell.centre)
            pen.rectangle((x, y, x + side - 1, y + side - 1), outline=colour)
        pen.text((left + width + 1, top + width), str(number), fill=colour)
    return picture
