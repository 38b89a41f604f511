"""The benchmarks of annotators and of the first labels: equal minutes, tiny runs, their tables."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

from benchmarks import annotator_prices, annotators, first_labels
from benchmarks.frozen_features import Features
from tests.conftest import small_values
from training.hyperparameters import Hyperparameters


@pytest.mark.parametrize("arm", annotators.ARMS)
@pytest.mark.parametrize("expert_seconds", [20.0, 60.0])
def test_every_round_takes_the_same_minutes(arm: str, expert_seconds: float) -> None:
    settings = annotators.settings_of(arm, 0.1, expert_seconds, 8.0)
    hp = Hyperparameters.from_mapping(settings)
    first, *others = hp.query_sizes(10**6)
    assert first * hp.seconds_per_label == 480
    for size in others:
        expert = hp.expert_labels(size) * hp.expert_seconds_per_label
        assert size * hp.seconds_per_label + expert == 480


@pytest.fixture(scope="module")
def features() -> Features:
    """Three classes of overlapping Gaussians in six dimensions."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, 6, generator=generator)

    def split(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(0, 3, (count,), generator=generator)
        return centres[labels] + torch.randn(count, 6, generator=generator), labels

    return Features(split(600), split(100), split(100), 3)


def test_the_arms_on_frozen_features(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotator_prices, "ROUNDS", 4)
    rows = [
        {k: str(v) for k, v in annotator_prices.run_once("made up", features, *run).items()}
        for run in ((arm, 0.3, 20.0, seed) for arm in annotators.ARMS for seed in (0, 1))
    ]
    for row in rows:
        assert row.keys() == set(annotators.COLUMNS)
        assert row["minutes"] == "8.0 16.0 24.0 32.0"
    wrong = {(row["arm"], row["seed"]): int(row["wrong_labels"].split()[-1]) for row in rows}
    for seed in "01":
        assert wrong["expert", seed] == 0
        assert wrong["both", seed] < wrong["both, at random", seed]
    table = annotators.summary(rows)
    assert [line[3] for line in table] == list(annotators.ARMS)
    assert [line[:3] + line[4:5] for line in table] == [["made up", "30%", "20 s", "2"]] * 4
    assert table[2][-1] == ""


def test_the_arms_of_whole_runs() -> None:
    values: dict[str, Any] = small_values(rounds=2, candidate_pool_size=100)
    arguments = argparse.Namespace(noise=0.5, expert_seconds=20.0, minutes_per_round=4.0)
    rows = {arm: annotators.run_once(values, arm, 0, arguments) for arm in annotators.ARMS}
    assert {row["minutes"] for row in rows.values()} == {"4.0 8.0"}
    assert rows["expert"]["wrong_labels"] == "0 0"
    assert rows["both"]["labels"] == "48 72"


def test_a_typical_image_labels_its_cluster() -> None:
    labels = torch.arange(160) % 16
    centres = torch.nn.functional.one_hot(labels, 16).float()
    embeddings = centres + 0.01 * torch.randn(160, 16, generator=torch.Generator().manual_seed(0))
    for strategy in first_labels.STRATEGIES:
        chosen = first_labels.chosen_by(strategy, embeddings, 16, seed=0)
        accuracy = first_labels.nearest_label_accuracy(embeddings, labels, chosen)
        assert accuracy == len(labels[chosen].unique()) / 16 or strategy == "random"
        assert accuracy == 1 or strategy == "random"
