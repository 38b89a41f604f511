"""Pictures for people, as PNG bytes. Drawn without a display and without pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

# Blue and orange stay apart for people who cannot tell red from green (Okabe & Ito 2008).
BLUE, ORANGE = "#0072B2", "#D55E00"
SHEET_COLUMNS = 10
SHEET_IMAGES = 60


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


def contact_sheet(images: Tensor, labels: Tensor, class_names: Sequence[str], title: str) -> bytes:
    """Images uint8 [k, C, H, W] with their class below, in the order given.

    Of more than `SHEET_IMAGES`, that many are taken at even steps, and the title says so.
    """
    shown = min(len(images), SHEET_IMAGES)
    positions = [i * len(images) // shown for i in range(shown)]
    rows = -(-shown // SHEET_COLUMNS)
    figure = Figure(figsize=(SHEET_COLUMNS * 1.15, rows * 1.4 + 0.5), layout="constrained")
    for place, position in enumerate(positions):
        axes = figure.add_subplot(rows, SHEET_COLUMNS, place + 1)
        pixels = images[position].permute(1, 2, 0).numpy()
        axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(shorten(class_names[int(labels[position])]), fontsize=6, y=-0.22)
        axes.axis("off")
    number = f"{shown} of {len(images)}" if shown < len(images) else str(shown)
    figure.suptitle(f"{title} ({number})", fontsize=10)
    return png(figure)


def shorten(name: str, width: int = 20) -> str:
    """`name`, cut to `width` characters; a cut one ends in an ellipsis."""
    return name if len(name) <= width else name[: width - 1] + "…"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=110)
    return buffer.getvalue()
