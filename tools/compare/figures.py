"""The figures of a comparison, as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reporting.figures import BLUE, ORANGE, png
from tools.compare.comparison import Comparison
from tools.compare.statistics import Floats, half_width

COLUMNS = 4
PANEL_WIDTH, PANEL_HEIGHT = 3.1, 2.4  # inches


def comparison_figure(comparison: Comparison) -> bytes:
    """Two panels per group: its learning curve over the baseline's, and the labels that it saves.

    Without a second group: the one learning curve.
    """
    names = comparison.others or [comparison.baseline]
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    parts = 2 if comparison.others else 1
    size = (PANEL_WIDTH * columns, parts * (PANEL_HEIGHT * rows + 0.5) + 0.4)
    figure = Figure(figsize=(max(6.0, size[0]), size[1]), layout="constrained")
    figure.suptitle(f"{comparison.data}, {len(comparison.seeds)} seeds", fontsize=10)
    above, *below = figure.subfigures(parts, 1, squeeze=False)[:, 0]
    for axes, name in zip(_panels(above, rows, columns, len(names)), names, strict=True):
        _draw_curves(axes, comparison, name)
    above.supxlabel("labelled images", fontsize=9)
    above.supylabel("test accuracy, mean and 95 % interval", fontsize=9)
    for part in below:
        for axes, name in zip(_panels(part, rows, columns, len(names)), names, strict=True):
            _draw_savings(axes, comparison, name)
        part.supxlabel("validation accuracy to reach", fontsize=9)
        part.supylabel(f"labels of {comparison.baseline} / labels needed", fontsize=9)
    return png(figure)


def _panels(figure: Figure, rows: int, columns: int, count: int) -> list[Axes]:
    panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).flatten()
    for axes in panels[count:]:
        axes.axis("off")
    for axes in panels[count - columns if rows > 1 else 0 : count]:
        axes.tick_params(labelbottom=True)
    return list(panels[:count])


def _draw_curves(axes: Axes, comparison: Comparison, name: str) -> None:
    styles = {comparison.baseline: (ORANGE, "--")}
    styles[name] = styles.get(name, (BLUE, "-"))
    for one, (colour, style) in styles.items():
        curves = comparison.groups[one].test
        mean, half = curves.mean(0), half_width(curves)
        axes.plot(comparison.budgets, mean, style, color=colour, label=one, linewidth=1.5)
        axes.fill_between(comparison.budgets, mean - half, mean + half, color=colour, alpha=0.2)
    if len(comparison.upper):
        level = float(comparison.upper.mean())
        axes.axhline(level, color="black", linewidth=0.8, linestyle=":", label="all labels")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=7)


def _draw_savings(axes: Axes, comparison: Comparison, name: str) -> None:
    savings = [comparison.saving(name, target) for target in comparison.targets()]
    targets = np.array([one.target for one in savings])
    ratio = np.array([one.ratio for one in savings])
    bound = np.array([one.at_least for one in savings])
    axes.fill_between(
        targets, [one.low for one in savings], [one.high for one in savings], color=BLUE, alpha=0.2
    )
    axes.plot(targets, np.where(bound, np.nan, ratio), color=BLUE, linewidth=1.5, label=name)
    axes.plot(targets, np.where(bound, ratio, np.nan), ":", color=BLUE, label="at least")
    axes.axhline(1, color=ORANGE, linestyle="--", linewidth=1.2)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=7)


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
