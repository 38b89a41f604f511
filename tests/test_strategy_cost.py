"""benchmarks.strategy_cost, on a pool small enough for a test."""

from __future__ import annotations

from pathlib import Path

from benchmarks import strategy_cost
from tests.reliability.processes import read_rows


def test_a_row_for_every_strategy(tmp_path: Path) -> None:
    output = tmp_path / "cost.csv"
    arguments = ["--candidates", "300", "--picks", "120", "--strategies", "margin", "batch_bald"]
    assert strategy_cost.main([*arguments, "--output", str(output)]) == 0
    rows = read_rows(output)
    assert [(row["strategy"], row["picks"]) for row in rows] == [
        ("margin", "120"), ("batch_bald", "100"),
    ]  # fmt: skip
    for row in rows:
        assert float(row["seconds"]) >= 0
        assert float(row["megabytes"]) > -50


def test_made_up_scores_are_whole() -> None:
    scores = strategy_cost.made_up_scores(50, "cpu")
    assert scores.probabilities is not None
    assert scores.probabilities.sum(2).sub(1).abs().max() < 1e-5
    assert scores.embeddings is not None
    assert scores.embeddings.shape == (50, strategy_cost.DIMENSIONS)
    assert scores.embeddings.isfinite().all()
    assert 0.2 < (scores.embeddings == 0).float().mean() < 0.8
