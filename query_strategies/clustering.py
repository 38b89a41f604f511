"""D^2 sampling (k-means++ seeding) and k-means, in matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import (
    Block,
    Points,
    inner_products,
    smallest_squared_distance,
    squared_distances,
)
from .projection import principal_directions, project
from .scores import top_k_stable

PROPOSALS = 512
MAX_ITERATIONS = 100
GREEDY_UP_TO = 500  # clusters; more would take longer to seed than to refine
DIRECTIONS = 256
PROJECT_ABOVE = 1024  # below, the projection would cost as much as it saves


def sample_by_distance(
    points: Points,
    k: int,
    generator: torch.Generator,
    nearest: Tensor | None = None,
    weights: Tensor | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """k-means++ seeding: positions (int64 [k], distinct), each drawn with probability
    proportional to weight * squared distance to the nearest centre so far.

    nearest: [n], squared distance to the nearest existing centre; None: there is none, and the
    first pick is `first` (int64 [1]) or, without it, drawn in proportion to the weights alone.
    weights: float32 [n], not negative; None: all one. Where only points of no mass remain (copies
    of centres), the smallest positions among them are taken. k must be at most n.

    Arthur & Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding". One pass over the
    points per centre would be slow. So many proposals are drawn at once from the distribution
    before any of them, and each is kept with probability (distance now / distance then). The result
    has exactly the sequential distribution (rejection, as in Cohen-Addad et al. 2020, "Fast and
    Accurate k-means++ via Rejection Sampling"). This needs only the distances among the proposals;
    one product then applies the kept proposals to all points.

    Time O(n k D) multiply-adds, in matrix products; memory of one block beside the points. One
    host synchronisation per batch of proposals, none per centre.
    """
    weights = torch.ones_like(points.squared_norms) if weights is None else weights
    taken = torch.zeros_like(weights, dtype=torch.bool)
    if k == 0:
        return torch.empty_like(taken[:0], dtype=torch.int64)
    picked: list[Tensor] = []
    remaining = k
    if nearest is None:
        if first is None:
            first = _draw(weights if bool(weights.any()) else weights + 1, 1, generator)
        nearest = torch.full_like(weights, torch.inf)
        lower_to(points, first, nearest)
        taken[first] = True
        picked, remaining = [first], k - 1
    else:
        nearest = nearest.clone()
    while remaining > 0:
        mass = nearest * weights  # zero for the picks: each is its own nearest centre
        if not bool(mass.any()):
            picked.append(torch.nonzero(~taken)[:remaining, 0])
            break
        proposals = _draw(mass, min(PROPOSALS, 2 * remaining), generator)
        kept = proposals[_accept(points, proposals, nearest[proposals], generator)][:remaining]
        lower_to(points, kept, nearest)
        taken[kept] = True
        picked.append(kept)
        remaining -= len(kept)
    return torch.cat(picked)


def greedy_seeds(points: Points, k: int, generator: torch.Generator, weights: Tensor) -> Tensor:
    """Greedy k-means++ seeding: positions (int64 [k], distinct), better seeds at a higher price.

    For each centre, 2 + log k candidates are drawn as `sample_by_distance` draws one, and the
    candidate that leaves the least weighted sum of squared distances is kept (Arthur &
    Vassilvitskii 2007, section 5). weights: float32 [n]. k must be at least 1 and at most n.

    Time O(n k D log k) multiply-adds; one pass over the points per centre.
    """
    trials = 2 + int(math.log(k))
    first = _draw(weights if bool(weights.any()) else weights + 1, 1, generator)
    nearest = torch.full_like(weights, torch.inf, dtype=points.centre.dtype)
    lower_to(points, first, nearest)
    picked = [first]
    while len(picked) < k:
        mass = nearest * weights
        if not bool(mass.any()):
            others = torch.ones_like(weights, dtype=torch.bool)
            others[torch.cat(picked)] = False
            picked.append(torch.nonzero(others)[: k - len(picked), 0])
            break
        drawn = _draw(mass, trials, generator)
        block = points.block(drawn)
        closer = torch.cat(
            [squared_distances(points.block(rows), block) for rows in points.slices(trials)]
        )
        closer = torch.minimum(closer, nearest[:, None])
        best = (weights.to(closer.dtype) @ closer).argmin(dim=0, keepdim=True)
        nearest = closer.index_select(1, best)[:, 0]
        nearest[drawn[best]] = 0
        picked.append(drawn[best])
    return torch.cat(picked)


def lower_to(points: Points, chosen: Tensor, nearest: Tensor) -> None:
    """Lower `nearest` [n] in place to the squared distances to the points at `chosen`."""
    block = points.block(chosen)
    for rows in points.slices(len(chosen)):
        distances = smallest_squared_distance(points.block(rows), block)
        nearest[rows] = torch.minimum(nearest[rows], distances)
    nearest[chosen] = 0


def _draw(mass: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` positions, independently, in proportion to `mass` [n] (some of it positive).

    Masses are rounded to integers, because a cumulative sum of floats differs from run to run on a
    GPU. A point of less than 2^-31 of the largest mass is never drawn.
    """
    steps = (mass.double() / mass.max() * 2**30).round().long().cumsum(dim=0)
    uniform = torch.rand(count, generator=generator, device=mass.device, dtype=torch.float64)
    return torch.searchsorted(steps, (uniform * steps[-1]).long(), right=True)


def _accept(
    points: Points, proposals: Tensor, before: Tensor, generator: torch.Generator
) -> Tensor:
    """Which proposals to keep, bool [b]; the first is always kept.

    before: their squared distances when they were drawn.
    """
    block = points.block(proposals)
    between = squared_distances(block, block)
    between[proposals[:, None] == proposals] = 0  # a second draw of one point is never kept
    uniform = torch.rand(len(proposals), generator=generator, device=before.device)
    now, needed = before, uniform * before
    kept = torch.zeros_like(proposals, dtype=torch.bool)
    for step in range(len(proposals)):
        keep = needed[step : step + 1] < now[step : step + 1]
        kept[step : step + 1] = keep
        now = torch.where(keep, torch.minimum(now, between[step]), now)
    return kept


@dataclass(frozen=True)
class Clusters:
    """The result of k-means.

    owner: int64 [n], the cluster of each point, in 0..k-1; a cluster may be empty.
    distance: [n], squared distance of each point to the mean of its cluster.
    objective: the sum over points of weight * distance.
    """

    owner: Tensor
    distance: Tensor
    objective: float


def k_means_clusters(
    points: Points,
    k: int,
    generator: torch.Generator,
    weights: Tensor | None = None,
    runs: int = 1,
) -> Clusters:
    """Lloyd's algorithm from k-means++ seeds; of several runs, the one of the least objective.

    weights: float32 [n], not negative: the weight of each point in seeding and in the means.
    Points must have no coefficients.

    Lloyd 1982; seeding as in `greedy_seeds` up to `GREEDY_UP_TO` clusters, and as in
    `sample_by_distance` above. A run ends when no point changes its cluster, or
    after `MAX_ITERATIONS` rounds. Points of more than `PROJECT_ABOVE` dimensions are clustered by
    their principal components, as Cohen et al. 2015, "Dimensionality Reduction for k-Means
    Clustering and Low Rank Approximation", show to be nearly the same for a fraction of the time.

    Time O(n k D) multiply-adds for the first round, D at most `PROJECT_ABOVE`, in matrix products.
    A later round compares the points whose own mean has moved with all means, and the others only
    with the means that have moved. Memory of one block and two k x D matrices beside the points and
    their projection.
    """
    if points.embeddings.shape[1] > PROJECT_ABOVE:
        points = project(points, principal_directions(points, DIRECTIONS, generator))
    results = (_one_run(points, k, generator, weights) for _ in range(runs))
    return min(results, key=lambda clusters: clusters.objective)


def _seeds(points: Points, k: int, generator: torch.Generator, weights: Tensor | None) -> Tensor:
    if k == 0 or k > GREEDY_UP_TO:
        return sample_by_distance(points, k, generator, weights=weights)
    ones = torch.ones_like(points.squared_norms)
    return greedy_seeds(points, k, generator, ones if weights is None else weights)


def _one_run(
    points: Points, k: int, generator: torch.Generator, weights: Tensor | None
) -> Clusters:
    centres = points.block(_seeds(points, k, generator, weights)).factors[0]
    everything = torch.arange(len(points), device=centres.device)
    owner, score = _nearest_centre(points, everything, centres)
    for _ in range(MAX_ITERATIONS):
        before = owner.clone()
        previous, centres = centres, _means(points, owner, centres, weights)
        moved = (centres != previous).any(dim=1)
        own_moved = moved[owner]
        stale = everything[own_moved]
        owner[stale], score[stale] = _nearest_centre(points, stale, centres)
        moved_centres = torch.nonzero(moved)[:, 0]
        if len(moved_centres):
            # Their own centre has not moved, so only a centre that has moved can now be nearer.
            settled = everything[~own_moved]
            rival, rival_score = _nearest_centre(points, settled, centres[moved_centres])
            nearer = rival_score > score[settled]
            owner[settled[nearer]] = moved_centres[rival[nearer]]
            score[settled[nearer]] = rival_score[nearer]
        if bool((owner == before).all()):
            break
    distance = torch.empty_like(points.squared_norms)
    for rows in points.slices(points.embeddings.shape[1]):
        offset = points.block(rows).factors[0] - centres[owner[rows]]
        distance[rows] = offset.square().sum(dim=1)
    cost = distance if weights is None else weights * distance
    return Clusters(owner, distance, float(cost.sum(dtype=torch.float64)))


def nearest_to_means(owner: Tensor, distance: Tensor, k: int) -> Tensor:
    """One point per cluster, the nearest to its mean: positions int64 [k], distinct.

    A point represents its own cluster only, so no point represents two. For each empty cluster one
    of the remaining points is taken, the farthest from its mean first.
    """
    n = len(owner)
    best = distance.new_full((k,), torch.inf).scatter_reduce(0, owner, distance, "amin")
    position = torch.arange(n, device=owner.device)
    candidate = torch.where(distance == best[owner], position, n)
    chosen = owner.new_full((k,), n).scatter_reduce(0, owner, candidate, "amin")
    chosen = chosen[chosen < n]
    rest = distance.clone()
    rest[chosen] = -1
    return torch.cat([chosen, top_k_stable(rest, k - len(chosen))])


def rank_within(groups: Tensor, values: Tensor, count: int) -> Tensor:
    """Rank (int64 [n], 0 for the largest value) of each element within its group of `count`.

    Ties go to the smaller position.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = torch.bincount(groups, minlength=count)
    starts = (sizes.cumsum(dim=0) - sizes)[groups[order]]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - starts
    return ranks


def _nearest_centre(points: Points, rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of `centres` [k, D] for each point at `rows` (int64 [m]), and its score [m].

    The score is x . c - |c|^2 / 2, which is the larger the nearer the centre c is to the point x.
    """
    norms = centres.square().sum(dim=1)
    block = Block((centres,), norms)
    owner, score = torch.empty_like(rows), torch.empty_like(norms[:1]).expand(len(rows)).clone()
    step = points.rows_per_block(len(centres))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        products = inner_products(points.block(rows[part]), block).sub_(norms / 2)
        score[part], owner[part] = products.max(dim=1)
    return owner, score


def _means(points: Points, owner: Tensor, centres: Tensor, weights: Tensor | None) -> Tensor:
    """The (weighted) mean of each cluster; a cluster without mass keeps its centre."""
    # The sum is in float64: a GPU adds in no fixed order, and the float32 result is the same.
    sums = torch.zeros_like(centres, dtype=torch.float64)
    mass = sums.new_zeros(len(centres))
    for rows in points.slices(2 * points.embeddings.shape[1]):
        members = points.block(rows).factors[0].double()
        share = members.new_ones(len(members)) if weights is None else weights[rows].double()
        sums.index_add_(0, owner[rows], members * share[:, None])
        mass.index_add_(0, owner[rows], share)
    return torch.where(mass[:, None] > 0, sums / mass.clamp_min(1e-300)[:, None], centres).to(
        centres.dtype
    )
