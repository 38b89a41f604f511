"""Two simulated annotators: who labels what, what it costs, and that resumed runs end the same."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from active_learning import ActiveLearner, run
from data import Splits
from local.run import Request, run_locally
from reporting.figures import learning_curve
from reporting.metric_groups import minutes_curve_metrics
from tests.conftest import ROOT, SMALL, ask, part
from training.oracle import SimulatedOracle, TwoAnnotators, doubt
from training.pool import Pool

Build = Callable[..., ActiveLearner]
BOTH: dict[str, Any] = {
    "label_noise": 0.5,
    "seconds_per_label": 6.0,
    "expert_share": 0.5,
    "expert_seconds_per_label": 60.0,
}


def test_doubt_is_confident_disagreement() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [0, 0, 1.0]])
    values = doubt(probabilities, torch.tensor([1, 0, 1, 2])).tolist()
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    unsure = -0.4 * math.log(0.4) - 0.6 * math.log(0.3)
    expected = [-math.log(0.1) - entropy, -math.log(0.9) - entropy, -math.log(0.3) - unsure, 0.0]
    assert values == pytest.approx(expected, abs=1e-6)
    assert values[0] > values[2] > values[1]


def test_the_expert_gets_the_labels_that_the_network_doubts_most(
    make_learner: Build, digits: Splits
) -> None:
    learner = make_learner(**BOTH)
    truth = digits.train.labels
    cheap = SimulatedOracle.of_trial(make_learner(label_noise=0.5), learner.train_store)
    ask(learner)
    assert not learner.pool.labelled_by("expert").any()  # there is no network yet
    for round_ in (1, 2):
        learner.train()
        before = learner.pool.labelled_by("expert")
        unseen = learner.pool.labelled[~before[learner.pool.labelled]]
        proposal = ask(learner)
        asked = torch.cat([unseen, proposal.indices])
        given = cheap._answers[asked]
        order = doubt(learner.probabilities_of(asked), given).argsort(descending=True)
        by_expert = learner.pool.labelled_by("expert")
        new = (by_expert & ~before).nonzero().flatten()
        assert set(new.tolist()) == set(asked[order[:3]].tolist())
        assert int(by_expert.sum()) == 3 * round_
        labels = learner.pool.labels
        assert torch.equal(labels[by_expert], truth[: len(labels)][by_expert])
        others = learner.pool.labelled[~by_expert[learner.pool.labelled]]
        assert torch.equal(labels[others], cheap._answers[others])
        # Labels of 6 s, and as many labels again of 60 s as the expert has given.
        assert learner.annotation_minutes == pytest.approx(
            len(learner.pool.labelled) / 10 + 3 * round_
        )


def test_the_expert_errs_in_a_way_of_its_own(make_learner: Build, digits: Splits) -> None:
    learner = make_learner(**BOTH, expert_label_noise=0.5)
    oracle = SimulatedOracle.of_trial(learner, digits.train)
    assert isinstance(oracle, TwoAnnotators)
    wrong = [
        answers != digits.train.labels for answers in (oracle._answers, oracle._expert_answers)
    ]
    both = (wrong[0] & wrong[1]).double().mean().item()
    assert both == pytest.approx(0.25, abs=0.06)  # five standard deviations


def test_another_share_changes_no_other_random_draw(make_learner: Build) -> None:
    one, other = make_learner(**BOTH), make_learner(**{**BOTH, "expert_share": 0.0})
    assert torch.equal(ask(one).indices, ask(other).indices)
    assert torch.equal(one.pool.labels, other.pool.labels)


def test_going_on_from_any_step_ends_the_same(make_learner: Build) -> None:
    def go(learner: ActiveLearner, until: int) -> ActiveLearner:
        while learner.step < until:
            if learner.labels_due:
                ask(learner)
            learner.train_step()
        return learner

    whole = go(make_learner(**BOTH), 9)
    for stop in (2, 3, 5, 6):
        first, second = go(make_learner(**BOTH), stop), make_learner(**BOTH)
        second.load_state(*first.state())
        second.network.load_state_dict(first.network.state_dict())
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        go(second, 9)
        for name, value in whole.pool.tensors().items():
            torch.testing.assert_close(
                second.pool.tensors()[name], value, rtol=0, atol=0, equal_nan=True
            )
        assert second.annotation_minutes == whole.annotation_minutes


def test_the_budget_of_minutes_is_not_exceeded(make_learner: Build, digits: Splits) -> None:
    """The first round takes 1 minute, the others .6 of the one and 3 of the other annotator."""
    spent = []
    for budget in (4.5, 4.6, 8.1, 8.2):
        learner = make_learner(**BOTH, minutes_budget=budget)
        oracle = SimulatedOracle.of_trial(learner, learner.train_store)
        val = part(digits.val, 20)
        evaluations = list(run(learner, oracle, val, val))
        spent.append(evaluations[-1].annotation_minutes)
        assert learner.stop_reason is not None
        assert learner.stop_reason.rule == ("rounds" if budget == 8.2 else "minutes")
    assert spent == pytest.approx([1.0, 4.6, 4.6, 8.2])


def test_a_pool_of_an_earlier_version_knows_no_seconds() -> None:
    pool = Pool(3)
    tensors = pool.tensors()
    del tensors["seconds"]
    pool.load(tensors, pool.values())
    assert pool.seconds.isnan().all()


def settings_of(**changes: Any) -> tuple[str, ...]:
    values = {**SMALL, **BOTH, **changes}
    return tuple(f"hyperparameters.{name}={value}" for name, value in values.items())


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_it_down_and_resumes(tmp_path: Path) -> None:
    config, whole, resumed = ROOT / "configs" / "digits.yaml", tmp_path / "a", tmp_path / "b"
    assert run_locally(Request(config, output_dir=whole, settings=settings_of())) == 0
    rows = table(whole / "metrics.csv")
    assert [float(row["annotation_minutes"]) for row in rows] == pytest.approx([1.0, 4.6, 8.2])
    assert [row["expert_labels"] for row in rows] == ["", "3", "6"]
    names = [row["annotator"] for row in table(whole / "queries.csv")]
    assert (names.count("expert"), names.count("simulated")) == (6, 16)
    # As a kill after the second round would leave it.
    shutil.copytree(whole, resumed)
    entries = json.loads((resumed / "checkpoints.json").read_text())
    for entry in entries:
        if entry["round"] == 2:
            shutil.rmtree(resumed / "checkpoints" / entry["uuid"])
    left = [entry for entry in entries if entry["round"] < 2]
    (resumed / "checkpoints.json").write_text(json.dumps(left))
    assert run_locally(Request(Path(), resume=resumed)) == 0
    assert (resumed / "queries.csv").read_bytes() == (whole / "queries.csv").read_bytes()
    minutes = [row["annotation_minutes"] for row in table(resumed / "metrics.csv")]
    assert minutes == [row["annotation_minutes"] for row in rows]


def test_accuracy_is_drawn_against_minutes_where_labels_differ_in_cost() -> None:
    def width(minutes: list[float]) -> int:
        rows = [
            {"labeled_samples": labels, "annotation_minutes": one, "val_accuracy": 0.5}
            for labels, one in zip((10, 20, 40), minutes, strict=True)
        ]
        return int.from_bytes(learning_curve(rows, "run")[16:20], "big")  # of the PNG's header

    assert width([1, 2, 5]) == pytest.approx(1.5 * width([1, 2, 4]), abs=2)


def test_the_cluster_gets_a_curve_of_minutes() -> None:
    row = {"val_accuracy": 0.5, "val_auc": 0.75, "annotation_minutes": 3.5, "labeled_samples": 9}
    expected = {"accuracy_by_minutes": 0.5, "auc_by_minutes": 0.75, "epochs": 3.5}
    assert minutes_curve_metrics([row]) == expected
