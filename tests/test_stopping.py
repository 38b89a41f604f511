"""What ends a run: each rule by hand-made rounds, and real runs that stop, on and off a cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import model_def
from active_learning import ActiveLearner, run
from data import Splits
from tests.conftest import ROOT, SMALL, Proposals, ask, part, small_values
from tests.reliability.processes import checkpoint_state, read_rows
from training.hyperparameters import Hyperparameters
from training.oracle import SimulatedOracle
from training.stopping import RoundResult, reason_to_stop

Build = Callable[..., ActiveLearner]
SIZES = (10, 6, 6, 6)


def rule_after(losses: list[float], **changes: Any) -> str | None:
    """The rule that ends a run after rounds of these losses, of accuracy .5 and 1.2 nats each."""
    hp = Hyperparameters.from_mapping(small_values(rounds=4, **changes))
    results = [RoundResult(loss, 0.5, 1.2) for loss in losses]
    reason = reason_to_stop(hp, SIZES, results, pool_exhausted=False)
    return None if reason is None else reason.rule


RULES: list[tuple[list[float], dict[str, Any], str | None]] = [
    ([], {"stop_at_val_accuracy": 0.1}, None),
    ([1.0], {}, None),
    ([1.0, 1.0, 1.0, 1.0], {}, "rounds"),
    ([1.0, 1.0, 1.0, 1.0], {"label_budget": 28}, "budget"),
    ([1.0], {"stop_at_val_accuracy": 0.5}, "target"),
    ([1.0], {"stop_at_val_accuracy": 0.51}, None),
    ([1.0, 1.0, 1.0, 1.0], {"stop_at_val_accuracy": 0.5}, "target"),
    ([1.0, 0.9], {"stop_after_rounds_without_gain": 1}, None),
    ([1.0, 1.0], {"stop_after_rounds_without_gain": 1}, "no_gain"),
    ([1.0, 1.1], {"stop_after_rounds_without_gain": 2}, None),
    ([1.0, 1.1, 1.1], {"stop_after_rounds_without_gain": 2}, "no_gain"),
    # A fall since the round before is no gain while it stays above the lowest.
    ([0.8, 1.1, 0.9], {"stop_after_rounds_without_gain": 2}, "no_gain"),
    ([1.0, 1.1, 0.9], {"stop_after_rounds_without_gain": 2}, None),
    ([1.0], {"stop_below_uncertainty": 1.2}, None),
    ([1.0], {"stop_below_uncertainty": 1.3}, "low_uncertainty"),
    ([1.0, 1.0], {"stop_below_uncertainty": 2, "stop_after_rounds_without_gain": 1}, "no_gain"),
]


@pytest.mark.parametrize(
    ("minutes", "changes", "rule"),
    [
        ([1.0], {"minutes_budget": 1.0}, "minutes"),
        ([1.0], {"minutes_budget": 1.5}, None),  # exactly the next round's 6 labels of 5 s
        ([1.0], {"minutes_budget": 1.49}, "minutes"),
        ([1.0], {}, None),
        ([1.0, 2.0, 3.0, 4.0], {"minutes_budget": 3.0}, "rounds"),
        ([1.0], {"minutes_budget": 2.5, "expert_share": 0.5}, None),  # and 3 labels of 20 s
        ([1.0], {"minutes_budget": 2.49, "expert_share": 0.5}, "minutes"),
        # People took 6 s for each of 10 labels, so 6 more take 36 s.
        ([1.0], {"minutes_budget": 1.6, "oracle": "people"}, None),
        ([1.0], {"minutes_budget": 1.59, "oracle": "people"}, "minutes"),
    ],
)
def test_a_round_that_the_minutes_do_not_pay_for_does_not_begin(
    minutes: list[float], changes: dict[str, Any], rule: str | None
) -> None:
    hp = Hyperparameters.from_mapping(small_values(rounds=4, **changes))
    results = [RoundResult(1.0, 0.5, None, minutes=spent) for spent in minutes]
    reason = reason_to_stop(hp, SIZES, results, pool_exhausted=False)
    assert (None if reason is None else reason.rule) == rule


@pytest.mark.parametrize(("losses", "changes", "rule"), RULES)
def test_rules(losses: list[float], changes: dict[str, Any], rule: str | None) -> None:
    assert rule_after(losses, **changes) == rule


def test_the_reason_names_value_and_setting() -> None:
    hp = Hyperparameters.from_mapping(small_values(stop_after_rounds_without_gain=1))
    reason = reason_to_stop(hp, SIZES, [RoundResult(0.4321, 0.5, None)] * 2, False)
    assert reason is not None
    assert reason.text == (
        "no round since round 0 had a val_loss below its 0.4321 (stop_after_rounds_without_gain: 1)"
    )


def finish(learner: ActiveLearner, digits: Splits) -> list[list[int]]:
    """Run the plain loop to its end; returns what each round queried."""
    oracle = SimulatedOracle(learner.train_store.labels)
    rounds = run(learner, oracle, digits.val, part(digits.test, 20))
    return [learner.pool.query_of(one.round).tolist() for one in rounds]


@pytest.mark.parametrize(
    ("changes", "rule", "rounds"),
    [
        ({}, "rounds", 3),
        ({"label_budget": 13}, "budget", 2),
        ({"stop_at_val_accuracy": 0.01}, "target", 1),
        ({"stop_below_uncertainty": 10}, "low_uncertainty", 1),
        ({"stop_below_uncertainty": 10, "query_strategy": "random"}, "low_uncertainty", 1),
        ({"stop_below_uncertainty": 10, "query_strategy": "k_center"}, "low_uncertainty", 1),
    ],
)
def test_the_plain_loop_stops(
    changes: dict[str, Any], rule: str, rounds: int, make_learner: Build, digits: Splits
) -> None:
    learner = make_learner(**changes)
    assert len(finish(learner, digits)) == rounds
    assert learner.finished
    assert learner.stop_reason is not None
    assert learner.stop_reason.rule == rule
    # No label is bought that the stopped run has no use for.
    assert len(learner.pool.labelled) == sum(learner.query_sizes[:rounds])


@pytest.mark.parametrize("strategy", ["random", "k_center", "uncertainty_diversity"])
def test_looking_at_the_pool_changes_no_query(
    strategy: str, make_learner: Build, digits: Splits
) -> None:
    changes = {"query_strategy": strategy, "candidate_pool_size": 40}
    without, watched = (
        make_learner(**changes, stop_below_uncertainty=limit) for limit in (0, 1e-9)
    )
    assert finish(without, digits) == finish(watched, digits)
    assert [result.pool_uncertainty is None for result in without.results] == [True] * 3
    assert [result.pool_uncertainty is None for result in watched.results] == [False, False, True]


def test_the_uncertainty_is_that_of_the_next_query(make_learner: Build, digits: Splits) -> None:
    learner = make_learner(stop_below_uncertainty=1e-9)
    proposals = Proposals()
    oracle = SimulatedOracle(learner.train_store.labels)
    for _ in run(learner, oracle, digits.val, digits.test, proposals):
        pass
    assert [one.candidates_uncertainty for one in proposals.answered] == [
        None, *(pytest.approx(result.pool_uncertainty) for result in learner.results[:-1]),
    ]  # fmt: skip


def test_results_travel_in_the_state_and_are_not_counted_twice(make_learner: Build) -> None:
    settings = {"stop_after_rounds_without_gain": 1, "stop_below_uncertainty": 1e-9}
    learner, restored = make_learner(**settings), make_learner(**settings)
    ask(learner)
    learner.step = learner.hp.batches_per_round
    for _ in range(2):  # as where a run is cut off between validation and checkpoint
        learner._end_round(0, {"loss": 0.7, "accuracy": 0.1})
        assert learner.stop_reason is None
    ask(learner)
    learner.step *= 2
    assert len(learner.results) == 1
    learner._end_round(1, {"loss": 0.7, "accuracy": 0.1})
    reason = learner.stop_reason
    assert reason is not None
    assert reason.rule == "no_gain"
    restored.load_state(*learner.state())
    assert restored.results == learner.results
    assert restored.stop_reason == reason
    assert restored.finished


def test_a_run_stops_says_why_and_stays_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    settings = {**SMALL, "stop_at_val_accuracy": 0.01, "evaluation_size": 0}
    arguments = ["--config", str(ROOT / "configs" / "digits.yaml"), "--output-dir", str(folder)]
    values = [f"hyperparameters.{name}={value}" for name, value in settings.items()]
    with caplog.at_level("INFO"):
        assert model_def.main([*arguments, "--set", *values]) == 0
    identity = json.loads((folder / "run.json").read_text())
    (entry,) = json.loads((folder / "checkpoints.json").read_text())
    reason = identity["end"].pop("reason")
    assert reason.endswith("has reached stop_at_val_accuracy: 0.01")
    assert f"the run is over: {reason}" in caplog.text
    assert identity["end"] == {
        "stopped_by": "target", "rounds": 1, "labeled_samples": 10, "checkpoint": entry["uuid"],
    }  # fmt: skip
    state = checkpoint_state(folder / "checkpoints" / entry["uuid"])
    assert state["learner"]["step"] == SMALL["batches_per_round"]
    assert [row["round"] for row in read_rows(folder / "metrics.csv")] == ["0"]
    assert len(read_rows(folder / "queries.csv")) == 10

    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with caplog.at_level("INFO"):
        assert model_def.main(["--resume", str(folder)]) == 0
    said = f"nothing left to do: the run is finished after 1 rounds ({reason})"
    assert said in caplog.text
    assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    # Killed when the checkpoint was there and run.json did not know of it.
    del identity["end"]
    (folder / "run.json").write_text(json.dumps(identity))
    caplog.clear()
    with caplog.at_level("INFO"):
        assert model_def.main(["--resume", str(folder)]) == 0
    assert f"nothing left to do: the run is finished ({reason})" in caplog.text
    assert json.loads((folder / "run.json").read_text())["end"]["checkpoint"] == entry["uuid"]
    assert [row["round"] for row in read_rows(folder / "metrics.csv")] == ["0"]


def test_a_trial_on_a_cluster_stops_and_stays_stopped(tmp_path: Path) -> None:
    from tests.fake_master import FakeMaster, Trial
    from tests.reliability import processes
    from tests.test_cluster import experiment

    config = experiment(architecture="small_cnn", stop_below_uncertainty=10.0)
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(FakeMaster())
        master.metadata = {"mine": 1}
        trial = Trial(master, tmp_path, config)
        assert processes.wait(trial.start()) == 0, trial.log.read_text()
        assert master.refused == []
        reason = master.metadata["stop_reason"]
        assert master.metadata == {
            "mine": 1, "stopped_by": "low_uncertainty", "stop_reason": reason,
        }  # fmt: skip
        assert f"the run is over: {reason}" in trial.log.read_text()
        steps = [one["metadata"]["steps_completed"] for one in master.checkpoints]
        assert steps == [5]
        assert [one.steps for one in master.of_group("validation")] == [5]

        # As where the process was killed between its last checkpoint and its end.
        reports = list(master.reports)
        assert processes.wait(trial.start()) == 0, trial.log.read_text()
        assert f"nothing left to do: the run is finished ({reason})" in trial.log.read_text()
        assert master.refused == []
        assert master.reports == reports
        assert len(master.checkpoints) == 1
