"""The tables of a comparison: as text for the terminal and documents, and as one CSV file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from reporting.files import csv_text
from reporting.forecast import forecast
from tools.compare.comparison import Comparison
from tools.compare.statistics import Floats, Saving, half_width

SHOWN_TARGETS = 5
MORE_LABELS = 100
CSV_COLUMNS = (
    "quantity", "group", "at", "mean", "low", "high", "seeds", "baseline_missed", "strategy_missed",
)  # fmt: skip

Table = tuple[list[str], list[list[str]]]  # header and rows of cells


def accuracy_table(comparison: Comparison) -> Table:
    """Test accuracy at a few budgets, AUBC on both splits and p; the best test AUBC first."""
    budgets = comparison.budgets
    shown = sorted({0, len(budgets) // 4, len(budgets) // 2, len(budgets) - 1})
    test, val = comparison.areas("test"), comparison.areas("val")
    p_values = comparison.p_values()
    header = ["group", *(f"{budgets[r]:.0f} labels" for r in shown)]
    header += ["AUBC", f"p against {comparison.baseline}", "AUBC, validation"]
    rows = []
    for name in sorted(test, key=lambda name: -test[name].mean()):
        curve = comparison.groups[name].test
        cells = [name, *(plus_minus(curve[:, r]) for r in shown), plus_minus(test[name])]
        rows.append([*cells, p_text(p_values.get(name)), plus_minus(val[name])])
    if len(comparison.upper):
        name = f"all {comparison.upper_labels} labels"
        rows.append([name, *[""] * (len(shown) - 1), plus_minus(comparison.upper), "", "", ""])
    return header, rows


def saving_table(comparison: Comparison, targets: Sequence[float] | None = None) -> Table:
    """Label savings at a few validation accuracies; those of the best AUBC first."""
    targets = comparison.few_targets(SHOWN_TARGETS) if targets is None else targets
    areas = comparison.areas("test")
    rows = [
        [name, *(saving_text(comparison.saving(name, target)) for target in targets)]
        for name in sorted(comparison.others, key=lambda name: -areas[name].mean())
    ]
    return ["group", *(f"to reach {target:.3f}" for target in targets)], rows


def forecast_table(comparison: Comparison, more: float = MORE_LABELS) -> Table:
    """What more labels would gain in validation accuracy, the mean over seeds of the forecasts."""
    rows = []
    for name, group in comparison.groups.items():
        forecasts = [forecast(comparison.budgets, curve, more) for curve in group.val]
        whole = [one for one in forecasts if one is not None]
        if whole:
            means = [
                float(np.mean([getattr(one, field) for one in whole]))
                for field in ("now", "accuracy", "low", "high")
            ]
            now, after, low, high = means
            rows.append([name, f"{now:.3f}", f"{after:.3f}", f"{low:.3f} to {high:.3f}"])
    header = ["group", "now", f"after {more:.0f} more labels", "90 % interval"]
    return header, rows


def markdown(table: Table) -> str:
    """The table as Markdown."""
    header, rows = table
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def comparison_csv(comparison: Comparison) -> str:
    """Every number of the comparison, one a line; `at` is a budget or a validation accuracy."""
    return csv_text(CSV_COLUMNS, _csv_rows(comparison))


def _csv_rows(comparison: Comparison) -> Iterator[list[str]]:
    seeds = str(len(comparison.seeds))
    p_values = comparison.p_values()
    areas = {split: comparison.areas(split) for split in ("test", "val")}
    for name, group in comparison.groups.items():
        for quantity, curves in (("test accuracy", group.test), ("val accuracy", group.best_val)):
            for budget, values in zip(comparison.budgets, curves.T, strict=True):
                yield [quantity, name, f"{budget:g}", *_interval(values), seeds, "", ""]
        for split, by_name in areas.items():
            yield [f"{split} AUBC", name, "", *_interval(by_name[name]), seeds, "", ""]
        if name in p_values:
            p = f"{p_values[name]:.6f}"
            yield [f"p against {comparison.baseline}", name, "", p, "", "", seeds, "", ""]
            for target in comparison.targets():
                one = comparison.saving(name, target)
                numbers = [_number(value) for value in (one.ratio, one.low, one.high)]
                missed = [str(one.baseline_missed), str(one.strategy_missed)]
                yield ["label saving", name, f"{target:.5f}", *numbers, seeds, *missed]
    if len(comparison.upper):
        numbers = _interval(comparison.upper)
        count = str(len(comparison.upper))
        at = str(comparison.upper_labels)
        yield ["test accuracy", "all labels", at, *numbers, count, "", ""]


def _interval(values: Floats) -> list[str]:
    mean, half = float(values.mean()), float(half_width(values))
    return [_number(mean), _number(mean - half), _number(mean + half)]


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.5f}"


def p_text(p: float | None) -> str:
    """A p-value to three places; nothing where there was no test."""
    if p is None or np.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def plus_minus(values: Floats) -> str:
    """Mean and half width of the 95 % interval over seeds, as text; a narrow one to four places."""
    width = float(half_width(values))
    places = 4 if 0 < width < 0.0005 else 3
    return f"{values.mean():.{places}f}" + ("" if np.isnan(width) else f" ± {width:.{places}f}")


def saving_text(saving: Saving) -> str:
    """The saving with its interval and the seeds that miss the target, as text."""
    if saving.strategy_missed:
        return f"missed by {saving.strategy_missed} of {saving.seeds}"
    text = ("≥ " if saving.at_least else "") + f"{saving.ratio:.2f}"
    if not np.isnan(saving.low):
        text += f" ({saving.low:.2f} to {saving.high:.2f})"
    if saving.at_least:
        text += f", {saving.baseline_missed} of {saving.seeds} censored"
    return text
