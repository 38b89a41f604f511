"""benchmarks.frozen_features on made-up embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import frozen_features
from benchmarks.frozen_features import Features, Regime
from benchmarks.label_efficiency import COLUMNS
from reporting.files import csv_text
from tools.compare.comparison import compare
from tools.compare.runs import find_runs

REGIME = Regime("tiny", first=12, query=6, budget=30)


@pytest.fixture(scope="module")
def features() -> Features:
    """Three classes of overlapping Gaussians in eight dimensions."""
    generator = torch.Generator().manual_seed(0)
    centres = 1.2 * torch.randn(3, 8, generator=generator)

    def split(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(0, 3, (count,), generator=generator)
        return centres[labels] + torch.randn(count, 8, generator=generator), labels

    return Features(split(300), split(150), split(150), 3)


def test_the_head_is_the_optimum_of_its_loss(features: Features) -> None:
    inputs, labels = features.pool
    weights = frozen_features.train_head(inputs, labels, 3).requires_grad_()
    outputs = frozen_features.logits(inputs, weights)
    loss = torch.nn.functional.cross_entropy(outputs, labels)
    loss = loss + frozen_features.PENALTY * weights[:-1].square().sum()
    loss.backward()
    assert weights.grad is not None
    assert weights.grad.abs().max() < 1e-3


@pytest.mark.parametrize("strategy", frozen_features.STRATEGIES)
def test_a_run_spends_its_budget_and_repeats_itself(features: Features, strategy: str) -> None:
    row = frozen_features.run_once(features, REGIME, strategy, 1)
    assert row["labels"] == "12 18 24 30"
    assert row.keys() == set(COLUMNS)
    accuracy = [float(text) for text in row["test_accuracy"].split()]
    assert min(accuracy) > 0.4
    again = frozen_features.run_once(features, REGIME, strategy, 1)
    assert again["val_accuracy"] == row["val_accuracy"]


def test_a_seed_starts_all_strategies_alike(features: Features) -> None:
    rows = [frozen_features.run_once(features, REGIME, name, 2) for name in ("random", "margin")]
    assert len({row["val_accuracy"].split()[0] for row in rows}) == 1


def test_the_comparison_reads_it(features: Features, tmp_path: Path) -> None:
    rows = [
        frozen_features.run_once(features, REGIME, name, seed)
        for name in ("random", "margin")
        for seed in (0, 1)
    ]
    settings = {"hyperparameters": {"dataset": "made up"}}
    (tmp_path / "study.json").write_text(json.dumps(settings), encoding="utf-8")
    table = csv_text(COLUMNS, ([row[column] for column in COLUMNS] for row in rows))
    (tmp_path / "runs.csv").write_text(table, encoding="utf-8")
    assert set(compare(find_runs([tmp_path])).groups) == {"random", "margin"}
