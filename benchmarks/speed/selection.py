"""Times query strategies against loops over the picks.

Embeddings and probabilities are synthetic, as in `benchmarks.strategy_cost`, which measures every
strategy in its own process.
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
TIMED_PICKS = 5  # of the baselines; all picks take the same time
LLOYD_ROWS = 2_000
LLOYD_ROUNDS = 10  # of the baseline; the package continues until no point changes its cluster
BADGE_ROWS = 4_000
STRATEGIES = ("k_center", "k_center_projected", "k_means", "uncertainty_diversity", "badge")


def selection(sizes: list[tuple[int, int]], runs: int, device: torch.device) -> Iterator[list[Row]]:
    """Measure each of `sizes`, pairs of candidates and dimensions; yields the rows of each."""
    for n, dimension in sizes:
        # No labelled images, because the baseline's loops do not support them.
        scores = replace(made_up_scores(n, str(device), dimension), labelled_embeddings=None)
        picks = max(1, round(SHARE_PICKED * n))
        naive = _naive_costs(scores, picks)
        label = f"{n:,} x {dimension:,}, {picks:,} picks"
        rows, chosen = [], {}
        for name, work in _works(scores, picks).items():
            times, memory, chosen[name] = _measured(work, runs, device)
            baseline = naive[name]
            cost = times.median / (n * picks * dimension)
            note = (
                f"{cost * 1e12:.3g} ps per n k D; {memory / 1e9:.2f} GB at its peak "
                f"(baseline {baseline.memory / 1e9:.2f}); {baseline.how}"
            )
            rows.append(
                Row(
                    "selection",
                    f"{name} {label}",
                    "s",
                    times,
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
    """Seconds of `work`, its peak memory in bytes (0 if unknown), and its last result."""
    times: list[float] = []
    result: list[Tensor] = []
    peaks = []
    for _ in range(runs):
        peaks.append(
            peak_memory(
                lambda: times.append(seconds(lambda: result.append(work()), device)), device
            )
        )
    return Spread.of(times), max(peak or 0 for peak in peaks), result[-1]


def _works(scores: PoolScores, picks: int) -> dict[str, Callable[[], Tensor]]:
    """The functions to time, which return the positions of the picks, int64."""
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
    """The extrapolated cost of a baseline for all picks, and the part of its work that was timed.

    memory: peak in bytes, without the points.
    """

    seconds: float
    memory: float
    how: str


def _naive_costs(scores: PoolScores, picks: int) -> dict[str, _Cost]:
    """The cost of each baseline on the CPU."""
    cpu = torch.device("cpu")
    assert scores.embeddings is not None
    assert scores.probabilities is not None
    points = scores.embeddings.float().cpu().numpy()
    mean = scores.probabilities.mean(0).cpu().numpy()
    n, timed = len(points), min(TIMED_PICKS, picks)
    ones = np.ones(n, np.float32)

    def extrapolated(work: Callable[[], object], factor: float, larger: float, how: str) -> _Cost:
        """The time of `work` times `factor`, and its memory times `larger`."""
        memory = peak_memory(work, cpu) or 0  # the first call, which also warms up
        return _Cost(seconds(work, cpu) * factor, memory * larger, how)

    def per_pick(work: Callable[[], object], larger: float = 1) -> _Cost:
        how = f"baseline reckoned from {timed} picks"
        how += f" among {n / larger:,.0f} rows" if larger > 1 else ""
        return extrapolated(work, picks / timed * larger, larger, how)

    # The first pick computes no distances, so one more pick is timed.
    greedy = per_pick(lambda: speed_naive.k_center(points, timed))
    seeding = per_pick(lambda: speed_naive.weighted_d2_sampling(points, ones, 1 + timed))
    some = points[: min(n, PREFILTER * picks)]
    hybrid = per_pick(lambda: speed_naive.weighted_d2_sampling(some, ones[: len(some)], 1 + timed))
    rows = min(n, LLOYD_ROWS)
    lloyd = extrapolated(
        lambda: speed_naive.lloyd_assignment(points[:rows], points[:picks]),
        n / rows * LLOYD_ROUNDS,
        n / rows,
        f"{seeding.how} and {rows:,} rows of one of {LLOYD_ROUNDS} rounds",
    )
    some_rows = min(n, BADGE_ROWS)
    part = (points[:some_rows], mean[:some_rows])
    written_out = extrapolated(
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
    """The largest distance from a candidate to its nearest chosen candidate."""
    assert scores.embeddings is not None
    points = Points.of(scores.embeddings)
    centres = points.beside(scores.embeddings[chosen])
    return float(nearest_squared_distance(points, centres).max().sqrt())
