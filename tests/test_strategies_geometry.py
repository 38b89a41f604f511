"""Distances, farthest-first, D^2 sampling and k-means, and the strategies built on them."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from query_strategies import (
    PoolScores,
    clustering,
    diversity,
    farthest,
    geometry,
    get_strategy,
    projection,
)
from query_strategies.geometry import Points

from . import strategy_reference as reference


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pool_of(
    embeddings: Tensor, labelled: Tensor | None = None, probabilities: Tensor | None = None
) -> PoolScores:
    candidates = torch.arange(len(embeddings)) * 7 + 3000
    return PoolScores(candidates, probabilities, embeddings, labelled)


def positions(name: str, pool: PoolScores, k: int, seed: int = 0) -> list[int]:
    picks = get_strategy(name, 10).select(pool, k, seeded(seed))
    return ((picks - 3000) // 7).tolist()


@pytest.fixture(params=[64, 2**20], ids=["tiny blocks", "one block"])
def _block_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "BLOCK_ELEMENTS", request.param)


# --- distances ------------------------------------------------------------------------------


@pytest.mark.usefixtures("_block_sizes")
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_nearest_squared_distance_matches_loops(offset: float) -> None:
    a, b = normal(30, 4) + offset, normal(9, 4, seed=1) + offset
    points = Points.of(a)
    nearest = geometry.nearest_squared_distance(points, points.beside(b))
    expected = reference.nearest_squared(a.double().numpy(), b.double().numpy())
    np.testing.assert_allclose(nearest.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_no_centre_is_infinitely_far() -> None:
    points = Points.of(normal(3, 2))
    far = geometry.nearest_squared_distance(points, points.beside(normal(0, 2)))
    assert far.tolist() == [torch.inf] * 3


@pytest.mark.usefixtures("_block_sizes")
def test_points_with_coefficients_are_outer_products() -> None:
    x, c = normal(12, 5), normal(12, 3, seed=1)
    whole = (c[:, :, None] * x[:, None, :]).flatten(1)
    points = Points.of(x, centre=torch.zeros(5), coefficients=c)
    block = points.block(slice(0, 12))
    np.testing.assert_allclose(points.squared_norms, whole.square().sum(1), rtol=1e-5)
    expected = torch.cdist(whole.double(), whole.double()).square()
    np.testing.assert_allclose(geometry.squared_distances(block, block), expected, atol=1e-4)


# --- farthest first -------------------------------------------------------------------------


@pytest.mark.usefixtures("_block_sizes")
@pytest.mark.parametrize("front", [1, 4, 512])
@pytest.mark.parametrize("labelled", [0, 1, 8])
@pytest.mark.parametrize("seed", range(2))
def test_k_center_is_the_greedy_answer(
    seed: int, labelled: int, front: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farthest, "FRONT", front)
    x, known = normal(40, 6, seed=seed), normal(labelled, 6, seed=100 + seed)
    x[20:30] *= 6  # outliers, so that the radius falls steeply
    expected = reference.k_center(x.double().numpy(), known.double().numpy(), 20)
    assert positions("k_center", pool_of(x, known), 20) == expected


@pytest.mark.parametrize("front", [3, 512])
@pytest.mark.parametrize("seed", range(2))
def test_k_center_stays_greedy_among_duplicates_and_ties(
    seed: int, front: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farthest, "FRONT", front)
    grid = torch.randint(0, 3, (40, 3), generator=seeded(seed)).float()  # at most 27 distinct
    known = grid[:2].clone()
    picked = positions("k_center", pool_of(grid, known), 35)
    assert len(set(picked)) == 35
    assert reference.worst_regret(grid.double().numpy(), known.double().numpy(), picked) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_k_center_of_half_precision_is_that_of_the_rounded_values(dtype: torch.dtype) -> None:
    x, known = normal(50, 6).to(dtype), normal(5, 6, seed=1).to(dtype)
    expected = reference.k_center(x.double().numpy(), known.double().numpy(), 20)
    assert positions("k_center", pool_of(x, known), 20) == expected


def far_apart(seed: int) -> Tensor:
    """Three clusters of spread 1 at a distance of 1,000 from each other."""
    return 1000 * torch.eye(6)[torch.arange(60) % 3] + normal(60, 6, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_k_center_keeps_its_digits_where_clusters_lie_far_apart(seed: int) -> None:
    x, known = far_apart(seed), far_apart(seed + 10)[:4]
    expected = reference.k_center(x.double().numpy(), known.double().numpy(), 40)
    assert positions("k_center", pool_of(x, known), 40) == expected


@pytest.mark.parametrize("cold", [True, False])
def test_one_outlier_leaves_the_other_picks_of_k_center_as_they_are(cold: bool) -> None:
    x = normal(200, 6)
    x[17] = 1e5
    known = normal(0 if cold else 3, 6, seed=1)
    expected = reference.k_center(x.double().numpy(), known.double().numpy(), 60)
    assert positions("k_center", pool_of(x, known), 60) == expected
    assert Points.of(x).centre.abs().max() < 0.3


def test_precision_is_doubled_only_where_it_is_needed() -> None:
    spread = normal(300, 6)
    copies = spread[:20].repeat(15, 1)
    for x in (spread, copies, torch.ones(300, 6), spread[:1], spread.half(), spread[:0]):
        assert Points.of(x).centre.dtype == torch.float32
    points = Points.of(far_apart(0))
    assert points.centre.dtype == torch.float64
    block = points.block(slice(None))
    expected = torch.cdist(far_apart(0).double(), far_apart(0).double()).square()
    np.testing.assert_allclose(geometry.squared_distances(block, block), expected, atol=1e-3)


def test_k_center_on_a_line() -> None:
    """Points 0..10: the ends and then the middles, seen from a labelled point at 0."""
    line = torch.arange(11.0)[:, None]
    assert positions("k_center", pool_of(line, torch.zeros(1, 1)), 2) == [10, 5]
    # Cold start: the one at the median, then the ends (a tie, to the smaller index).
    assert positions("k_center", pool_of(line), 3) == [5, 0, 10]


def test_k_center_keeps_away_from_labelled_images() -> None:
    clusters = torch.tensor([[0.0, 0], [0.1, 0], [10, 0], [10.1, 0], [0, 8], [0.1, 8]])
    picked = positions("k_center", pool_of(clusters, torch.tensor([[10.0, 0.1]])), 2)
    assert picked[0] in (4, 5)
    assert picked[1] in (0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_farthest_first_is_the_greedy_answer(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farthest, "FRONT", 8)
    x, known = normal(40, 4, seed=seed), normal(3, 4, seed=50 + seed)
    weights = torch.rand(40, generator=seeded(seed)) + 1e-3
    points = Points.of(x)
    nearest = geometry.nearest_squared_distance(points, points.beside(known))
    found = farthest.farthest_first(points, 20, nearest, weights).tolist()
    w = weights.double().numpy()
    assert found == reference.k_center(x.double().numpy(), known.double().numpy(), 20, w)


def test_far_fewer_products_than_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it fast: one pass over all points serves many picks."""
    passes = []
    applied = farthest._apply

    def counted(points: Points, chosen: Tensor, nearest: Tensor, reach: Tensor) -> None:
        passes.append(len(chosen))
        applied(points, chosen, nearest, reach)

    monkeypatch.setattr(farthest, "_apply", counted)
    positions("k_center", pool_of(normal(2000, 16)), 300)
    assert sum(passes) == 300
    assert len(passes) < 40


