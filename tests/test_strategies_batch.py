"""The batch strategies against the obvious slow ones and hand-made pools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from query_strategies import (
    PoolScores,
    clustering,
    get_strategy,
    information,
    predictive_entropy,
    typical,
)
from query_strategies.balanced import equal_shares
from query_strategies.geometry import Points
from query_strategies.uncertainty import mutual_information

from . import strategy_reference as reference


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def softmax(passes: int, n: int, classes: int, seed: int = 0) -> Tensor:
    return (2 * normal(passes, n, classes, seed=seed)).softmax(dim=-1)


def two_class(uncertainty: Tensor) -> Tensor:
    """Probabilities [1, n, 2] whose uncertainty grows with `uncertainty` in [0, 0.5]."""
    return torch.stack([1 - uncertainty, uncertainty], dim=-1)[None]


def pool_of(
    probabilities: Tensor | None = None,
    embeddings: Tensor | None = None,
    labelled: Tensor | None = None,
) -> PoolScores:
    n = len(embeddings) if embeddings is not None else 0
    n = probabilities.shape[1] if probabilities is not None else n
    return PoolScores(torch.arange(n) * 7 + 3000, probabilities, embeddings, labelled)


def positions(name: str, pool: PoolScores, k: int, seed: int = 0, factor: float = 10) -> list[int]:
    picks = get_strategy(name, factor).select(pool, k, seeded(seed))
    return ((picks - 3000) // 7).tolist()


# --- BADGE ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_badge_is_d2_sampling_of_the_gradients(seed: int) -> None:
    probabilities, x = softmax(2, 60, 4, seed), normal(60, 6, seed=seed)
    mean = probabilities.mean(dim=0)
    guess = torch.eye(4)[mean.argmax(dim=1)]
    gradients = ((mean - guess)[:, :, None] * x[:, None, :]).flatten(1)
    first = gradients.square().sum(dim=1).argmax(dim=0, keepdim=True)
    expected = clustering.sample_by_distance(Points.of(gradients), 15, seeded(3), first=first)
    assert positions("badge", pool_of(probabilities, x), 15, seed=3) == expected.tolist()
    assert expected[0] == first


def test_badge_leaves_images_the_model_is_sure_of_to_the_last() -> None:
    uncertainty = torch.zeros(30)
    uncertainty[10:15] = 0.4
    pool = pool_of(two_class(uncertainty), normal(30, 4))
    for seed in range(10):
        picked = positions("badge", pool, 6, seed)
        # A sure image has gradient zero, itself far from the others, so one of them is drawn.
        assert len(set(picked) & set(range(10, 15))) == 5


# --- BatchBALD, PowerBALD -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_batch_bald_is_the_greedy_maximum_of_the_joint_information(seed: int) -> None:
    probabilities = softmax(5, 12, 3, seed)
    expected = reference.batch_bald(probabilities.double().numpy(), 4)
    assert positions("batch_bald", pool_of(probabilities), 4) == expected


@pytest.mark.parametrize("limit", [1, 20, 200])
def test_batch_bald_with_sampled_labels_comes_close(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(information, "MAX_CONFIGURATIONS", limit)
    probabilities = softmax(6, 15, 3, seed=1)
    exact = probabilities.double().numpy()
    best = reference.joint_information(exact, reference.batch_bald(exact, 4))
    picked = positions("batch_bald", pool_of(probabilities), 4)
    share = {1: 0.8, 20: 0.95, 200: 0.98}[limit]
    assert reference.joint_information(exact, picked) >= share * best


def test_sampled_configurations_keep_the_gains_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights stay a distribution, and averaging the posteriors gives back the prior."""
    monkeypatch.setattr(information, "MAX_CONFIGURATIONS", 3000)
    probabilities = softmax(4, 9, 3)
    weights, posterior = torch.ones(1), torch.full((1, 4), 0.25)
    for i in range(9):
        weights, posterior = information._extend(weights, posterior, probabilities[:, i], seeded(i))
    assert 1500 < len(weights) <= 3000
    assert weights.sum().item() == pytest.approx(1, abs=1e-4)
    assert posterior.sum(dim=1).allclose(torch.ones(len(posterior)), atol=1e-4)
    assert (weights @ posterior).tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_batch_bald_does_not_ask_the_same_thing_twice() -> None:
    """Three passes; copies of a question that settles pass 0 or not, and one that splits 1, 2."""
    first = torch.tensor([[1.0, 0], [0, 1], [0, 1]])  # pass 0 against 1 and 2
    other = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])  # less sure
    probabilities = torch.stack([first, first, first, other], dim=1)
    assert positions("batch_bald", pool_of(probabilities), 2) == [0, 3]
    assert positions("bald", pool_of(probabilities), 2) == [0, 1]


