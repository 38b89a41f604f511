"""Seconds that query strategies take to choose, against loops over the picks.

Embeddings and probabilities are made up as in `benchmarks.strategy_cost`, which measures all
strategies, one by one, in processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed import naive as speed_naive
from benchmarks.speed.rows import Row
from benchmarks.speed.timing import Spread, peak_memory, seconds
from benchmarks.strategy_cost import made_up_scores
from query_strategies import PoolScores, get_strategy
from query_strategies.clustering import sample_by_distance
from query_strategies.geometry import Points, nearest_squared_distance

PREFILTER = 10
SHARE_PICKED = 4_430 / 90_000
TIMED_PICKS = 5  # of the baselines; the rest are all alike
LLOYD_ROWS = 2_000
LLOYD_ROUNDS = 10  # the baseline's; the package goes on until no point changes its cluster
BADGE_ROWS = 4_000
STRATEGIES = ("k_center", "k_center_projected", "k_means", "uncertainty_diversity", "badge")


def selection(sizes: list[tuple[int, int]], runs: int, device: torch.device) -> Iterator[list[Row]]:
    """Rows for each of `sizes`, pairs of candidates and dimension, in turn."""
    for n, dimension in sizes:
        # Nothing is labelled yet: the loops that are compared with know no labelled images.
        scores = replace(made_up_scores(n, str(device), dimension), labelled_embeddings=None)
        picks = max(1, round(SHARE_PICKED * n))
        naive = _naive_costs(scores, picks)
        label = f"{n:,} x {dimension:,}, {picks:,} picks"
        rows, chosen = [], {}
        for name, work in _works(scores, picks).items():
            taken, memory, chosen[name] = _measured(work, runs, device)
            baseline = naive[name]
            cost = taken.median / (n * picks * dimension)
            note = (
                f"{cost * 1e12:.3g} ps per n k D; {memory / 1e9:.2f} GB at its peak "
                f"(baseline {baseline.memory / 1e9:.2f}); {baseline.how}"
            )
            rows.append(
                Row(
                    "selection",
                    f"{name} {label}",
                    "s",
                    taken,
                    Spread.of([baseline.seconds]),
                    None,
                    note,
                )
            )
        exact, projected = (
            _radius(scores, chosen[name]) for name in ("k_center", "k_center_projected")
        )
        ratio = Spread.of([projected / exact])
        item = f"covering radius, projected over exact, {label}"
        rows.append(Row("selection", item, "ratio", ratio))
        yield rows


def _measured(
    work: Callable[[], Tensor], runs: int, device: torch.device
) -> tuple[Spread, float, Tensor]:
    """Seconds of `work`, its peak of bytes (0 where unknown), and what it returned last."""
    taken: list[float] = []
    result: list[Tensor] = []
    peaks = []
    for _ in range(runs):
        peaks.append(
            peak_memory(
                lambda: taken.append(seconds(lambda: result.append(work()), device)), device
            )
        )
    return Spread.of(taken), max(peak or 0 for peak in peaks), result[-1]


def _works(scores: PoolScores, picks: int) -> dict[str, Callable[[], Tensor]]:
    """What is timed: positions of the picks, int64."""
    device = scores.candidates.device
    assert scores.embeddings is not None
    embeddings = scores.embeddings

    def generator() -> torch.Generator:
        return torch.Generator(device).manual_seed(0)

    def strategy(name: str) -> Callable[[], Tensor]:
        select = get_strategy(name, PREFILTER).select
        return lambda: select(scores, picks, generator())

    works = {name: strategy(name) for name in STRATEGIES}
    works["k-means++ seeding"] = lambda: sample_by_distance(
        Points.of(embeddings), picks, generator()
    )
    return works


@dataclass(frozen=True)
class _Cost:
    """What a baseline takes for all picks, and from what part of its work that is reckoned.

    memory: bytes at the peak, beyond the points.
    """

    seconds: float
    memory: float
    how: str


def _naive_costs(scores: PoolScores, picks: int) -> dict[str, _Cost]:
    """Each baseline's, on the CPU."""
    cpu = torch.device("cpu")
    assert scores.embeddings is not None
    assert scores.probabilities is not None
    points = scores.embeddings.float().cpu().numpy()
    mean = scores.probabilities.mean(0).cpu().numpy()
    n, timed = len(points), min(TIMED_PICKS, picks)
    ones = np.ones(n, np.float32)

    def reckoned(work: Callable[[], object], factor: float, larger: float, how: str) -> _Cost:
        """`work` times `factor`; its memory times `larger`."""
        memory = peak_memory(work, cpu) or 0  # the first time, which also warms up
        return _Cost(seconds(work, cpu) * factor, memory * larger, how)

    def per_pick(work: Callable[[], object], larger: float = 1) -> _Cost:
        how = f"baseline reckoned from {timed} picks"
        how += f" among {n / larger:,.0f} rows" if larger > 1 else ""
        return reckoned(work, picks / timed * larger, larger, how)

    # The first of these picks takes no distances, so there is one more.
    greedy = per_pick(lambda: speed_naive.k_center(points, timed))
    seeding = per_pick(lambda: speed_naive.weighted_d2_sampling(points, ones, 1 + timed))
    some = points[: min(n, PREFILTER * picks)]
    hybrid = per_pick(lambda: speed_naive.weighted_d2_sampling(some, ones[: len(some)], 1 + timed))
    rows = min(n, LLOYD_ROWS)
    lloyd = reckoned(
        lambda: speed_naive.lloyd_assignment(points[:rows], points[:picks]),
        n / rows * LLOYD_ROUNDS,
        n / rows,
        f"{seeding.how} and {rows:,} rows of one of {LLOYD_ROUNDS} rounds",
    )
    some_rows = min(n, BADGE_ROWS)
    part = (points[:some_rows], mean[:some_rows])
    written_out = reckoned(
        lambda: speed_naive.gradient_embeddings(*part), n / some_rows, n / some_rows, ""
    )
    gradients = speed_naive.gradient_embeddings(*part)
    badge = per_pick(
        lambda: speed_naive.weighted_d2_sampling(gradients, ones[:some_rows], 1 + timed),
        n / some_rows,
    )
    return {
        "k_center": greedy,
        "k_center_projected": replace(greedy, how=f"{greedy.how} of the exact one"),
        "k-means++ seeding": seeding,
        "k_means": _Cost(
            seeding.seconds + lloyd.seconds, max(seeding.memory, lloyd.memory), lloyd.how
        ),
        "uncertainty_diversity": hybrid,
        "badge": _Cost(
            written_out.seconds + badge.seconds, written_out.memory + badge.memory, badge.how
        ),
    }


def _radius(scores: PoolScores, chosen: Tensor) -> float:
    """The largest distance of a candidate to the nearest chosen one."""
    assert scores.embeddings is not None
    points = Points.of(scores.embeddings)
    centres = points.beside(scores.embeddings[chosen])
    return float(nearest_squared_distance(points, centres).max().sqrt())
