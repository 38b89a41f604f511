"""The statistics of a comparison, on arrays alone.

A curve is the accuracy after each round, [R] or [seeds, R], at the budgets [R], numbers of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.isotonic import isotonic_regression

LEVEL = 0.05
Floats = NDArray[np.float64]


def chosen_by_validation(val: Floats, test: Floats) -> Floats:
    """Test accuracy [R] of the round with the best validation accuracy so far; ties: the first."""
    best = 0
    chosen = []
    for round_ in range(len(val)):
        if val[round_] > val[best]:
            best = round_
        chosen.append(test[best])
    return np.array(chosen)


def area(budgets: Floats, accuracy: Floats) -> Floats:
    """AUBC: the area under accuracy [..., R] divided by the range of the budgets, [...].

    It is a mean accuracy over the budgets. A single budget has its accuracy as its area.
    """
    if len(budgets) == 1:
        return accuracy[..., 0]
    widths = np.diff(budgets)
    heights = (accuracy[..., 1:] + accuracy[..., :-1]) / 2
    return np.asarray((heights * widths).sum(-1) / widths.sum())


def half_width(values: Floats) -> Floats:
    """Half the 95 % interval of the mean over the first axis, by Student's t; NaN for one seed."""
    count = len(values)
    if count < 2:
        return np.full(values.shape[1:], np.nan)
    error = values.std(0, ddof=1) / np.sqrt(count)
    return np.asarray(stats.t.ppf(1 - LEVEL / 2, count - 1) * error)


def paired_p(a: Floats, b: Floats) -> float:
    """Two-sided p of the paired t-test of a, b [seeds]; NaN for one seed, 1 for no difference."""
    difference = a - b
    if len(difference) < 2:
        return float("nan")
    if not difference.any():
        return 1.0
    if np.ptp(difference) < 1e-12:
        return 0.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> Floats:
    """Holm-corrected p-values, in the order given (Holm 1979, Scand. J. Statist. 6:65).

    NaN values are no tests: they stay NaN and do not count.
    """
    p = np.asarray(p_values, dtype=float)
    corrected = np.full_like(p, np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    highest = 0.0
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[position]))
        corrected[position] = highest
    return corrected


def monotone(accuracy: Floats) -> Floats:
    """The curve [R] that never falls and is nearest to `accuracy` [R]: isotonic regression."""
    return np.asarray(isotonic_regression(accuracy))


def labels_needed(budgets: Floats, accuracy: Floats, target: float) -> float:
    """Labels at which a curve [R] that never falls reaches `target`; NaN where it never does.

    The curve is straight between rounds. The answer is the first budget where the curve starts at
    the target or above.
    """
    reached = np.flatnonzero(accuracy >= target)
    if len(reached) == 0:
        return float("nan")
    after = int(reached[0])
    if after == 0:
        return float(budgets[0])
    share = (target - accuracy[after - 1]) / (accuracy[after] - accuracy[after - 1])
    return float(budgets[after - 1] + share * (budgets[after] - budgets[after - 1]))


@dataclass(frozen=True)
class Saving:
    """How many times fewer labels a strategy needs than the baseline for an accuracy.

    ratio, low, high: geometric mean over seeds, and its 95 % interval by Student's t on logarithms.
    All are NaN where the strategy misses the target with a seed; low and high for one seed.
    at_least: the baseline misses the target with a seed. That seed is censored: the baseline counts
    as needing its whole budget, so that the true saving is larger.
    baseline_missed, strategy_missed: the numbers of seeds that miss the target.
    """

    target: float
    ratio: float
    low: float
    high: float
    seeds: int
    baseline_missed: int
    strategy_missed: int

    @property
    def at_least(self) -> bool:
        """Whether the ratio is a lower bound."""
        return self.baseline_missed > 0


def saving(budgets: Floats, strategy: Floats, baseline: Floats, target: float) -> Saving:
    """The saving at `target`, seed by seed, of curves [seeds, R] that never fall."""
    needed = np.array([labels_needed(budgets, curve, target) for curve in strategy])
    by_baseline = np.array([labels_needed(budgets, curve, target) for curve in baseline])
    missed = int(np.isnan(needed).sum()), int(np.isnan(by_baseline).sum())
    logs = np.log(np.nan_to_num(by_baseline, nan=budgets[-1]) / needed)
    mean, half = float(logs.mean()), float(half_width(logs))  # NaN where `needed` has a NaN
    low, high = np.exp(mean - half), np.exp(mean + half)
    return Saving(
        target, float(np.exp(mean)), float(low), float(high), len(logs), missed[1], missed[0]
    )


def penalties(budgets: Floats, curves: Mapping[str, Floats]) -> Floats:
    """The penalty matrix [S, S] of curves [seeds, R], strategies in the mapping's order.

    Row i, column j is the share of budgets at which i is better than j, by paired t-tests at the 5
    % level with Holm's correction over all pairs of a budget. A low column mean is good. Ash et al.
    2020 (arXiv 1906.03671); Beck et al. 2021 (arXiv 2106.15324).
    """
    matrix = np.zeros((len(curves), len(curves)))
    pairs = list(combinations(range(len(curves)), 2))
    for round_ in range(len(budgets)):
        columns = [curve[:, round_] for curve in curves.values()]
        corrected = holm([paired_p(columns[i], columns[j]) for i, j in pairs])
        for (i, j), p in zip(pairs, corrected, strict=True):
            if p < LEVEL:
                better = (i, j) if columns[i].mean() > columns[j].mean() else (j, i)
                matrix[better] += 1 / len(budgets)
    return matrix
