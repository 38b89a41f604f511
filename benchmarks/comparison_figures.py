"""The figures of `benchmarks.comparison`, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reporting.figures import BLUE, ORANGE, png

Floats = NDArray[np.float64]
COLUMNS = 4


def curve_panels(
    title: str,
    budgets: Floats,
    intervals: Mapping[str, tuple[Floats, Floats]],
    baseline: str,
    upper: float | None,
) -> bytes:
    """A panel per strategy: its mean curve and band, over the baseline's.

    intervals: per strategy, mean [R] and half width [R] of test accuracy. upper: that of all
    labels, drawn as a line.
    """
    names = [name for name in intervals if name != baseline]
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.1 * COLUMNS, 2.4 * rows + 0.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, COLUMNS, sharex=True, sharey=True)).flatten()
    for axes in panels[len(names) :]:
        axes.axis("off")
    for axes in panels[:-COLUMNS][max(0, len(names) - COLUMNS) :]:  # those above an empty place
        axes.tick_params(labelbottom=True)
    for axes, name in zip(panels, names, strict=False):
        for key, colour, style in ((baseline, ORANGE, "--"), (name, BLUE, "-")):
            mean, half = intervals[key]
            axes.plot(budgets, mean, style, color=colour, label=key, linewidth=1.5)
            axes.fill_between(budgets, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
        if upper is not None:
            axes.axhline(upper, color="black", linewidth=0.8, linestyle=":", label="all labels")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=7)
    figure.supxlabel("labelled images")
    figure.supylabel("test accuracy, mean and 95 % interval over seeds")
    figure.suptitle(title, fontsize=10)
    return png(figure)


def saving_bars(title: str, savings: Mapping[str, tuple[float, float, float]]) -> bytes:
    """Label saving and its interval for every strategy, the largest at the top."""
    order = sorted(savings, key=lambda name: np.nan_to_num(savings[name][0]))
    figure = Figure(figsize=(7, 0.32 * len(order) + 1.3), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(order):
        value, low, high = savings[name]
        if np.isnan(value):
            axes.text(1.0, place, "  never as accurate", va="center", fontsize=7)
        else:
            axes.plot([low, high], [place, place], color=BLUE, linewidth=1.5)
            axes.plot([value], [place], "o", color=BLUE, markersize=5)
    axes.axvline(1, color=ORANGE, linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.set_xlabel("labels that random needs / labels needed, 95 % interval")
    axes.set_title(title, fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    return png(figure)


def penalty_heatmap(matrix: Floats, names: Sequence[str]) -> bytes:
    """The penalty matrix [S, S], its numbers in the cells and the column means below."""
    shown = np.vstack([matrix, matrix.mean(0)])
    size = 0.55 * len(names) + 2.5
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=max(1e-9, shown.max()))
    for (row, column), value in np.ndenumerate(shown):
        dark = value > 0.6 * shown.max()
        axes.text(
            *(column, row, f"{value:.2f}"),
            ha="center", va="center", fontsize=7, color="white" if dark else "black",
        )  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names) + 1), [*names, "column mean"], fontsize=8)
    axes.set_title("share of budgets at which the row beats the column", fontsize=10)
    return png(figure)
