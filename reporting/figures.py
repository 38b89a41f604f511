"""Diagrams as PNG bytes: what all of them share, and the learning curve.

Drawn without a display and without pyplot's global state. Names in them are literal text, and
letters that the default font lacks come from an installed font that has them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from data_sources.names import printable
from reporting.fonts import families

# Blue and orange stay apart for people who cannot tell red from green (Okabe & Ito 2008).
BLUE, ORANGE = "#0072B2", "#D55E00"
COSTS = {"labeled_samples": "labelled images", "annotation_minutes": "minutes of annotation"}


def learning_curve(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Accuracy and AUC against labelled images; `rows` are rows of metrics.csv.

    A third diagram shows accuracy against minutes of annotation, where labels differ in their cost.
    """
    panels = [("accuracy", "labeled_samples"), ("auc", "labeled_samples")]
    if _costs_differ(rows):
        panels.append(("accuracy", "annotation_minutes"))
    figure = Figure(figsize=(4.5 * len(panels), 4), layout="constrained")
    for axes, (metric, cost) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        costs = [row[cost] for row in rows]
        for split, colour, style, marker in (
            ("val", BLUE, "-", "o"),
            ("test", ORANGE, "--", "s"),
        ):
            values = [row.get(f"{split}_{metric}", float("nan")) for row in rows]
            name = {"val": "validation", "test": "test (reported only)"}[split]
            axes.plot(costs, values, style, color=colour, marker=marker, markersize=4, label=name)
        axes.set_xlabel(COSTS[cost])
        axes.set_ylabel({"accuracy": "accuracy", "auc": "AUC, mean over classes"}[metric])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.suptitle(printable(title))
    return png(figure)


def _costs_differ(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the minutes per label change from round to round, by more than rounding."""
    prices = [row.get("annotation_minutes", 0) / row["labeled_samples"] for row in rows]
    return max(prices) - min(prices) > 1e-6 * max(prices)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and not text.get_text().isascii():
            text.set_fontfamily(families(text.get_text()))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # `families` has warned of them, once and with the remedy.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=110)
    return buffer.getvalue()