def test_projected_k_center_covers_nearly_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight strong directions of 64 and noise: 16 principal ones decide nearly as all do."""
    monkeypatch.setattr(diversity, "DIRECTIONS", 16)
    monkeypatch.setattr(projection, "SAMPLE", 200)
    strong = normal(600, 8, seed=1) @ normal(8, 64, seed=2)
    x, known = strong + 0.3 * normal(600, 64), normal(5, 64, seed=3)
    pool = pool_of(x, known)

    def radius(picked: list[int]) -> float:
        return torch.cdist(x, torch.cat([known, x[picked]])).amin(dim=1).max().item()

    exact = radius(positions("k_center", pool, 60))
    assert radius(positions("k_center_projected", pool, 60)) < 1.05 * exact
    assert radius(positions("random", pool, 60)) > 1.1 * exact


def test_projection_finds_the_principal_directions() -> None:
    strong, noise = 5 * normal(300, 6, seed=1) @ normal(6, 30, seed=2), 0.1 * normal(300, 30)
    points = Points.of(strong + noise)
    directions = projection.principal_directions(points, 6, seeded())
    np.testing.assert_allclose(directions.T @ directions, torch.eye(6), atol=1e-5)
    seen = projection.project(points, directions)
    assert torch.equal(seen.squared_norms, points.squared_norms)
    assert (seen.embeddings.square().sum() / points.squared_norms.sum()).item() > 0.99


# --- D^2 sampling ---------------------------------------------------------------------------


def sequence_probabilities(
    points: reference.Array, weights: reference.Array, nearest: reference.Array | None
) -> dict[tuple[int, ...], float]:
    """The chance of every ordered triple under sequential weighted D^2 sampling."""
    chances: dict[tuple[int, ...], float] = {}
    for triple in permutations(range(len(points)), 3):
        chance = 1.0
        for step, choice in enumerate(triple):
            reached = np.full(len(points), np.inf) if nearest is None else nearest
            reached = np.minimum(
                reached, reference.nearest_squared(points, points[list(triple[:step])])
            )
            mass = weights * (np.ones(len(points)) if np.isinf(reached).all() else reached)
            chance *= mass[choice] / mass.sum()
        chances[triple] = chance
    return chances


@pytest.mark.parametrize("cold", [True, False], ids=["no centres yet", "centres given"])
def test_d2_sampling_has_the_sequential_distribution(cold: bool) -> None:
    x = torch.tensor([[0.0, 0], [1, 0], [1.2, 0], [4, 0], [0, 3]])
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 0.7])
    points = Points.of(x)
    nearest = None if cold else (x - torch.tensor([1.0, 1.0])).square().sum(1)
    runs = 500
    generator = seeded(1)
    seen = Counter(
        tuple(clustering.sample_by_distance(points, 3, generator, nearest, weights).tolist())
        for _ in range(runs)
    )
    chances = sequence_probabilities(
        x.double().numpy(),
        weights.double().numpy(),
        None if nearest is None else nearest.double().numpy(),
    )
    assert sum(chances.values()) == pytest.approx(1)
    statistic = sum((seen[t] - runs * p) ** 2 / (runs * p) for t, p in chances.items())
    # 59 degrees of freedom: chi-squared has mean 59, standard deviation 10.9.
    assert statistic < 59 + 5 * 10.9


def test_d2_sampling_takes_copies_of_centres_last_and_smallest_first() -> None:
    x = torch.tensor([[0.0], [0.0], [5.0], [0.0], [5.0], [9.0]])
    nearest = x[:, 0].square()  # a centre at 0
    picked = clustering.sample_by_distance(Points.of(x), 6, seeded(), nearest).tolist()
    assert 5 in picked[:2]
    assert len({2, 4} & set(picked[:2])) == 1
    assert picked[2:] == sorted(set(range(6)) - set(picked[:2]))


def test_d2_sampling_never_takes_weight_zero_while_there_is_mass() -> None:
    weights = torch.ones(20)
    weights[:10] = 0
    points = Points.of(normal(20, 3))
    for seed in range(20):
        picked = clustering.sample_by_distance(points, 10, seeded(seed), weights=weights)
        assert sorted(picked.tolist()) == list(range(10, 20))


def test_d2_sampling_never_keeps_a_second_draw_of_one_point() -> None:
    """Far from the origin, rounding gives a point some distance from itself."""
    points = Points.of(normal(50, 3) + 1000, centre=torch.zeros(3))
    drawn = torch.arange(50).repeat(2)
    kept = drawn[clustering._accept(points, drawn, torch.full((100,), 1e-4), seeded())]
    assert len(kept) > 0
    assert len(kept.unique()) == len(kept)


# --- k-means --------------------------------------------------------------------------------


@pytest.mark.usefixtures("_block_sizes")
@pytest.mark.parametrize("greedy_up_to", [0, 500], ids=["plain seeds", "greedy seeds"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_k_means_is_lloyds_algorithm(
    seed: int, weighted: bool, greedy_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clustering, "GREEDY_UP_TO", greedy_up_to)
    x = normal(80, 3, seed=seed)
    weights = torch.rand(80, generator=seeded(seed)) if weighted else None
    points = Points.of(x)
    seeds = clustering._seeds(points, 9, seeded(7), weights).tolist()
    clusters = clustering.k_means_clusters(points, 9, seeded(7), weights)
    expected, centres = reference.k_means(
        x.double().numpy(),
        seeds,
        clustering.MAX_ITERATIONS,
        None if weights is None else weights.double().numpy(),
    )
    assert clusters.owner.tolist() == expected
    own = [
        reference.squared_distance(x[i].double().numpy(), centres[expected[i]]) for i in range(80)
    ]
    np.testing.assert_allclose(clusters.distance.numpy(), own, rtol=1e-4, atol=1e-5)
    objective = np.average(own, weights=weights) * (80 if weights is None else float(weights.sum()))
    assert clusters.objective == pytest.approx(objective, rel=1e-5)


def test_k_means_of_many_dimensions_clusters_by_the_principal_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clustering, "PROJECT_ABOVE", 8)
    monkeypatch.setattr(clustering, "DIRECTIONS", 4)
    group = torch.arange(60) % 3
    x = 30 * normal(3, 20, seed=5)[group] + normal(60, 20)
    owner = clustering.k_means_clusters(Points.of(x), 3, seeded()).owner
    assert [len(owner[group == g].unique()) for g in range(3)] == [1, 1, 1]
    assert len(owner.unique()) == 3


@pytest.mark.parametrize("weighted", [False, True])
def test_k_means_is_as_good_as_scikit_learns(weighted: bool) -> None:
    x = normal(800, 5)
    weights = torch.rand(800, generator=seeded(1)) if weighted else None
    ours, theirs = [], []
    for seed in range(6):
        clusters = clustering.k_means_clusters(Points.of(x), 40, seeded(seed), weights)
        ours.append(clusters.objective)
        other = KMeans(40, n_init=1, init="k-means++", random_state=seed)
        theirs.append(other.fit(x.numpy(), sample_weight=weights).inertia_)
    assert np.mean(ours) < 1.005 * np.mean(theirs)


def test_greedy_seeds_are_distinct_and_better_than_plain_ones() -> None:
    x = normal(400, 4)
    points, ones = Points.of(x), torch.ones(400)

    def objective(seeds: Tensor) -> float:
        assert len(seeds.unique()) == 20
        return float(torch.cdist(x, x[seeds]).square().amin(dim=1).sum())

    greedy = [objective(clustering.greedy_seeds(points, 20, seeded(s), ones)) for s in range(8)]
    plain = [objective(clustering.sample_by_distance(points, 20, seeded(s))) for s in range(8)]
    assert np.mean(greedy) < 0.93 * np.mean(plain)
    copies = Points.of(torch.tensor([[0.0], [5.0]]).repeat(4, 1))
    assert len(clustering.greedy_seeds(copies, 6, seeded(), torch.ones(8)).unique()) == 6


def test_the_best_of_several_k_means_runs_is_kept() -> None:
    points = Points.of(normal(300, 4))
    generator = seeded(3)
    single = [clustering.k_means_clusters(points, 12, generator).objective for _ in range(4)]
    best = clustering.k_means_clusters(points, 12, seeded(3), runs=4)
    assert best.objective == pytest.approx(min(single))
    assert min(single) < max(single)


def test_k_means_picks_the_middle_of_each_cluster() -> None:
    around = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    clusters = torch.cat([around + torch.tensor(c) for c in ([0.0, 0], [50, 0], [0, 50])])
    for seed in range(5):
        assert sorted(positions("k_means", pool_of(clusters), 3, seed)) == [0, 5, 10]


def test_one_point_stands_for_each_cluster_and_empty_ones_are_made_up_for() -> None:
    owner = torch.tensor([0, 0, 2, 2, 2])
    distance = torch.tensor([1.0, 1.0, 0.5, 0.2, 7.0])
    # Cluster 0: a tie, to the smaller; cluster 2: position 3; cluster 1 is empty: the farthest.
    assert clustering.nearest_to_means(owner, distance, 3).tolist() == [0, 3, 4]


# --- hybrids --------------------------------------------------------------------------------


def two_class(uncertainty: Tensor) -> Tensor:
    """Probabilities [1, n, 2] whose entropy grows with `uncertainty` in [0, 0.5]."""
    return torch.stack([1 - uncertainty, uncertainty], dim=-1)[None]


def test_uncertainty_diversity_takes_only_prefiltered_candidates() -> None:
    n = 400
    uncertainty = 0.5 * torch.rand(n, generator=seeded(3))
    pool = pool_of(normal(n, 4), normal(5, 4, seed=1), two_class(uncertainty))
    strategy = get_strategy("uncertainty_diversity", prefilter_factor=2.5)
    allowed = set(reference.ranking(uncertainty.double().numpy(), 25))
    seen: set[int] = set()
    for seed in range(20):
        picks = strategy.select(pool, 10, seeded(seed))
        seen |= set(((picks - 3000) // 7).tolist())
    assert seen == allowed


def test_uncertainty_diversity_takes_one_of_each_group_of_copies() -> None:
    """30 equally uncertain candidates in 3 tight groups, one of them around a labelled image."""
    groups = torch.tensor([[0.0, 0], [100, 0], [0, 100]]).repeat_interleave(10, dim=0)
    pool = pool_of(
        groups + 1e-3 * normal(30, 2), torch.zeros(1, 2), two_class(torch.full((30,), 0.4))
    )
    strategy = get_strategy("uncertainty_diversity", prefilter_factor=15)
    for seed in range(10):
        picks = (strategy.select(pool, 2, seeded(seed)) - 3000) // 7
        assert sorted((picks // 10).tolist()) == [1, 2]


def test_uncertainty_diversity_weighs_by_entropy() -> None:
    """A square's corners, equally far apart; two are nearly certain and hardly ever chosen."""
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    pool = pool_of(corners, None, two_class(torch.tensor([0.5, 1e-6, 1e-6, 0.5])))
    assert all(
        sorted(positions("uncertainty_diversity", pool, 2, seed)) == [0, 3] for seed in range(20)
    )


def test_half_and_half_is_entropy_then_representatives_of_the_rest() -> None:
    around = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    clusters = torch.cat([around, around + 60, torch.full((3, 2), -90.0)])
    uncertainty = torch.full((13,), 0.1)
    uncertainty[10:] = torch.tensor([0.3, 0.5, 0.4])
    pool = pool_of(clusters, None, two_class(uncertainty))
    picked = positions("half_and_half", pool, 5)
    assert picked[:3] == [11, 12, 10]
    assert sorted(picked[3:]) == [0, 5]
