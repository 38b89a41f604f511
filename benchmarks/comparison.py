"""Statistics and figures of finished label-efficiency studies.

    python -m benchmarks.comparison study another_study --output images
    python -m benchmarks.comparison study --output images --accuracy 0.956

Prints a table per study and, over all of them, the penalty matrix; writes `NAME_curves.png`,
`NAME_savings.png` and `penalties.png` to --output. What the numbers are:

- test accuracy at a budget: that of the round, among those within the budget, with the best
  validation accuracy. Nothing is chosen on the test split.
- AUBC: area under that curve over the budgets, divided by their range: a mean accuracy.
- interval: 95 %, Student's t over seeds.
- p: paired t-test over seeds on the AUBC, against random, Holm-corrected over the strategies.
- labels needed: for the accuracy that random ends with, or for --accuracy, read off the mean curve.
- label saving: what random needs of them over what the strategy needs; its interval is a bootstrap
  over seeds. Where random never gets there, it counts as needing all that it was given, so that the
  true saving is larger.
- penalty matrix (Ash et al. 2020, arXiv 1906.03671; Beck et al. 2021, arXiv 2106.15324): row i,
  column j is the share of budgets at which i is better than j, by paired t-tests at 0.05 that are
  Holm-corrected over all pairs of the budget; summed over studies. A low column mean is good.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.comparison_figures import curve_panels, penalty_heatmap, saving_bars
from benchmarks.label_efficiency import ALL_LABELS
from reporting.files import write_atomically

BASELINE = "random"
LEVEL = 0.05
BOOTSTRAPS = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Results:
    """One study, of the seeds that every strategy has finished.

    budgets: [R] labels after each round. accuracy: [seeds, R] per strategy, test accuracy at
    validation-chosen rounds. upper: [n] test accuracies of training on all labels. validation:
    [seeds, R] per strategy, best validation accuracy so far: what a strategy may be chosen by.
    """

    name: str
    setting: str
    seeds: tuple[int, ...]
    budgets: Floats
    accuracy: dict[str, Floats]
    upper: Floats
    all_labels: int
    validation: dict[str, Floats]


def chosen_by_validation(val: Floats, test: Floats) -> Floats:
    """Test figure [R] of the round with the best validation figure [R] so far; ties: the first."""
    best = 0
    chosen = []
    for round_ in range(len(val)):
        if val[round_] > val[best]:
            best = round_
        chosen.append(test[best])
    return np.array(chosen)


def area(budgets: Floats, accuracy: Floats) -> Floats:
    """Area under accuracy [..., R] over budgets [R], divided by their range: [...]."""
    widths = np.diff(budgets)
    heights = (accuracy[..., 1:] + accuracy[..., :-1]) / 2
    return np.asarray((heights * widths).sum(-1) / widths.sum())


def half_width(values: Floats) -> Floats:
    """Half the 95 % interval of the mean over the first axis, by Student's t: [...]."""
    count = len(values)
    if count < 2:
        return np.full(values.shape[1:], np.nan)
    error = values.std(0, ddof=1) / np.sqrt(count)
    return np.asarray(stats.t.ppf(1 - LEVEL / 2, count - 1) * error)


