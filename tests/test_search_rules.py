"""Searches that compare: the shipped ones, by a simulated master, and those that are refused."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import UserError
from tests.conftest import ROOT
from training.experiment_config import load, sample
from training.hyperparameters import Hyperparameters
from training.search_rules import check_search, rungs

SEARCHES = [
    path
    for path in sorted([ROOT / "config.yaml", *(ROOT / "configs").glob("*.yaml")])
    if load(path)["searcher"]["name"] in ("adaptive_asha", "async_halving", "random")
]


@dataclass
class Bracket:
    """One bracket of ASHA by early stopping, as Determined 0.38's master runs it.

    A transcription of doEarlyStopping in master/pkg/searcher/asha_stopping.go.
    """

    units_needed: list[int]
    divisor: float
    metrics: list[list[float]] = field(default_factory=list)
    next_rung: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metrics = [[] for _ in self.units_needed]

    def stops(self, trial: int, epochs: int, val_loss: float) -> bool:
        """Whether the master stops `trial` after it has reported `val_loss` at `epochs`."""
        last = len(self.units_needed) - 1
        for number in range(self.next_rung.get(trial, 0), last + 1):
            self.next_rung[trial] = number
            if epochs < self.units_needed[number]:
                return False
            rung = self.metrics[number]
            rank = sum(other < val_loss for other in rung)
            rung.append(val_loss)
            if number == last or rank >= max(int(len(rung) / self.divisor), 1):
                return True
        return False


def simulate(searcher: dict[str, Any], seed: int) -> list[int]:
    """After how many rounds each trial of the search ended, with made-up losses."""
    generator = random.Random(seed)
    ended = []
    brackets = [Bracket(units, searcher["divisor"]) for units in rungs(searcher)]
    for trial in range(searcher["max_trials"]):
        bracket = brackets[trial % len(brackets)]
        loss, epochs = generator.random(), 0
        stopped = False
        while not stopped:
            epochs += 1
            stopped = bracket.stops(trial, epochs, loss + 0.1 * generator.random())
        ended.append(epochs)
    return ended


@pytest.fixture(params=SEARCHES, ids=lambda path: path.name)
def search(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def test_there_is_a_search() -> None:
    assert ROOT / "config.yaml" in SEARCHES


class TestShippedSearches:
    def test_none_is_stopped_before_its_strategy_has_chosen_twice(
        self, search: dict[str, Any]
    ) -> None:
        for seed in range(20):
            ended = simulate(search["searcher"], seed)
            # Round 0 takes the initial images: the strategy has chosen in rounds 1 and 2.
            assert min(ended) >= 3
            assert max(ended) == search["searcher"]["max_time"]
            assert min(ended) < max(ended)  # it is a search that stops trials

    def test_all_trials_have_the_same_data_and_labels(self, search: dict[str, Any]) -> None:
        shared = set()
        for seed in range(50):
            hp = Hyperparameters.from_mapping(sample(search["hyperparameters"], seed)[0])
            sizes = hp.query_sizes(10**6)
            assert len(sizes) == hp.rounds == search["searcher"]["max_time"]
            assert sum(sizes) == hp.label_budget
            shared.add((hp.seed, hp.dataset, hp.split_seed, hp.evaluation_size, sizes))
        assert len(shared) == 1
        assert next(iter(shared))[0] >= 0

    def test_metric_is_of_the_validation_split(self, search: dict[str, Any]) -> None:
        assert search["searcher"]["metric"] == "val_loss"
        assert search["searcher"]["smaller_is_better"] is True


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name
)
def test_shipped_configurations_pass(path: Path) -> None:
    check_search(load(path))


def test_as_a_cluster_gives_it(search: dict[str, Any]) -> None:
    """A master turns plain values into const ranges and adds its own defaults."""
    config = copy.deepcopy(search)
    config["hyperparameters"] = {
        name: value if isinstance(value, dict) else {"type": "const", "val": value}
        for name, value in config["hyperparameters"].items()
    }
    config["searcher"] |= {"mode": "standard", "max_rungs": 5, "source_trial_id": None}
    check_search(config)


class TestRungs:
    """Expected values of the master's own tests, in master/pkg/searcher/adaptive_asha_test.go."""

    def asha(self, **settings: Any) -> list[list[int]]:
        return rungs({"name": "adaptive_asha", **settings})

    def test_standard(self) -> None:
        assert self.asha(max_time=100, max_trials=10, mode="standard") == [[25, 100], [100]]

    def test_conservative(self) -> None:
        brackets = self.asha(max_time=1000, max_trials=10, mode="conservative", divisor=3)
        assert brackets == [[111, 333, 1000], [333, 1000], [1000]]

    def test_aggressive(self) -> None:
        assert self.asha(max_time=9, max_trials=9, mode="aggressive", divisor=3) == [[1, 3, 9]]

    def test_bracket_rungs_are_sorted(self) -> None:
        assert self.asha(max_time=12, bracket_rungs=[1, 3], divisor=2) == [[3, 6, 12], [12]]

    def test_async_halving(self) -> None:
        searcher = {"name": "async_halving", "num_rungs": 3, "max_time": 16}
        assert rungs(searcher) == [[1, 4, 16]]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_time": None}, "searcher.max_time: None is no number above 0"),
            ({"divisor": 1}, "searcher.divisor: 1.0 is not above 1"),
            ({"divisor": "x"}, "searcher.divisor: 'x' is no number above 0"),
            ({"mode": "agressive"}, r"'agressive' is unknown \(did you mean aggressive\?\)"),
            ({"bracket_rungs": [0]}, r"searcher.bracket_rungs: \[0\]"),
            ({"bracket_rungs": 2}, "searcher.bracket_rungs: 2"),
        ],
    )
    def test_refuses(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            self.asha(**{"max_time": 9, "max_trials": 8, **settings})


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("unknown name", {"learning_rat": 1}, {}, r"learning_rat: unknown \(did you mean learning_r"),
    (
        "bad value in a range",
        {"batch_size": {"type": "categorical", "vals": [32, "x"]}},
        {},
        "batch_size: 'x' is not a whole number",
    ),
    (
        "end of a range",
        {"dropout": {"type": "double", "minval": 0.1, "maxval": 1.5}},
        {},
        "dropout: 1.5 is out of range",
    ),
    (
        "end of a log range",
        {"learning_rate": {"type": "log", "base": 10, "minval": -3, "maxval": 2}},
        {},
        "learning_rate: 100.0 is out of range",
    ),
    ("no such range", {"rounds": {"type": "lgo"}}, {}, "rounds.type: 'lgo'"),
    ("fewer rounds", {"rounds": 3}, {}, "max_time: 10, but hyperparameters.rounds: 3; write one"),
    ("more time", {}, {"max_time": 9}, "max_time: 9, but hyperparameters.rounds: 10"),
    (
        "rounds searched",
        {"rounds": {"type": "int", "minval": 3, "maxval": 10}},
        {},
        "max_time: 10, but hyperparameters.rounds: a range",
    ),
    ("time in batches", {}, {"time_metric": "batches"}, "time_metric: 'batches'.* set epochs"),
    ("seeds of trials", {"seed": -1}, {}, "seed: -1 gives every trial of .* other first labels"),
    ("seeds in a grid", {"seed": -1}, {"name": "grid"}, "seed: -1 gives every trial"),
    (
        "seeds searched",
        {"seed": {"type": "categorical", "vals": [0, 1]}},
        {},
        "seed: a range, but searcher.name: adaptive_asha compares",
    ),
    *(
        (
            f"{name} searched",
            {name: {"type": "categorical", "vals": [200, 400]}},
            {},
            f"{name}: a range, but searcher.name: adaptive_asha compares trials at equal",
        )
        for name in ("initial_labeled_size", "samples_to_label", "label_budget", "evaluation_size")
    ),
    (
        "query size searched at random",
        {"samples_to_label": {"type": "int", "minval": 1, "maxval": 9}},
        {"name": "random"},
        "samples_to_label: a range, but searcher.name: random",
    ),
    ("stopping rule", {"stop_at_val_accuracy": 0.9}, {}, "stop_at_val_accuracy: 0.9 ends trials"),
    ("minutes", {"minutes_budget": 90}, {}, "minutes_budget: 90.0 ends trials"),
    ("budget too small", {"label_budget": 1000}, {}, "label_budget: 1000 is not .* 2000; set that"),
    ("budget too large", {"label_budget": 3000}, {}, "label_budget: 3000 is not .* 2000; set that"),
    (
        "early rung",
        {},
        {"bracket_rungs": [3, 2]},
        r"after round 1 of 10, before .* twice; set bracket_rungs: \[2\] and divisor: 3",
    ),
    ("default rungs", {}, {"bracket_rungs": None}, "would stop trials after round 1 of 10"),
    (
        "too short",
        {"rounds": 4, "label_budget": 0},
        {"max_time": 4},
        "after round 1 of 4, .* twice; set rounds and max_time to 6 or more",
    ),
    (
        "halving",
        {},
        {"name": "async_halving", "num_rungs": 3},
        "after round 1 of 10.*; set num_rungs: 2 and divisor: 3",
    ),
    ("metric of the test split", {}, {"metric": "test_loss"}, "metric: 'test_loss' .* val_loss"),
    ("the worst wins", {}, {"metric": "val_accuracy"}, "is_better: True .* worst .* set false"),
]


