"""Uncertainty strategies against the obvious formulas and hand-made pools."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from query_strategies import PoolScores, get_strategy, predictive_entropy
from query_strategies.uncertainty import margin_uncertainty, mutual_information

from . import strategy_reference as reference

FORMULAS: dict[str, Callable[[reference.Array], reference.Array]] = {
    "entropy": reference.entropies,
    "margin": reference.margins,
    "least_confidence": reference.least_confidences,
    "bald": reference.mutual_informations,
}


def pool_of(probabilities: Tensor) -> PoolScores:
    n = probabilities.shape[1]
    return PoolScores(torch.arange(n) * 11 + 5000, probabilities, None, None)


def positions(name: str, probabilities: Tensor, k: int) -> list[int]:
    picks = get_strategy(name, 10).select(pool_of(probabilities), k, torch.Generator())
    return ((picks - 5000) // 11).tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FORMULAS)
def test_ranking_is_that_of_the_formula(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (2 * torch.randn(4, 60, 5, generator=generator)).softmax(dim=-1)
    expected = reference.ranking(FORMULAS[name](probabilities.double().numpy()), 25)
    assert positions(name, probabilities, 25) == expected


@pytest.mark.parametrize(
    ("score", "formula"),
    [
        (predictive_entropy, reference.entropies),
        (mutual_information, reference.mutual_informations),
        (margin_uncertainty, reference.margins),
    ],
)
def test_scores_are_those_of_the_formula(
    score: Callable[[Tensor], Tensor], formula: Callable[[reference.Array], reference.Array]
) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (8 * torch.randn(5, 50, 3, generator=generator)).softmax(dim=-1)
    np.testing.assert_allclose(
        score(probabilities).numpy(), formula(probabilities.double().numpy()), atol=2e-6
    )


@pytest.mark.parametrize("name", FORMULAS)
def test_ties_go_to_the_smaller_index(name: str) -> None:
    pair = torch.tensor([[[0.5, 0.5], [0.9, 0.1]], [[0.9, 0.1], [0.9, 0.1]]])
    probabilities = pair.repeat(1, 30, 1)  # even positions uncertain, odd ones not
    assert positions(name, probabilities, 40) == [*range(0, 60, 2), *range(1, 20, 2)]


def test_strategies_differ_where_they_should() -> None:
    """Three classes: each of the three measures has another favourite."""
    probabilities = torch.tensor(
        [[[0.51, 0.48, 0.01], [0.52, 0.24, 0.24], [0.44, 0.37, 0.19], [0.98, 0.01, 0.01]]]
    )
    assert positions("margin", probabilities, 1) == [0]
    assert positions("entropy", probabilities[:, :2], 1) == [1]
    assert positions("least_confidence", probabilities, 1) == [2]


def test_bald_wants_disagreement_and_not_noise() -> None:
    noisy = [[0.5, 0.5], [0.5, 0.5]]  # every pass unsure: nothing to learn
    disputed = [[0.9, 0.1], [0.1, 0.9]]  # each pass sure, of something else
    probabilities = torch.tensor([noisy, disputed]).transpose(0, 1)
    assert positions("bald", probabilities, 1) == [1]
    assert positions("entropy", probabilities, 1) == [0]
    assert mutual_information(probabilities)[0].item() == pytest.approx(0, abs=1e-7)


def test_margin_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="two classes"):
        positions("margin", torch.ones(1, 3, 1), 1)
