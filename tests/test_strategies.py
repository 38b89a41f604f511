"""What every registered query strategy must hold to, and the registry itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from query_strategies import STRATEGIES, PoolScores, get_strategy, information, predictive_entropy
from query_strategies.scores import top_k_stable

NAMES = [
    *sorted(STRATEGIES),
    "class_balanced:random",
    "class_balanced:k_center",
    "class_balanced:uncertainty_diversity",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(information, "MAX_CONFIGURATIONS", 32)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_pool(
    n: int = 24,
    labelled: int | None = 6,
    passes: int = 3,
    classes: int = 4,
    dim: int = 5,
    seed: int = 0,
) -> PoolScores:
    """A random pool whose dataset indices are sparse and far above any position."""
    generator = torch.Generator().manual_seed(seed)
    candidates = 100_000 + torch.randperm(50 * n, generator=generator)[:n].sort().values
    logits = 2 * torch.randn(passes, n, classes, generator=generator)
    return PoolScores(
        candidates=candidates,
        probabilities=logits.softmax(dim=-1),
        embeddings=torch.randn(n, dim, generator=generator),
        labelled_embeddings=(
            None if labelled is None else torch.randn(labelled, dim, generator=generator)
        ),
    )


def with_changes(
    pool: PoolScores,
    probabilities: Callable[[Tensor], Tensor] = lambda x: x,
    embeddings: Callable[[Tensor], Tensor] = lambda x: x,
) -> PoolScores:
    assert pool.probabilities is not None
    assert pool.embeddings is not None
    assert pool.labelled_embeddings is not None
    return PoolScores(
        pool.candidates,
        probabilities(pool.probabilities),
        embeddings(pool.embeddings),
        embeddings(pool.labelled_embeddings) if len(pool.labelled_embeddings) else None,
    )


POOLS: dict[str, PoolScores] = {
    "random": make_pool(),
    "another seed": make_pool(seed=1),
    "cold start, m = 0": make_pool(labelled=0),
    "cold start, None": make_pool(labelled=None),
    "one candidate": make_pool(n=1),
    "two candidates": make_pool(n=2),
    "equal scores": with_changes(make_pool(), probabilities=lambda p: torch.full_like(p, 0.25)),
    "certain model": with_changes(
        make_pool(), probabilities=lambda p: torch.eye(4)[p.argmax(dim=-1)]
    ),
    "one predicted class": with_changes(
        make_pool(), probabilities=lambda p: p.sort(dim=-1, descending=True).values
    ),
    "two classes": make_pool(classes=2),
    "four distinct embeddings": with_changes(
        make_pool(), embeddings=lambda x: (x[:, :2] > 0).float()
    ),
    "one embedding": with_changes(make_pool(), embeddings=torch.ones_like),
    "zero embeddings": with_changes(make_pool(), embeddings=torch.zeros_like),
    "half precision": with_changes(make_pool(), embeddings=torch.Tensor.half),
    "bfloat16": with_changes(make_pool(), embeddings=torch.Tensor.bfloat16),
    "far from the origin": with_changes(make_pool(), embeddings=lambda x: x + 1000),
}


def select(name: str, pool: PoolScores, k: int, seed: int = 0) -> Tensor:
    return get_strategy(name, 10).select(pool, k, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())
@pytest.mark.parametrize("name", NAMES)
def test_picks_are_distinct_candidates_as_many_as_asked(name: str, pool: PoolScores) -> None:
    n = len(pool.candidates)
    for k in {0, 1, 7, n - 1, n, n + 3}:
        picks = select(name, pool, k)
        assert picks.dtype == torch.int64
        assert picks.shape == (min(k, n),)
        assert len(picks.unique()) == len(picks)
        assert torch.isin(picks, pool.candidates).all()


@pytest.mark.parametrize("name", NAMES)
def test_all_candidates_come_in_the_strategys_order(name: str) -> None:
    """A request for the whole pool is answered in order of preference, not of the data set."""
    three_groups = 5 * torch.eye(5)[torch.arange(24) % 3]
    labelled = make_pool().labelled_embeddings
    pool = with_changes(make_pool(labelled=0), embeddings=lambda x: x + three_groups)
    pool = replace(pool, labelled_embeddings=labelled)
    assert not torch.equal(select(name, pool, 24), pool.candidates)


RANKED = ("entropy", "margin", "least_confidence", "bald", "k_center", "random", "density_weighted")


@pytest.mark.parametrize("name", RANKED)
def test_a_smaller_query_is_the_beginning_of_a_larger(name: str) -> None:
    pool = make_pool()
    assert torch.equal(select(name, pool, 24)[:9], select(name, pool, 9))


@pytest.mark.parametrize("name", NAMES)
def test_empty_pool_gives_no_picks(name: str) -> None:
    assert select(name, make_pool(n=0), 3).tolist() == []


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_picks_and_no_trace_left(name: str) -> None:
    pool = make_pool()
    copies = copy.deepcopy(pool)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = select(name, pool, 10, seed=3)
    assert torch.equal(first, select(name, pool, 10, seed=3))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    for before, after in zip(vars(copies).values(), vars(pool).values(), strict=True):
        same = torch.equal(before, after) if isinstance(before, Tensor) else before == after
        assert same, "an input was changed"


@pytest.mark.parametrize("name", NAMES)
def test_only_declared_scores_are_read(name: str) -> None:
    pool, strategy = make_pool(), get_strategy(name, 10)
    assert pool.probabilities is not None
    needed = PoolScores(
        pool.candidates,
        pool.probabilities[: None if strategy.stochastic else 1]
        if strategy.probabilities
        else None,
        pool.embeddings if strategy.embeddings else None,
        pool.labelled_embeddings if strategy.labelled_embeddings else None,
    )
    assert len(select(name, needed, 10)) == 10


@pytest.mark.parametrize("name", NAMES)
def test_every_declared_score_is_needed(name: str) -> None:
    pool, strategy = make_pool(), get_strategy(name, 10)
    if strategy.probabilities:
        without = PoolScores(pool.candidates, None, pool.embeddings, pool.labelled_embeddings)
        with pytest.raises(ValueError, match="probabilities"):
            select(name, without, 5)
    if strategy.embeddings:
        without = PoolScores(pool.candidates, pool.probabilities, None, pool.labelled_embeddings)
        with pytest.raises(ValueError, match="embeddings"):
            select(name, without, 5)
    if strategy.stochastic:
        assert pool.probabilities is not None
        without = PoolScores(
            pool.candidates, pool.probabilities[:1], pool.embeddings, pool.labelled_embeddings
        )
        with pytest.raises(ValueError, match="at least 2 stochastic passes"):
            select(name, without, 5)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_not_finite_are_refused(name: str) -> None:
    pool, strategy = make_pool(), get_strategy(name, 10)
    assert pool.probabilities is not None
    assert pool.embeddings is not None
    nan = torch.full((), torch.nan)
    if strategy.probabilities:
        spoilt = pool.probabilities.clone()
        spoilt[:, 3] = nan
        with pytest.raises(ValueError, match="NaN"):
            select(name, PoolScores(pool.candidates, spoilt, pool.embeddings, None), 5)
    if strategy.embeddings:
        spoilt = pool.embeddings.clone()
        spoilt[1:] = nan
        with pytest.raises(ValueError, match="not finite"):
            select(name, PoolScores(pool.candidates, pool.probabilities, spoilt, None), 3)


@pytest.mark.parametrize("name", NAMES)
def test_negative_k_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="negative"):
        select(name, make_pool(), -1)


@pytest.mark.parametrize("name", NAMES)
def test_picks_do_not_hang_on_how_candidates_are_numbered(name: str) -> None:
    """The same pool under other dataset indices gives the same images."""
    pool = make_pool()
    renamed = PoolScores(
        pool.candidates * 3 + 7, pool.probabilities, pool.embeddings, pool.labelled_embeddings
    )
    assert torch.equal(select(name, renamed, 10), select(name, pool, 10) * 3 + 7)


def test_random_depends_on_the_seed_and_reaches_every_candidate() -> None:
    pool = make_pool(n=10)
    drawn = torch.stack([select("random", pool, 3, seed) for seed in range(400)])
    counts = torch.stack([(drawn == c).sum() for c in pool.candidates])
    # Expectation 120, standard deviation 9.2.
    assert counts.min() > 75
    assert counts.max() < 165


def test_unknown_name_is_refused_with_the_nearest_and_all_names() -> None:
    with pytest.raises(ValueError, match=r"'k_centre'.*did you mean 'k_center'") as refusal:
        get_strategy("k_centre", 10)
    assert all(name in str(refusal.value) for name in STRATEGIES)


def test_prefilter_factor_is_bound_where_it_is_used() -> None:
    pool = make_pool(n=200)
    assert pool.probabilities is not None
    generator = torch.Generator().manual_seed(0)
    narrow = get_strategy("uncertainty_diversity", prefilter_factor=1).select(pool, 10, generator)
    assert set(narrow.tolist()) == set(select("entropy", pool, 10).tolist())
    assert torch.equal(
        get_strategy("margin", prefilter_factor=1).select(pool, 10, generator),
        select("margin", pool, 10),
    )


@pytest.mark.parametrize("factor", [0.5, float("nan")])
def test_prefilter_factor_below_one_is_refused(factor: float) -> None:
    strategy = get_strategy("uncertainty_diversity", prefilter_factor=factor)
    with pytest.raises(ValueError, match="prefilter_factor"):
        strategy.select(make_pool(), 5, torch.Generator())


def test_top_k_stable_gives_ties_to_the_smaller_position() -> None:
    values = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 3.0])
    assert top_k_stable(values, 4).tolist() == [1, 3, 5, 2]
    assert top_k_stable(values, 9).tolist() == [1, 3, 5, 2, 4, 0]
    assert top_k_stable(torch.zeros(1000), 1000).tolist() == list(range(1000))


def test_top_k_stable_refuses_nan_and_says_how_many() -> None:
    with pytest.raises(ValueError, match="2 of 3"):
        top_k_stable(torch.tensor([1.0, torch.nan, torch.nan]), 1)


def test_predictive_entropy_is_in_nats_of_the_mean_over_passes() -> None:
    one_sided = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert predictive_entropy(one_sided).tolist() == pytest.approx([0.6931472])
    assert predictive_entropy(one_sided[:1]).tolist() == [0.0]
