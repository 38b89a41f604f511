"""MaxHerding, UHerding, TCM, DropQuery, FALCUN and EPIG: slow references and hand-made pools."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from query_strategies import PoolScores, disagreement, get_strategy, herding, information, typical
from query_strategies.uncertainty import margin_uncertainty, mutual_information

from . import strategy_reference as reference


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def softmax(passes: int, n: int, classes: int, seed: int = 0) -> Tensor:
    return (2 * normal(passes, n, classes, seed=seed)).softmax(dim=-1)


def pool_of(
    probabilities: Tensor | None = None,
    embeddings: Tensor | None = None,
    labelled: Tensor | None = None,
) -> PoolScores:
    n = len(embeddings) if embeddings is not None else 0
    n = probabilities.shape[1] if probabilities is not None else n
    return PoolScores(torch.arange(n) * 7 + 3000, probabilities, embeddings, labelled)


def positions(name: str, pool: PoolScores, k: int, seed: int = 0) -> list[int]:
    picks = get_strategy(name, 10).select(pool, k, seeded(seed))
    return ((picks - 3000) // 7).tolist()


def array(values: Tensor) -> reference.Array:
    return values.double().numpy()


# --- MaxHerding and UHerding ------------------------------------------------------------------


def assert_greedy(
    picked: list[int], x: Tensor, known: Tensor, radius: float, weights: reference.Array
) -> None:
    """Each pick has the largest gain at its time, up to rounding between equals."""
    assert len(set(picked)) == len(picked)
    for step, pick in enumerate(picked):
        gains = reference.herding_gains(array(x), array(known), picked[:step], radius, weights)
        assert gains[pick] >= gains.max() - 1e-5


@pytest.mark.parametrize("evaluated", [3, 64])
@pytest.mark.parametrize("labelled", [0, 5])
@pytest.mark.parametrize("seed", range(2))
def test_max_herding_is_the_greedy_maximum(
    seed: int, labelled: int, evaluated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(herding, "EVALUATED", evaluated)
    x, known = normal(40, 4, seed=seed), normal(labelled, 4, seed=seed + 50)
    picked = positions("max_herding", pool_of(None, x, known), 12)
    assert_greedy(picked, x, known, 1.0, np.ones(40))


def test_max_herding_takes_the_middle_of_the_largest_groups_first() -> None:
    direction = torch.eye(3)[torch.tensor([0] * 9 + [1] * 5 + [2] * 3)]
    x = direction + 0.1 * torch.nn.functional.normalize(normal(17, 3))
    for start in (0, 9, 14):
        x[start] = direction[start]
    lengths = 1 + torch.rand(17, 1, generator=seeded(1))  # directions count, not lengths
    picked = positions("max_herding", pool_of(None, x * lengths), 3)
    assert [direction[p].argmax().item() for p in picked] == [0, 1, 2]
    labelled = torch.tensor([[2.0, 0, 0]])
    assert positions("max_herding", pool_of(None, x, labelled), 1)[0] in range(9, 14)


def test_half_precision_of_a_large_pool_gives_nearly_the_same_cover(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = normal(300, 6)
    unit = torch.nn.functional.normalize(x)

    def coverage(picked: list[int]) -> float:
        return float(torch.exp(-torch.cdist(unit, unit[picked]).square().amin(dim=1)).mean())

    exact = coverage(positions("max_herding", pool_of(None, x), 30))
    monkeypatch.setattr(herding, "FLOAT32_UP_TO", 10)
    assert coverage(positions("max_herding", pool_of(None, x), 30)) > 0.999 * exact


def test_a_random_part_stands_for_a_large_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(herding, "MAX_POOL", 30)
    x = normal(100, 4)
    part = torch.randperm(100, generator=seeded(3))[:30].sort().values
    picked = positions("max_herding", pool_of(None, x), 50, seed=3)
    inside = [part.tolist().index(position) for position in picked[:10]]
    assert_greedy(inside, x[part], x[:0], 1.0, np.ones(30))
    assert len(set(picked)) == 50


@pytest.mark.parametrize("seed", range(3))
def test_u_herding_weighs_by_uncertainty_and_shrinks_its_radius(seed: int) -> None:
    x, known = normal(40, 4, seed=seed), normal(6, 4, seed=seed + 50)
    probabilities = softmax(3, 40, 3, seed)
    unit = reference.unit(array(known))
    radius = min(
        reference.squared_distance(a, b) ** 0.5 for i, a in enumerate(unit) for b in unit[:i]
    )
    weights = reference.margins(array(probabilities))
    picked = positions("u_herding", pool_of(probabilities, x, known), 12)
    assert_greedy(picked, x, known, radius, weights)


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_u_herding_weighs_by_calibrated_probabilities(temperature: float) -> None:
    x, known, logits = normal(40, 4), normal(6, 4, seed=50), 3 * normal(3, 40, 3)
    pool = replace(pool_of(logits.softmax(dim=-1), x, known), temperature=temperature)
    unit = reference.unit(array(known))
    radius = min(
        reference.squared_distance(a, b) ** 0.5 for i, a in enumerate(unit) for b in unit[:i]
    )
    weights = reference.margins(array((logits / temperature).softmax(dim=-1)))
    picked = positions("u_herding", pool, 12)
    assert_greedy(picked, x, known, radius, weights)
    assert picked != positions("u_herding", replace(pool, temperature=1.0), 12)


def test_the_temperature_decides_between_two_close_classes_and_three_distant_ones() -> None:
    """Margins at 0.2: .832 and .886; at 1: .234 and .2; at 3: .08 and .061."""
    probabilities = torch.tensor([[[0.617, 0.383, 0, 0], [0.4, 0.2, 0.2, 0.2]]])
    x = torch.eye(2)
    for temperature, expected in ((0.2, 0), (1.0, 1), (3.0, 1)):
        pool = replace(pool_of(probabilities, x), temperature=temperature)
        assert positions("u_herding", pool, 1) == [expected]


def test_u_herding_is_margin_when_labelled_images_lie_close_together() -> None:
    x, probabilities = normal(60, 6), softmax(2, 60, 4)
    known = normal(1, 6, seed=1) + torch.tensor([[0.0], [0.02]])
    pool = pool_of(probabilities, x, known)
    assert positions("u_herding", pool, 20) == positions("margin", pool, 20)


def test_u_herding_ignores_copies_for_its_radius() -> None:
    known = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert herding._smallest_squared_distance(known) == pytest.approx(2)
    assert herding._smallest_squared_distance(known[:2]) == 1
    assert herding._smallest_squared_distance(None) == 1


# --- TCM ------------------------------------------------------------------------------------


def test_tcm_is_typiclust_for_few_labels_and_margin_for_many() -> None:
    x, probabilities = normal(80, 4), softmax(2, 80, 3)
    few, enough = normal(29, 4, seed=1), normal(3 * typical.LABELS_PER_CLASS, 4, seed=1)
    for labelled, name in ((None, "typiclust"), (few, "typiclust"), (enough, "margin")):
        pool = pool_of(probabilities, x, labelled)
        assert positions("tcm", pool, 10) == positions(name, pool, 10)


# --- DropQuery ------------------------------------------------------------------------------


def classified(labels: list[list[int]], classes: int = 3) -> Tensor:
    """Passes that give these labels: probabilities [T, n, classes] from labels [T][n].

    The first pass is the surest, so that it decides the mean over passes.
    """
    sure = torch.nn.functional.one_hot(torch.tensor(labels), classes).float()
    strength = torch.full((len(labels), 1, 1), 0.3)
    strength[0] = 1.0
    return strength * sure + (1 - strength) / classes


def test_drop_query_clusters_what_most_passes_classify_otherwise() -> None:
    # The first pass says 0 of all; the other three agree on the last twenty only.
    otherwise = [1] * 10 + [0] * 20
    probabilities = classified([[0] * 30, otherwise, otherwise, otherwise])
    around = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    x = torch.cat([around, around + 50, 10 * normal(20, 2)])
    for seed in range(4):
        assert sorted(positions("drop_query", pool_of(probabilities, x), 2, seed)) == [0, 5]


def test_drop_query_fills_up_with_the_most_disagreement() -> None:
    passes = [[0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 1]]
    pool = pool_of(classified(passes), normal(4, 2))
    # Three, one, none and two of four passes disagree.
    for count, expected in ((1, [0]), (2, [0, 3]), (3, [0, 1, 3])):
        assert sorted(positions("drop_query", pool, count)) == expected


# --- FALCUN ---------------------------------------------------------------------------------


def test_falcun_draws_by_uncertainty_and_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disagreement, "FALCUN_GAMMA", 2)
    probabilities = softmax(1, 5, 3, seed=4)
    chances = reference.falcun_chances(array(probabilities[0]), 3, 2)
    assert sum(chances.values()) == pytest.approx(1)
    runs, generator = 600, seeded(1)
    select = get_strategy("falcun", 10).select
    seen = Counter(
        tuple(((select(pool_of(probabilities), 3, generator) - 3000) // 7).tolist())
        for _ in range(runs)
    )
    statistic = sum((seen[t] - runs * p) ** 2 / (runs * p) for t, p in chances.items())
    # 59 degrees of freedom: chi-squared has mean 59, standard deviation 10.9.
    assert statistic < 59 + 5 * 10.9


def test_falcun_does_not_ask_the_same_question_twice() -> None:
    """Ten copies of one unsure prediction, and another kind of doubt."""
    same, other = [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]
    probabilities = torch.tensor([[same] * 10 + [other] + [[0.98, 0.01, 0.01]] * 10])
    for seed in range(5):
        picked = positions("falcun", pool_of(probabilities), 2, seed)
        assert 10 in picked
        assert len(set(picked) & set(range(10))) == 1


# --- EPIG -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [50, 2**20])
@pytest.mark.parametrize("seed", range(2))
def test_epig_is_the_mean_information_about_the_targets(
    seed: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(information, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(information, "EPIG_TARGETS", 5)
    probabilities = softmax(4, 20, 3, seed)
    targets = torch.randperm(20, generator=seeded(seed))[:5].tolist()
    gains = reference.expected_predictive_gain(array(probabilities), targets)
    expected = reference.ranking(gains, 12)
    assert positions("epig", pool_of(probabilities), 12, seed) == expected


def test_epig_wants_what_matters_for_the_others() -> None:
    """BALD takes the image whose doubt is its own; EPIG the one whose doubt the pool shares."""
    shared = [[0.8, 0.2], [0.2, 0.8], [0.8, 0.2], [0.2, 0.8]]  # passes 0, 2 against 1, 3
    own = [[0.99, 0.01], [0.99, 0.01], [0.01, 0.99], [0.01, 0.99]]  # 0, 1 against 2, 3
    probabilities = torch.tensor([own, *[shared] * 11]).transpose(0, 1)
    assert mutual_information(probabilities).argmax() == 0
    assert positions("bald", pool_of(probabilities), 1) == [0]
    assert positions("epig", pool_of(probabilities), 1) == [1]
    assert margin_uncertainty(probabilities).tolist() == pytest.approx([1.0] * 12)
