"""Refuses a search whose trials could not be compared with each other.

A search chooses among trials by one metric, so they have to differ in nothing but what it searches:
they have the same data and first labels, and equally many labels whenever they are compared. And it
must not stop a trial before its query strategy has chosen images twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from errors import UserError
from training.fields import as_number, nearest
from training.hyperparameters import Hyperparameters
from training.search_space import SearchRange, parse_range

# Searchers that choose the best trial, and those of them that stop trials on the way. A grid is
# for comparison: it runs all of its trials to the end, and may vary anything.
CHOOSING = ("adaptive_asha", "async_halving", "random")
STOPPING = ("adaptive_asha", "async_halving")
# Metrics of every validation report, and whether smaller is better.
METRICS = {"val_loss": True, "val_accuracy": False, "val_auc": False}
# The initial images are chosen before round 0, so the strategy has chosen twice in round 2, the
# third round.
FIRST_RUNG = 3
STOP_RULES = (
    *("stop_at_val_accuracy", "stop_after_rounds_without_gain", "stop_below_uncertainty"),
    "minutes_budget",
)


def check_search(config: Mapping[str, Any]) -> None:
    """Check `config`, as the YAML file or a cluster's master gives it, before any trial works.

    Raises:
        UserError: a hyperparameter can take a value that is not allowed; `searcher.max_time` and
            `hyperparameters.rounds` differ; or the searcher breaks a rule of this module.
    """
    searcher = config.get("searcher") or {}
    if not isinstance(searcher, dict):
        raise UserError(f"searcher: {searcher!r} is no mapping; write `name: single` below it")
    ranges = _checked_ranges(config.get("hyperparameters") or {})
    _check_metric(searcher)
    if searcher.get("max_time") is not None:
        _check_max_time(searcher, ranges["rounds"])
    name = searcher.get("name")
    if name == "grid" or name in CHOOSING:
        _check_seed(name, ranges["seed"])
    if name in CHOOSING:
        _check_fixed(name, ranges)
        _check_labels(name, ranges)
    if name in STOPPING:
        _check_rungs(searcher)


def _checked_ranges(hyperparameters: Mapping[str, Any]) -> dict[str, SearchRange]:
    """The range of every hyperparameter, those with defaults included; all values are allowed."""
    ranges = {
        name: SearchRange("const", (value,)) for name, value in Hyperparameters().resolved().items()
    }
    for name, value in hyperparameters.items():
        given = parse_range(name, value)
        values = tuple(Hyperparameters.checked(name, one) for one in given.values)
        ranges[name] = dataclasses.replace(given, values=values)
    return ranges


def _check_metric(searcher: Mapping[str, Any]) -> None:
    metric = searcher.get("metric", "val_loss")
    if not isinstance(metric, str) or metric not in METRICS:
        raise UserError(
            f"searcher.metric: {metric!r} is in no validation report{nearest(str(metric), METRICS)}"
            f"; allowed are {', '.join(METRICS)}"
        )
    smaller = searcher.get("smaller_is_better", True)
    if smaller is not METRICS[metric]:
        raise UserError(
            f"searcher.smaller_is_better: {smaller!r} would choose the worst by {metric}; "
            f"set {str(METRICS[metric]).lower()}"
        )


def _check_max_time(searcher: Mapping[str, Any], rounds: SearchRange) -> None:
    if searcher.get("time_metric") != "epochs":
        raise UserError(
            f"searcher.time_metric: {searcher.get('time_metric')!r} does not count rounds; "
            "set epochs"
        )
    if rounds.varies or rounds.values[0] != as_number(searcher["max_time"]):
        values = "a range" if rounds.varies else rounds.values[0]
        raise UserError(
            f"searcher.max_time: {searcher['max_time']!r}, but hyperparameters.rounds: {values}; "
            "write one number for both, as config.yaml does by `&rounds` and `*rounds`"
        )


def _check_seed(searcher: str, seed: SearchRange) -> None:
    if -1 in seed.values:
        raise UserError(
            f"hyperparameters.seed: -1 gives every trial of searcher.name: {searcher} other first "
            "labels; set a number that all share, such as 0"
        )


def _check_fixed(searcher: str, ranges: Mapping[str, SearchRange]) -> None:
    for field in dataclasses.fields(Hyperparameters):
        if field.metadata["fixed_in_search"] and ranges[field.name].varies:
            raise UserError(
                f"hyperparameters.{field.name}: a range, but searcher.name: {searcher} compares "
                "trials at equal labels and data; give it one value, or compare by a grid, as "
                "configs/strategies.yaml does"
            )


def _check_labels(searcher: str, ranges: Mapping[str, SearchRange]) -> None:
    """Every trial that is not stopped runs to its last round: none ends by itself before."""
    for name in STOP_RULES:
        if ranges[name].values[0]:
            raise UserError(
                f"hyperparameters.{name}: {ranges[name].values[0]} ends trials of searcher.name: "
                f"{searcher} at different numbers of labels; set 0"
            )
    sizes = ("rounds", "initial_labeled_size", "samples_to_label", "query_growth", "label_budget")
    hp = Hyperparameters(**{name: ranges[name].values[0] for name in sizes})
    if hp.label_budget not in (0, hp.labels_of_all_rounds):
        raise UserError(
            f"hyperparameters.label_budget: {hp.label_budget} is not what rounds: {hp.rounds} ask "
            f"for, {hp.labels_of_all_rounds}; set that number, or leave it out"
        )


def _check_rungs(searcher: Mapping[str, Any]) -> None:
    brackets = rungs(searcher)
    first = min((bracket[0] for bracket in brackets if len(bracket) > 1), default=FIRST_RUNG)
    if first >= FIRST_RUNG:
        return
    max_time = int(_positive(searcher, "max_time"))
    if max_time >= 2 * FIRST_RUNG:
        key, value = ("num_rungs", "2") if "num_rungs" in searcher else ("bracket_rungs", "[2]")
        remedy = f"set {key}: {value} and divisor: {min(4, max_time // FIRST_RUNG)}"
    else:
        remedy = f"set rounds and max_time to {2 * FIRST_RUNG} or more"
    raise UserError(
        f"searcher.name: {searcher['name']} would stop trials after round {first} of {max_time}, "
        f"before their query strategies have chosen twice; {remedy}"
    )


def rungs(searcher: Mapping[str, Any]) -> list[list[int]]:
    """After how many rounds trials are compared, for each bracket of a stopping searcher.

    The last rung of a bracket is the end of a trial. This is what a master of Determined 0.38
    computes in master/pkg/searcher/adaptive_asha.go (makeBrackets) and asha_stopping.go
    (makeRungs), with its defaults.

    Raises:
        UserError: a number that is missing or not above zero.
    """
    max_time = int(_positive(searcher, "max_time"))
    divisor = _positive(searcher, "divisor", 4)
    if divisor <= 1:
        raise UserError(f"searcher.divisor: {divisor} is not above 1; give 3")
    if searcher["name"] == "async_halving":
        counts = [int(_positive(searcher, "num_rungs"))]
    else:
        counts = searcher.get("bracket_rungs") or _bracket_rungs(searcher, max_time, divisor)
    if not isinstance(counts, list) or not all(type(one) is int and one > 0 for one in counts):
        raise UserError(f"searcher.bracket_rungs: {counts!r} are no numbers of rungs; give [2]")
    return [
        [max(int(max_time / divisor ** (count - i - 1)), 1) for i in range(count)]
        for count in sorted(counts, reverse=True)
    ]


def _bracket_rungs(searcher: Mapping[str, Any], max_time: int, divisor: float) -> list[int]:
    """How many rungs each bracket of adaptive_asha has where `bracket_rungs` is not given."""
    most = min(
        int(_positive(searcher, "max_rungs", 5)),
        int(math.log(max_time) / math.log(divisor)) + 1,
        int(math.log(_positive(searcher, "max_trials")) / math.log(divisor)) + 1,
    )
    mode = searcher.get("mode") or "standard"
    first = {"aggressive": most, "standard": (most - 1) // 2 + 1, "conservative": 1}
    if not isinstance(mode, str) or mode not in first:
        raise UserError(
            f"searcher.mode: {mode!r} is unknown{nearest(str(mode), first)}; allowed are "
            f"{', '.join(first)}"
        )
    return list(range(first[mode], most + 1))


def _positive(searcher: Mapping[str, Any], key: str, default: float | None = None) -> float:
    given = searcher.get(key)
    value = as_number(default if given is None else given)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise UserError(f"searcher.{key}: {given!r} is no number above 0; give one")
    return float(value)