@pytest.mark.parametrize(
    ("hyperparameters", "searcher", "message"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_refused(hyperparameters: dict[str, Any], searcher: dict[str, Any], message: str) -> None:
    config = load(ROOT / "config.yaml")
    config["hyperparameters"] |= hyperparameters
    config["searcher"] |= searcher
    with pytest.raises(UserError, match=message) as error:
        check_search(config)
    assert "\n" not in str(error.value)


def test_a_remedy_is_one() -> None:
    config = load(ROOT / "config.yaml")
    config["hyperparameters"] |= {"rounds": 6, "label_budget": 0}
    config["searcher"] |= {"max_time": 6, "bracket_rungs": [2], "divisor": 2}
    check_search(config)
    assert min(simulate(config["searcher"], 0)) == 3


@settings(max_examples=150)
@given(
    key=st.sampled_from(
        [
            "name",
            "metric",
            "smaller_is_better",
            "max_time",
            "time_metric",
            "divisor",
            "max_rungs",
            "bracket_rungs",
            "mode",
            "max_trials",
            "num_rungs",
        ]
    ),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.none()),
    name=st.sampled_from(["adaptive_asha", "async_halving", "random", "grid", "single"]),
)
def test_any_searcher_is_taken_or_refused_in_one_line(key: str, value: Any, name: str) -> None:
    config = load(ROOT / "config.yaml")
    config["searcher"] |= {"name": name, "bracket_rungs": None, "num_rungs": 2, key: value}
    message = ""
    try:
        check_search(config)
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_a_grid_may_vary_what_it_likes() -> None:
    config = load(ROOT / "configs" / "strategies.yaml")
    config["hyperparameters"] |= {
        "samples_to_label": {"type": "categorical", "vals": [50, 100]},
        "label_budget": 1000,
        "stop_at_val_accuracy": 0.9,
    }
    check_search(config)


def test_a_single_trial_needs_no_searcher_settings() -> None:
    check_search({"hyperparameters": {"seed": -1, "label_budget": 250}})
