"""The benchmark of few labels: a tiny real study in two goes, and its table."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from active_learning import ActiveLearner, label_round
from benchmarks import few_labels
from benchmarks.learner_variants import CutMix, HerdingFirst, Mixing, Mixup, PseudoLabels
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
    monkeypatch.setattr(few_labels, "COMMON", COMMON)
    monkeypatch.setattr(few_labels, "RECIPES", RECIPES)
    return [
        "--config",
        str(config),
        "--data-dir",
        str(tmp_path),
        "--output",
        str(tmp_path / "rows.csv"),
    ]


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
        found = few_labels.accuracy(learner, [state], averaging, digits.test)
        assert found == learner.evaluate(digits.val, digits.test).test["accuracy"]


def test_networks_that_learn_from_the_same_labels(digits: Splits) -> None:
    hp = Hyperparameters.from_mapping(small_values(batches_per_round=8))
    learner = ActiveLearner(hp, digits.train, 0)
    first, averaged = few_labels.trained(learner, SimulatedOracle.of_trial(learner, digits.train))
    other, _ = few_labels.trained_on_same_labels(learner, 1)
    again, _ = few_labels.trained_on_same_labels(learner, 1)
    name = "classifier.weight"
    assert not torch.equal(first[name], averaged[name])
    assert not torch.equal(first[name], other[name])
    assert torch.equal(other[name], again[name])
    # The mean of two networks is not that of one of them, and does not depend on their order.
    one, two, both = (
        few_labels.accuracy(learner, states, False, digits.test)
        for states in ([first], [other], [first, other])
    )
    assert both == few_labels.accuracy(learner, [other, first], False, digits.test)
    assert both != one or both != two


class TestMixing:
    """Known answers on images whose grey level names them."""

    @staticmethod
    def mixed(kind: type[Mixing], digits: Splits, seed: int) -> tuple[Tensor, Mixing]:
        """Mixtures of black and white images, and the learner."""
        learner = kind(Hyperparameters.from_mapping(small_values()), digits.train, 0)
        black, white = torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8)
        return learner._mixed(black, white, torch.Generator().manual_seed(seed)), learner

    def test_shares_of_images_and_losses_agree(self, digits: Splits) -> None:
        shares = set()
        for kind in (Mixup, CutMix):
            for seed in range(20):
                mixed, learner = self.mixed(kind, digits, seed)
                assert float(mixed.mean()) == pytest.approx(1 - learner._share, abs=1e-6)
                if kind is CutMix:
                    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
                shares.add(learner._share)
        assert len(shares) > 30
        assert all(0 <= share <= 1 for share in shares)

    def test_the_loss_is_mixed_in_the_same_ratio(self, digits: Splits) -> None:
        _, learner = self.mixed(Mixup, digits, 0)
        learner._share, learner._partners = 0.25, torch.tensor([1, 0])
        logits, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        own, other = (ActiveLearner._loss(learner, logits, t, t) for t in (targets, 1 - targets))
        found = learner._loss(logits, targets, targets)
        torch.testing.assert_close(found, 0.25 * own + 0.75 * other)

    def test_a_run_trains(self, digits: Splits) -> None:
        losses = set()
        for kind in (ActiveLearner, Mixup, CutMix):
            learner = kind(Hyperparameters.from_mapping(small_values()), digits.train, 0)
            label_round(learner, SimulatedOracle.of_trial(learner, digits.train))
            learner.train()
            losses.add(float(learner.meter.take()[0]))
        assert len(losses) == 3


def test_first_images_by_max_herding(digits: Splits) -> None:
    hp = Hyperparameters.from_mapping(small_values(initial_pool="pixels"))
    chosen = [
        set(kind(hp, digits.train, 0).propose().indices.tolist())
        for kind in (ActiveLearner, HerdingFirst)
    ]
    assert chosen[0] != chosen[1]


def test_pseudo_labels_replace_half_of_the_late_batches(digits: Splits) -> None:
    hp = Hyperparameters.from_mapping(small_values(batches_per_round=6))
    learner = PseudoLabels(hp, digits.train, 0)
    oracle = SimulatedOracle.of_trial(learner, digits.train)
    while learner.round < len(learner.query_sizes) - 1:
        label_round(learner, oracle)
        learner.train()
    label_round(learner, oracle)
    for _ in range(3):
        learner.train_step()
    unlabelled = learner.pool.unlabelled
    assert not torch.isin(learner._batches, unlabelled).any()
    before = learner.pool.labels.clone()
    probability, guesses = learner.probabilities_of(unlabelled).max(1)
    learner.train_step()
    guessed = torch.isin(learner._batches, unlabelled)
    assert guessed[:3].sum() == 0
    assert guessed[3:, ::2].all()
    assert not guessed[3:, 1::2].any()
    # All are of the surer half, and their targets are the network's guesses at that moment.
    drawn = torch.searchsorted(unlabelled, learner._batches[3:, ::2].reshape(-1).contiguous())
    assert float(probability[drawn].min()) >= float(probability.median())
    assert torch.equal(learner._targets[unlabelled[drawn]], guesses[drawn])
    assert torch.equal(learner.pool.labels, before)
    learner.train()
    assert learner.finished
