"""Small images with captions in rows, drawn with Pillow: a sheet of 60 takes 20 milliseconds."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from reporting.fonts import line_font_file
from reporting.names import shorten, wrapped

SHEET_COLUMNS = 10
SHEET_IMAGES = 60
TILE, GAP = 116, 10  # pixels: side of an image, space between images
CAPTION_SIZE, CAPTION_LINE, TITLE_SIZE = 11, 13, 15  # pixels
CAPTION_COLUMNS, CAPTION_LINES = 18, 5


@dataclass(frozen=True)
class Tile:
    """A small image, uint8 [H, W, 1 or 3], and the words below it."""

    pixels: NDArray[np.uint8]
    caption: str


def contact_sheet(
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    title: str,
    most: int = SHEET_IMAGES,
) -> bytes:
    """Images uint8 [k, C, H, W] with their class below, in the order given, as a PNG.

    Of more than `most`, that many are taken at even steps, and the title says so.
    """
    shown = min(len(images), most)
    positions = [i * len(images) // shown for i in range(shown)]
    tiles = [Tile(pixels(images[p]), class_names[int(labels[p])]) for p in positions]
    number = f"{shown} of {len(images)}" if shown < len(images) else str(shown)
    return tile_sheet(tiles, SHEET_COLUMNS, f"{title} ({number})")


def tile_sheet(tiles: Sequence[Tile | None], columns: int, title: str) -> bytes:
    """Tiles in rows of `columns`, a gap where there is None, as a PNG."""
    captions = [
        wrapped(tile.caption, CAPTION_COLUMNS, CAPTION_LINES) if tile else [] for tile in tiles
    ]
    top = TITLE_SIZE + 2 * GAP
    height = TILE + GAP + CAPTION_LINE * max(map(len, captions), default=0)
    size = (GAP + columns * (TILE + GAP), top + -(-len(tiles) // columns) * height)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    title = shorten(title, size[0] // 8)
    draw.text((size[0] // 2, GAP), title, "black", _font(title, TITLE_SIZE), "ma")
    for place, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        if tile is None:
            continue
        row, column = divmod(place, columns)
        x, y = GAP + column * (TILE + GAP), top + row * height
        picture = tile_image(tile)
        scale = TILE / max(picture.size)
        width, depth = (max(1, round(side * scale)) for side in picture.size)
        # An enlarged pixel stays a square; a reduced image is averaged.
        method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
        sheet.paste(picture.resize((width, depth), method), (x + (TILE - width) // 2, y))
        for number, line in enumerate(caption):
            at = (x + TILE // 2, y + TILE + 2 + number * CAPTION_LINE)
            draw.text(at, line, "black", _font(line, CAPTION_SIZE), "ma")
    return image_png(sheet)


def tile_image(tile: Tile) -> Image.Image:
    """The tile's pixels, without its caption."""
    grey = tile.pixels.shape[2] == 1
    return Image.fromarray(tile.pixels.squeeze(2) if grey else tile.pixels)


def image_png(image: Image.Image) -> bytes:
    """The image as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(image: Tensor) -> NDArray[np.uint8]:
    """uint8 [C, H, W] as an array [H, W, C] on the CPU."""
    array: NDArray[np.uint8] = image.permute(1, 2, 0).cpu().numpy()
    return array


def _font(line: str, size: int) -> ImageFont.FreeTypeFont:
    return _font_of(line_font_file(line), size)


@functools.cache
def _font_of(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