def test_batch_bald_refuses_batches_it_cannot_tell_apart() -> None:
    with pytest.raises(ValueError, match="at most 100 images at a time, not 101"):
        positions("batch_bald", pool_of(softmax(2, 150, 2)), 101)
    assert len(positions("batch_bald", pool_of(softmax(2, 5, 2)), 1000)) == 5


def test_power_bald_draws_in_proportion_to_the_score() -> None:
    probabilities = softmax(4, 5, 3)
    chances = mutual_information(probabilities)
    chances = chances / chances.sum()
    runs = 800
    counts = torch.zeros(5)
    for seed in range(runs):
        counts[positions("power_bald", pool_of(probabilities), 1, seed)[0]] += 1
    deviation = (chances * (1 - chances) * runs).sqrt()
    assert ((counts - runs * chances).abs() < 4 * deviation).all()


# --- k-means hybrids ------------------------------------------------------------------------


def test_weighted_k_means_leans_to_the_uncertain() -> None:
    line = torch.tensor([[0.0], [4.0], [10.0]])
    even, uneven = torch.full((3,), 0.4), torch.tensor([0.01, 0.01, 0.5])
    assert positions("weighted_k_means", pool_of(two_class(even), line), 1) == [1]
    assert positions("weighted_k_means", pool_of(two_class(uneven), line), 1) == [2]


def test_weighted_k_means_takes_only_prefiltered_candidates() -> None:
    uncertainty = 0.5 * torch.rand(200, generator=seeded(1))
    pool = pool_of(two_class(uncertainty), normal(200, 3))
    allowed = set(reference.ranking(uncertainty.double().numpy(), 30))
    assert set(positions("weighted_k_means", pool, 10, factor=3)) <= allowed
    assert set(positions("cluster_margin", pool, 10, factor=3)) <= allowed


def test_cluster_margin_takes_from_small_clusters_first_in_turn() -> None:
    groups = torch.tensor([[0.0, 0], [90, 0], [0, 90]]).repeat_interleave(
        torch.tensor([4, 10, 16]), dim=0
    )
    pool = pool_of(two_class(torch.full((30,), 0.4)), groups + 0.01 * normal(30, 2))
    group = [0] * 4 + [1] * 10 + [2] * 16
    seen = set()
    for seed in range(5):
        picked = positions("cluster_margin", pool, 15, seed)
        taken = [group[p] for p in picked]
        assert taken == [0, 1, 2] * 4 + [1, 2, 1]
        seen.add(picked[0])
    assert len(seen) > 1, "members are drawn at random"


@pytest.mark.parametrize("seed", range(5))
def test_spread_margin_is_the_greedy_answer(seed: int) -> None:
    probabilities, x = softmax(2, 60, 3, seed), normal(60, 4, seed=seed)
    known = normal(25, 4, seed=seed + 20)
    expected = reference.spread_margin(
        probabilities.double().numpy(), x.double().numpy(), known.double().numpy(), 30
    )
    assert positions("spread_margin", pool_of(probabilities, x, known), 30, factor=100) == expected


