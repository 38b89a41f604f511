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
    figure.suptitle(printable(title))
    return png(figure)


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
