"""The benchmark of few labels: a tiny real study in two goes, and its table."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from active_learning import ActiveLearner, label_round
from benchmarks import few_labels
from benchmarks.records import read_records
from data import Splits
from tests.conftest import small_values
from training.hyperparameters import Hyperparameters
from training.oracle import SimulatedOracle

COMMON = {"rounds": 2, "initial_labeled_size": 20, "samples_to_label": 20, "label_budget": 40}
RECIPES: dict[str, dict[str, int]] = {"base": {}, "longer": {"batches_per_round": 8}}

WAYS = [*itertools.product(("last", "averaged"), ("upright", "rotations"))]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of a small study on the digits."""
    config = tmp_path / "small.yaml"
    values = small_values(flips_and_rotations=True, batches_per_round=4)
    config.write_text(yaml.safe_dump({"hyperparameters": values}))
    monkeypatch.setattr(few_labels, "CONFIG", config)
    monkeypatch.setattr(few_labels, "COMMON", COMMON)
    monkeypatch.setattr(few_labels, "RECIPES", RECIPES)
    return ["--data-dir", str(tmp_path), "--output", str(tmp_path / "rows.csv")]


def test_a_study_continues_where_it_was_stopped(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert few_labels.main([*command, "--seeds", "0", "--recipes", "longer"]) == 0
    first = read_records(tmp_path / "rows.csv")
    assert few_labels.main([*command, "--seeds", "0", "1"]) == 0
    rows = read_records(tmp_path / "rows.csv")
    assert rows[: len(first)] == first
    keys = {tuple(row[name] for name in few_labels.KEY) for row in rows}
    assert len(keys) == len(rows) == 2 * 2 * 4
    assert {row["labels"] for row in rows} == {"40"}
    # The four evaluations of one run differ, and so do the recipes.
    assert len({row["test_accuracy"] for row in rows if row["seed"] == "0"}) > 4
    longer, base = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[-2:])
    assert base[0] == "| base"
    assert base[2] == longer[2] == "2"
    assert base[8] == ""


def test_gains_are_paired_by_seed() -> None:
    """Known answers: the mean of 0.01 and 0.03 is 0.02, and its interval 12.706 * 0.01."""
    rows = []
    for recipe, gains in (("rounds of 200 steps", (0.0, 0.0)), ("other", (0.01, 0.03))):
        for seed, gain in enumerate(gains):
            for weights, inference in itertools.product(
                ("last", "averaged"), ("upright", "rotations")
            ):
                more = 0.002 * (inference == "rotations") - 0.001 * (weights == "averaged")
                accuracy = str(0.9 + seed / 100 + gain + more)
                cells = (recipe, "none", str(seed), weights, inference, "250", "0.5", accuracy)
                rows.append(dict(zip(few_labels.COLUMNS, (*cells, "10", "1"), strict=True)))
    line = few_labels.summary(rows).splitlines()[-1].split(" | ")
    assert line[6:9] == ["+0.0020 ± 0.0000", "-0.0010 ± 0.0000", "+0.0200 ± 0.1271"]


def test_unknown_recipe(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert few_labels.main([*command, "--recipes", "lnger"]) == 2
    assert "--recipes 'lnger': unknown; allowed are base, longer" in capsys.readouterr().err


def test_evaluation_is_that_of_the_learner(digits: Splits) -> None:
    for averaging in (False, True):
        values = small_values(flips_and_rotations=True, average_rotations=averaging)
        learner = ActiveLearner(Hyperparameters.from_mapping(values), digits.train, 0)
        label_round(learner, SimulatedOracle(digits.train.labels))
        learner.train()
        state = learner.network.state_dict()
        found = few_labels.accuracy(learner, state, averaging, digits.test)
        assert found == learner.evaluate(digits.val, digits.test).test["accuracy"]