def test_spread_margin_takes_one_of_each_group_of_copies_before_a_second_one() -> None:
    angles = torch.tensor([0.0, 1, 2]).repeat_interleave(4) + 1e-3 * torch.arange(12)
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    # Group 0 is the least certain by far, then group 1, then group 2.
    pool = two_class(torch.tensor([0.45, 0.3, 0.2]).repeat_interleave(4))
    known = torch.tensor([[0.0, -1.0], [0.1, -1.0]])  # as far apart as the radius
    picked = positions("spread_margin", pool_of(pool, x, known), 5)
    assert [p // 4 for p in picked[:3]] == [0, 1, 2]
    assert positions("margin", pool_of(pool, x), 3) == [0, 1, 2]


def test_spread_margin_is_margin_where_nothing_is_near() -> None:
    probabilities, x = softmax(1, 30, 3), torch.eye(40)[:30]
    known = torch.tensor([[0.0] * 38 + [1, 0], [0.0] * 38 + [1, 0.01]])
    expected = positions("margin", pool_of(probabilities), 10)
    assert positions("spread_margin", pool_of(probabilities, x, known), 10) == expected
    assert positions("spread_margin", pool_of(probabilities, x), 10) == expected


def test_spread_margin_takes_copies_of_labelled_images_last_by_their_margin() -> None:
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    pool = pool_of(two_class(torch.tensor([0.3, 0.4, 0.1, 0.2])), x, torch.tensor([[2.0, 0]]))
    assert positions("spread_margin", pool, 4) == [2, 1, 0, 3]


def test_rank_within_groups() -> None:
    groups = torch.tensor([2, 0, 2, 0, 2, 1])
    values = torch.tensor([1.0, 5.0, 3.0, 5.0, 2.0, 0.0])
    assert clustering.rank_within(groups, values, 4).tolist() == [2, 0, 0, 1, 1, 0]


# --- weighted distance and density ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("labelled", [0, 4])
def test_coreset_uncertainty_is_the_weighted_greedy_answer(labelled: int, seed: int) -> None:
    probabilities, x = softmax(2, 50, 3, seed), normal(50, 4, seed=seed)
    known = normal(labelled, 4, seed=seed + 20)
    weights = reference.entropies(probabilities.double().numpy()) ** 2
    expected = reference.k_center(x.double().numpy(), known.double().numpy(), 20, weights)
    assert positions("coreset_uncertainty", pool_of(probabilities, x, known), 20) == expected


@pytest.mark.parametrize("seed", range(3))
def test_density_weighted_is_entropy_times_mean_cosine(seed: int) -> None:
    probabilities, x = softmax(2, 40, 3, seed), normal(40, 3, seed=seed) + 0.5
    density = reference.mean_cosine(x.double().numpy()).clip(min=0)
    values = reference.entropies(probabilities.double().numpy()) * density
    expected = reference.ranking(values, 15)
    assert positions("density_weighted", pool_of(probabilities, x), 15) == expected


def test_density_weighted_passes_over_the_uncertain_outlier() -> None:
    x = torch.tensor([[1.0, 0.1], [1, 0], [1, -0.1], [-1, 0]])
    pool = pool_of(two_class(torch.tensor([0.1, 0.3, 0.1, 0.5])), x)
    assert positions("density_weighted", pool, 1) == [1]
    assert positions("entropy", pool, 1) == [3]


# --- typical images -------------------------------------------------------------------------


def blobs(*sizes: int) -> tuple[Tensor, list[int]]:
    """Blobs far apart, the first of each exactly in its middle, and where each one starts."""
    parts, starts = [], []
    for i, size in enumerate(sizes):
        starts.append(sum(sizes[:i]))
        around = torch.nn.functional.normalize(normal(size, 8, seed=i))
        around[0] = 0
        parts.append(around + 100 * torch.eye(8)[i])
    return torch.cat(parts), starts


def test_typiclust_takes_the_middle_of_the_largest_unlabelled_blobs() -> None:
    x, starts = blobs(10, 14, 12, 30)
    labelled = x[starts[3] :][1:2]  # in the largest
    assert positions("typiclust", pool_of(None, x, labelled), 3) == [
        starts[1],
        starts[2],
        starts[0],
    ]


def test_typiclust_returns_to_clusters_in_turn_and_leaves_tiny_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(typical, "MAX_CLUSTERS", 3)
    x, starts = blobs(12, 15, 4)
    picked = positions("typiclust", pool_of(None, x), 6)
    blob = [sum(p >= s for s in starts[1:]) for p in picked]
    assert blob == [1, 0, 1, 0, 1, 0]
    assert picked[:2] == [starts[1], starts[0]]


def test_typicality_matches_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typical, "NEIGHBOURS", 3)
    x = normal(40, 3)
    owner = torch.randint(0, 5, (40,), generator=seeded(1))
    owner[7] = 5  # alone
    found = typical._typicality(Points.of(x), owner, 7)
    expected = reference.typicality(x.double().numpy(), owner.tolist(), 3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_prob_cover_is_the_greedy_cover_of_unit_vectors(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typical, "_pure_radius", lambda *_: torch.tensor(0.4**2))
    x, known = normal(60, 3, seed=seed), normal(3, 3, seed=seed + 9)
    pool = pool_of(softmax(1, 60, 3), x, known)
    unit, unit_known = (torch.nn.functional.normalize(y).double().numpy() for y in (x, known))
    expected = reference.max_cover(unit, unit_known, 0.4, 30)
    picked = positions("prob_cover", pool, 30)
    assert 3 < len(expected) < 30
    assert picked[: len(expected)] == expected
    assert len(set(picked)) == 30


def test_prob_cover_does_not_depend_on_lengths() -> None:
    """Three directions, with lengths from 1 to 50: the largest group is covered first."""
    direction = torch.eye(3)[torch.tensor([0] * 20 + [1] * 12 + [2] * 7)]
    x = direction + 0.02 * normal(39, 3)
    lengths = 1 + 49 * torch.rand(39, 1, generator=seeded(4))
    pool = pool_of(softmax(1, 39, 3), x * lengths)
    for seed in range(3):
        assert [direction[p].argmax().item() for p in positions("prob_cover", pool, 3, seed)] == [
            0, 1, 2,
        ]  # fmt: skip


def test_prob_cover_of_a_large_pool_covers_a_random_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typical, "MAX_GRAPH", 60)
    monkeypatch.setattr(typical, "_pure_radius", lambda *_: torch.tensor(0.4**2))
    x = torch.nn.functional.normalize(normal(200, 3))
    part = torch.randperm(200, generator=seeded(5))[:60].sort().values
    cover = reference.max_cover(x[part].double().numpy(), np.empty((0, 3)), 0.4, 50)
    picked = positions("prob_cover", pool_of(softmax(1, 200, 3), x), 50, seed=5)
    assert picked[: len(cover)] == part[cover].tolist()
    assert len(set(picked)) == 50