def paired_p(a: Floats, b: Floats) -> float:
    """Two-sided p of the paired t-test of a, b [seeds]; 1 where all differences are zero."""
    difference = a - b
    if len(difference) < 2 or not difference.any():
        return 1.0
    if np.ptp(difference) < 1e-12:
        return 0.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> Floats:
    """Holm-corrected p-values, in the order given (Holm 1979, Scand. J. Statist. 6:65)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    highest = 0.0
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[position]))
        corrected[position] = highest
    return corrected


def labels_needed(budgets: Floats, accuracy: Floats, target: float) -> float:
    """Labels at which the curve accuracy [R] first reaches `target`, between rounds by a line.

    NaN where it never does; the first budget where it starts above.
    """
    for round_, value in enumerate(accuracy):
        if value >= target:
            if round_ == 0:
                return float(budgets[0])
            below = accuracy[round_ - 1]
            share = (target - below) / (value - below)
            return float(budgets[round_ - 1] + share * (budgets[round_] - budgets[round_ - 1]))
    return float("nan")


def label_saving(
    budgets: Floats, strategy: Floats, baseline: Floats, accuracy: float | None = None
) -> tuple[float, float, float]:
    """Saving over `baseline` at `accuracy`, None: that which it ends with; and a 95 % interval.

    strategy, baseline: [seeds, R] of the same seeds. A baseline that never gets there needs its
    last budget at least. Where resampled curves of the strategy never get there, the saving of that
    sample counts as the least possible one: below every one that can be read off.
    """

    def saving(rows: NDArray[np.int64]) -> float:
        reference, curve = baseline[rows].mean(0), strategy[rows].mean(0)
        target = reference.max() if accuracy is None else accuracy
        by_baseline = np.nan_to_num(labels_needed(budgets, reference, target), nan=budgets[-1])
        return float(by_baseline) / labels_needed(budgets, curve, target)

    count = len(strategy)
    generator = np.random.default_rng(0)
    samples = [saving(generator.integers(0, count, count)) for _ in range(BOOTSTRAPS)]
    low, high = np.quantile(np.nan_to_num(samples, nan=0.0), (LEVEL / 2, 1 - LEVEL / 2))
    return saving(np.arange(count)), float(low), float(high)


def penalties(results: Results) -> Floats:
    """The penalty matrix [S, S] of one study, strategies in the order of `results.accuracy`."""
    curves = list(results.accuracy.values())
    matrix = np.zeros((len(curves), len(curves)))
    pairs = list(combinations(range(len(curves)), 2))
    for round_ in range(len(results.budgets)):
        columns = [curve[:, round_] for curve in curves]
        corrected = holm([paired_p(columns[i], columns[j]) for i, j in pairs])
        for (i, j), p in zip(pairs, corrected, strict=True):
            if p < LEVEL:
                better = (i, j) if columns[i].mean() > columns[j].mean() else (j, i)
                matrix[better] += 1 / len(results.budgets)
    return matrix


def read_results(folder: Path) -> Results:
    """What `benchmarks.label_efficiency` left in `folder`."""
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))

    def numbers(row: dict[str, str], column: str) -> Floats:
        return np.array([float(text) for text in row[column].split()])

    upper = [row for row in rows if row["strategy"] == ALL_LABELS]
    runs = {
        (row["strategy"], int(row["seed"])): row for row in rows if row["strategy"] != ALL_LABELS
    }
    strategies = list(dict.fromkeys(strategy for strategy, _ in runs))
    seeds = tuple(
        sorted(
            seed
            for seed in {seed for _, seed in runs}
            if all((strategy, seed) in runs for strategy in strategies)
        )
    )
    if not seeds or BASELINE not in strategies:
        raise SystemExit(f"error: {folder}: no seed that all strategies and {BASELINE} finished")
    curves = {
        strategy: np.stack(
            [
                chosen_by_validation(
                    numbers(runs[strategy, seed], "val_accuracy"),
                    numbers(runs[strategy, seed], "test_accuracy"),
                )
                for seed in seeds
            ]
        )
        for strategy in strategies
    }
    hp = study["hyperparameters"]
    setting = (
        f"{hp['dataset']}, {hp['architecture']}, {len(seeds)} seeds; {study['device']}, "
        f"{study['cores']} cores, torch {study['torch']}"
    )
    return Results(
        name=folder.name,
        setting=setting,
        seeds=seeds,
        budgets=numbers(runs[strategies[0], seeds[0]], "labels"),
        accuracy=curves,
        upper=np.array([numbers(row, "test_accuracy")[-1] for row in upper]),
        all_labels=int(float(upper[0]["labels"])) if upper else 0,
        validation={
            strategy: np.stack(
                [
                    np.maximum.accumulate(numbers(runs[strategy, seed], "val_accuracy"))
                    for seed in seeds
                ]
            )
            for strategy in strategies
        },
    )


def validation_line(results: Results) -> str:
    """AUBC of each strategy on the validation split, the best first."""
    areas = {name: area(results.budgets, curve) for name, curve in results.validation.items()}
    names = sorted(areas, key=lambda name: -areas[name].mean())
    shown = ", ".join(f"{name} {plus_minus(areas[name])}" for name in names)
    return f"AUBC on validation images, to choose by: {shown}"


def table(results: Results, accuracy: float | None = None) -> str:
    """One row per strategy, the best AUBC first, as Markdown; labels needed are for `accuracy`."""
    budgets = results.budgets
    baseline = results.accuracy[BASELINE]
    target = baseline.mean(0).max() if accuracy is None else accuracy
    shown = sorted({0, len(budgets) // 4, len(budgets) // 2, len(budgets) - 1})
    areas = {name: area(budgets, curve) for name, curve in results.accuracy.items()}
    others = [name for name in areas if name != BASELINE]
    corrected = holm([paired_p(areas[name], areas[BASELINE]) for name in others])
    p_values = dict(zip(others, corrected, strict=True))
    header = ["strategy", *(f"{budgets[r]:.0f} labels" for r in shown), "AUBC", "p"]
    header += [f"labels for {target:.3f}", "label saving"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for name in sorted(areas, key=lambda name: -areas[name].mean()):
        curve = results.accuracy[name]
        cells = [name, *(plus_minus(curve[:, r]) for r in shown), plus_minus(areas[name])]
        needed = labels_needed(budgets, curve.mean(0), target)
        labels = "not reached" if np.isnan(needed) else f"{needed:.0f}"
        if name == BASELINE:
            cells += ["", labels, "1"]
        else:
            saving, low, high = label_saving(budgets, curve, baseline, accuracy)
            value = "" if np.isnan(saving) else f"{saving:.2f} ({low:.2f} to {high:.2f})"
            cells += [p_text(p_values[name]), labels, value]
        lines.append("| " + " | ".join(cells) + " |")
    if len(results.upper):
        lines.append(
            f"| all {results.all_labels} labels, as many steps |"
            + " |" * (len(shown) - 1)
            + f" {plus_minus(results.upper)} | | | | |"
        )
    return "\n".join(lines)


def p_text(p: float) -> str:
    """A p-value to three places."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def plus_minus(values: Floats) -> str:
    """Mean and half width of the 95 % interval over seeds, as text."""
    width = half_width(values)
    return f"{values.mean():.3f}" + ("" if np.isnan(width) else f" ± {width:.3f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures")
    parser.add_argument(
        "--accuracy", type=float, help="at which savings are read off; else where random ends"
    )
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    everything = [read_results(folder) for folder in arguments.studies]
    common = [
        name for name in everything[0].accuracy if all(name in r.accuracy for r in everything)
    ]
    total = np.zeros((len(common), len(common)))
    for results in everything:
        print(f"\n{results.name}: {results.setting}\n\n{table(results, arguments.accuracy)}")
        print(f"\n{validation_line(results)}")
        intervals = {
            name: (curve.mean(0), half_width(curve)) for name, curve in results.accuracy.items()
        }
        upper = float(results.upper.mean()) if len(results.upper) else None
        savings = {
            name: label_saving(
                results.budgets, curve, results.accuracy[BASELINE], arguments.accuracy
            )
            for name, curve in results.accuracy.items()
            if name != BASELINE
        }
        for figure, content in (
            ("curves", curve_panels(results.setting, results.budgets, intervals, BASELINE, upper)),
            ("savings", saving_bars(results.setting, savings)),
        ):
            write_atomically(arguments.output / f"{results.name}_{figure}.png", content)
        positions = [list(results.accuracy).index(name) for name in common]
        total += penalties(results)[np.ix_(positions, positions)]
    column_means = ", ".join(
        f"{name} {mean:.2f}"
        for mean, name in sorted(zip(total.mean(0), common, strict=True), key=lambda pair: pair[0])
    )
    print(f"\npenalties over {len(everything)} studies, column means: {column_means}")
    write_atomically(arguments.output / "penalties.png", penalty_heatmap(total, common))
    return 0


if __name__ == "__main__":
    sys.exit(main())
