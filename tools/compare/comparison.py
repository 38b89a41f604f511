"""Runs arranged for comparison: grouped by what differs between them, seed beside seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from errors import UserError
from tools.compare.runs import Run
from tools.compare.statistics import (
    Floats,
    Saving,
    area,
    chosen_by_validation,
    holm,
    monotone,
    paired_p,
    saving,
)

RANDOM = "random"
STRATEGY = "query_strategy"
# Settings that say where and how a run computes and reports, not what.
NEUTRAL = ("data_dir", "scoring_batch_size", "reporting_period", "tensorboard_pictures")
# Settings of the images that are evaluated; the data's fingerprint does not cover them.
OF_EVALUATION = ("dataset", "image_size", "evaluation_size")
SAVING_TARGETS = 41  # points of the curve of savings


@dataclass(frozen=True)
class Group:
    """The runs that differ in nothing but their seed, [seeds, R] each.

    val: validation accuracy after each round. monotone_val: made monotone by isotonic regression.
    best_val: the best validation accuracy so far.
    test: test accuracy of the round that `best_val` is of. Nothing is chosen on the test split.
    """

    val: Floats
    monotone_val: Floats
    best_val: Floats
    test: Floats


@dataclass(frozen=True)
class Comparison:
    """Groups of runs on the same data and the same budgets.

    data: the name of the data. seeds: those that all groups have, in the order of the rows.
    left_out: seeds that only some groups have. budgets: labels, [R]. groups: by name.
    baseline: the name of the group that the others are compared with.
    upper, upper_labels: test accuracies of runs with all labels, [seeds], and how many these are.
    """

    data: str
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    budgets: Floats
    groups: Mapping[str, Group]
    baseline: str
    upper: Floats
    upper_labels: int

    @property
    def others(self) -> list[str]:
        """The names of the groups besides the baseline."""
        return [name for name in self.groups if name != self.baseline]

    def areas(self, split: str) -> dict[str, Floats]:
        """AUBC of each group, [seeds]; split: val or test."""
        return {
            name: area(self.budgets, group.best_val if split == "val" else group.test)
            for name, group in self.groups.items()
        }

    def p_values(self) -> dict[str, float]:
        """p of each group's test AUBC against the baseline's, paired, Holm-corrected."""
        areas = self.areas("test")
        p = [paired_p(areas[name], areas[self.baseline]) for name in self.others]
        return dict(zip(self.others, holm(p).tolist(), strict=True))

    def saving(self, name: str, target: float) -> Saving:
        """The labels that the group saves at a validation accuracy."""
        strategy, baseline = (self.groups[one].monotone_val for one in (name, self.baseline))
        return saving(self.budgets, strategy, baseline, target)

    def targets(self) -> Floats:
        """Validation accuracies for the curve of savings, ascending.

        They lie between what the baseline starts with and what the best group ends with.
        """
        lowest = self.groups[self.baseline].val[:, 0].mean()
        highest = max(group.best_val[:, -1].mean() for group in self.groups.values())
        return np.linspace(lowest, highest, SAVING_TARGETS)

    def few_targets(self, count: int) -> list[float]:
        """Validation accuracies for a table, up to what the baseline ends with, [count]."""
        reference = self.groups[self.baseline].best_val.mean(0)
        # The first is where the baseline starts, so there is nothing to save yet.
        return [float(t) for t in np.linspace(reference[0], reference[-1], count + 1)[1:].round(3)]


def compare(runs: Sequence[Run], baseline: str | None = None) -> Comparison:
    """Arrange `runs` for comparison.

    baseline: the name of a group; None: random choice, or without it the first run's group.

    Raises:
        UserError: runs differ in data or budgets, two runs are the same, groups have no seed in
            common, or there is no such baseline.
    """
    upper = [run for run in runs if run.is_upper]
    compared = [run for run in runs if not run.is_upper]
    if not compared:
        raise UserError("nothing to compare: all runs have all labels; name runs of a strategy")
    _refuse_other_data(compared)
    _refuse_other_budgets(compared)
    by_group = _grouped(compared)
    if baseline is None:
        baseline = RANDOM if RANDOM in by_group else next(iter(by_group))
    if baseline not in by_group:
        raise UserError(f"--baseline {baseline}: no such group; there are {', '.join(by_group)}")
    everywhere = set.intersection(*(set(members) for members in by_group.values()))
    seeds = tuple(sorted(everywhere))
    if not seeds:
        listed = "; ".join(f"{name}: {sorted(members)}" for name, members in by_group.items())
        raise UserError(f"no seed that all groups have ({listed}); name runs of the same seeds")
    left_out = {seed for members in by_group.values() for seed in members} - everywhere
    budgets = np.unique(np.concatenate([run.labels for run in compared]))
    return Comparison(
        data=compared[0].data,
        seeds=seeds,
        left_out=tuple(sorted(left_out)),
        budgets=budgets,
        groups={
            name: _group([members[seed] for seed in seeds], budgets)
            for name, members in by_group.items()
        },
        baseline=baseline,
        upper=np.array([chosen_by_validation(run.val, run.test)[-1] for run in upper]),
        upper_labels=int(upper[0].labels[-1]) if upper else 0,
    )


def _refuse_other_data(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs:
        if run.data != first.data:
            raise UserError(
                f"{run.path}: trained on {run.data}, but {first.path} on {first.data}; "
                "compare runs on the same data"
            )
        for name in OF_EVALUATION:
            if run.settings.get(name) != first.settings.get(name):
                raise UserError(
                    f"{run.path}: {name} is {run.settings.get(name)!r}, but "
                    f"{first.settings.get(name)!r} in {first.path}; compare runs that are "
                    "evaluated on the same images"
                )


def _refuse_other_budgets(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs:
        budgets = [(one.labels[0], one.labels[-1]) for one in (run, first)]
        if budgets[0] != budgets[1]:
            ranges = [f"{low:.0f} to {high:.0f} labels" for low, high in budgets]
            raise UserError(
                f"{run.path}: {ranges[0]}, but {ranges[1]} in {first.path}; compare runs of the "
                "same budget: finish a stopped one by --resume, and take a run's last checkpoint"
            )


def _grouped(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Runs by the name of their group and by seed."""
    names = {name for run in runs for name in run.settings} - set(NEUTRAL)
    differing = sorted(
        name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1
    )
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        words = [str(run.settings[STRATEGY])] if STRATEGY in differing or not differing else []
        words += [f"{name}={run.settings.get(name)}" for name in differing if name != STRATEGY]
        members = groups.setdefault(", ".join(words), {})
        if run.seed in members:
            raise UserError(
                f"{run.path}: the same settings and seed {run.seed} as {members[run.seed].path}; "
                "name one of them"
            )
        members[run.seed] = run
    return groups


def _group(runs: Sequence[Run], budgets: Floats) -> Group:
    """Curves of runs at `budgets`; between the rounds of a run its curve is straight."""

    def curves(values: Sequence[Floats]) -> Floats:
        pairs = zip(runs, values, strict=True)
        return np.stack([np.interp(budgets, run.labels, curve) for run, curve in pairs])

    return Group(
        val=curves([run.val for run in runs]),
        monotone_val=curves([monotone(run.val) for run in runs]),
        best_val=curves([np.maximum.accumulate(run.val) for run in runs]),
        test=curves([chosen_by_validation(run.val, run.test) for run in runs]),
    )