def test_pure_radius_is_the_quantile_of_the_distance_to_another_label() -> None:
    x = normal(100, 3)
    points, sample = Points.of(x), torch.arange(0, 100, 2)
    owner = clustering.k_means_clusters(points, 4, seeded(2), runs=typical.PURITY_RUNS).owner
    radius = typical._pure_radius(points, 4, sample, seeded(2)).item()
    to_other = [
        min(float((x[i] - x[j]).square().sum()) for j in range(100) if owner[j] != owner[i])
        for i in sample.tolist()
    ]
    pure = sum(d >= radius * 0.999 for d in to_other) / len(to_other)
    assert 0.95 <= pure < 0.99


# --- class balance --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([10, 10, 10], 9, [3, 3, 3]),
        ([10, 10, 10], 10, [4, 3, 3]),
        ([1, 100, 0, 3], 20, [1, 16, 0, 3]),
        ([100, 5, 100], 16, [5, 5, 6]),
        ([2, 3], 5, [2, 3]),
        ([2, 3], 0, [0, 0]),
    ],
)
def test_equal_shares(sizes: list[int], count: int, expected: list[int]) -> None:
    shares = equal_shares(sizes, count)
    assert sum(shares) == count
    assert sorted(shares) == sorted(expected)
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))


def test_class_balanced_takes_the_best_of_each_predicted_class() -> None:
    sizes = [60, 25, 5]
    predicted = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    confidence = 0.4 + 0.6 * torch.rand(90, generator=seeded(4))
    rest = (1 - confidence) / 2
    probabilities = torch.where(torch.eye(3)[predicted].bool(), confidence[:, None], rest[:, None])[
        None
    ]
    pool = pool_of(probabilities)
    picked = positions("class_balanced:entropy", pool, 24)
    values = predictive_entropy(probabilities).double().numpy()
    by_class = [
        [i for i in reference.ranking(values, 90) if predicted[i] == label] for label in range(3)
    ]
    assert [predicted[i].item() for i in picked[:6]] == [0, 1, 2, 0, 1, 2]
    assert [i for i in picked if predicted[i] == 0] == by_class[0][:9]
    assert [i for i in picked if predicted[i] == 1] == by_class[1][:10]
    assert [i for i in picked if predicted[i] == 2] == by_class[2][:5]


def test_class_balanced_binds_the_inner_strategy() -> None:
    strategy = get_strategy("class_balanced:k_center", 10)
    assert strategy.probabilities
    assert strategy.embeddings
    assert strategy.labelled_embeddings
    with pytest.raises(ValueError, match="did you mean 'class_balanced:margin'"):
        get_strategy("class_balanced:margins", 10)
