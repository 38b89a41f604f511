"""Pictures for people, as PNG bytes. Drawn without a display and without pyplot's global state."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

# Blue and orange stay apart for people who cannot tell red from green (Okabe & Ito 2008).
BLUE, ORANGE = "#0072B2", "#D55E00"
SHEET_COLUMNS = 10
SHEET_IMAGES = 60
CAPTION_WIDTH = 18  # characters of a line below an image
CAPTION_LINES = 5


@dataclass(frozen=True)
class Tile:
    """A small image, uint8 [H, W, 1 or 3], and the words below it."""

    pixels: NDArray[np.uint8]
    caption: str


def learning_curve(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Accuracy and AUC against labelled images; `rows` are rows of metrics.csv."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    labels = [row["labeled_samples"] for row in rows]
    for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "auc"), strict=True):
        for split, colour, style, marker in (
            ("val", BLUE, "-", "o"),
            ("test", ORANGE, "--", "s"),
        ):
            values = [row.get(f"{split}_{metric}", float("nan")) for row in rows]
            name = {"val": "validation", "test": "test (reported only)"}[split]
            axes.plot(labels, values, style, color=colour, marker=marker, markersize=4, label=name)
        axes.set_xlabel("labelled images")
        axes.set_ylabel({"accuracy": "accuracy", "auc": "AUC, mean over classes"}[metric])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.suptitle(title)
    return png(figure)


def contact_sheet(
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    title: str,
    most: int = SHEET_IMAGES,
) -> bytes:
    """Images uint8 [k, C, H, W] with their class below, in the order given.

    Of more than `most`, that many are taken at even steps, and the title says so.
    """
    shown = min(len(images), most)
    positions = [i * len(images) // shown for i in range(shown)]
    tiles = [Tile(pixels(images[p]), class_names[int(labels[p])]) for p in positions]
    number = f"{shown} of {len(images)}" if shown < len(images) else str(shown)
    return tile_sheet(tiles, SHEET_COLUMNS, f"{title} ({number})")


def tile_sheet(tiles: Sequence[Tile | None], columns: int, title: str) -> bytes:
    """Tiles in rows of `columns`, a gap where there is None."""
    captions = [_wrapped(tile.caption) if tile else "" for tile in tiles]
    lines = max(caption.count("\n") + 1 for caption in captions)
    height = 1.06 + 0.12 * lines  # of a row, in widths of an image
    rows = -(-len(tiles) // columns)
    width = columns * 1.15
    figure = Figure(figsize=(width, rows * height * 1.15 + 0.3))
    bottom = rows * height * 1.15 / (rows * height * 1.15 + 0.3)
    axes = figure.add_axes((0, 0, 1, bottom))
    for place, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        if tile is None:
            continue
        row, x = divmod(place, columns)
        y = row * height
        axes.imshow(
            tile.pixels.squeeze(), cmap="gray", vmin=0, vmax=255,
            extent=(x + 0.03, x + 0.97, y + 0.94, y), interpolation="nearest",
        )  # fmt: skip
        axes.text(x + 0.5, y + 0.97, caption, fontsize=7, ha="center", va="top", linespacing=1.0)
    axes.set(xlim=(0, columns), ylim=(rows * height, 0))
    axes.axis("off")
    figure.suptitle(title, fontsize=10, y=1 - 0.04 / (rows * height + 0.26), va="top")
    return png(figure)


def pixels(image: Tensor) -> NDArray[np.uint8]:
    """uint8 [C, H, W] as an array [H, W, C] on the CPU."""
    array: NDArray[np.uint8] = image.permute(1, 2, 0).cpu().numpy()
    return array


def _wrapped(caption: str) -> str:
    """`caption` in at most `CAPTION_LINES` lines of `CAPTION_WIDTH` characters."""
    return "\n".join(
        textwrap.wrap(caption, CAPTION_WIDTH, max_lines=CAPTION_LINES, placeholder="…")
    )


def shorten(name: str, width: int = 20) -> str:
    """`name`, cut to `width` characters; a cut one ends in an ellipsis."""
    return name if len(name) <= width else name[: width - 1] + "…"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=110)
    return buffer.getvalue()
