"""Greedy k-center (farthest-first traversal), exact, as a few matrix products.

The textbook algorithm reads all n points once per pick: k matrix-vector products, limited by memory
traffic. Here one product serves many picks, and the picks are the same:

1. The `FRONT` points with the largest score form the front; no point outside scores more than
   `threshold`. Scores only fall, so the best point of the front is the greedy pick as long as its
   score is at or above the threshold. Distances inside the front are one small product.
2. When the best score of the front falls below the threshold, one product applies all picks so far
   to all points.
3. A point within half the radius of its nearest centre cannot be nearer to a new centre (triangle
   inequality: each new centre is at least the radius away from every older one). That product
   leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .geometry import Points, smallest_squared_distance, squared_distances

FRONT = 1024


def _itself(squared_distance: Tensor) -> Tensor:
    return squared_distance


def farthest_first(
    points: Points,
    k: int,
    nearest: Tensor | None,
    weights: Tensor | None = None,
    value: Callable[[Tensor], Tensor] = _itself,
) -> Tensor:
    """Positions (int64 [k], in order, distinct) that greedily maximise weight * value of distance.

    nearest: [n], squared distance of each point to its nearest existing centre; None: there is
    none, and the first pick is the point nearest to the points' centre.
    weights: float32 [n], positive; None: all one. k must be at most n.
    value: of squared distances, element by element; must not fall as they grow, and be negative
    for -1, which marks a picked point.

    Ties go to the smaller position as far as rounding of the distances allows. Time O(n k D)
    multiply-adds at most, in matrix products; memory of one block beside the points. One host
    synchronisation per product, none per pick.
    """
    weights = torch.ones_like(points.squared_norms) if weights is None else weights
    if k == 0:
        return torch.empty_like(weights[:0], dtype=torch.int64)
    picked: list[Tensor] = []
    if nearest is None:
        picked = [points.squared_norms.argmin(dim=0, keepdim=True)]
        nearest = torch.full_like(weights, torch.inf)
        _apply(points, picked[0], nearest, reach=torch.zeros_like(weights[:1]))
    else:
        nearest = nearest.clone()
    remaining, steps = k - len(picked), 16
    while remaining > 0:
        ranked = (value(nearest) * weights).sort(descending=True, stable=True)
        front = ranked.indices[:FRONT].sort().values
        # Picked points score below zero, so a threshold of zero excludes them.
        threshold = ranked.values[FRONT:][:1].clamp_min(0)
        steps = min(steps, remaining, len(front))
        chosen, scores, reach = _pick_inside(
            points, front, nearest[front], weights[front], value, steps
        )
        count = int((scores >= (threshold if len(threshold) else 0)).sum())
        chosen = front[chosen[:count]]
        _apply(points, chosen, nearest, reach[:count])
        picked.append(chosen)
        remaining -= count
        steps = max(16, 2 * count)
    return torch.cat(picked)


def _pick_inside(
    points: Points,
    front: Tensor,
    nearest: Tensor,
    weights: Tensor,
    value: Callable[[Tensor], Tensor],
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`steps` greedy picks among the front: positions inside it, their scores and distances."""
    block = points.block(front)
    between = squared_distances(block, block)
    between.fill_diagonal_(-1)  # a picked point falls below every other
    chosen = torch.empty_like(front[:steps])
    scores, reach = torch.empty_like(nearest[:steps]), torch.empty_like(nearest[:steps])
    for step in range(steps):
        best, at = (value(nearest) * weights).max(dim=0, keepdim=True)
        chosen[step : step + 1] = at
        scores[step : step + 1] = best
        reach[step : step + 1] = nearest[at]
        nearest = torch.minimum(nearest, between.index_select(0, at)[0])
    return chosen, scores, reach


def _apply(points: Points, chosen: Tensor, nearest: Tensor, reach: Tensor) -> None:
    """Lower `nearest` in place for new centres; reach: their squared distances when picked."""
    block = points.block(chosen)
    active = torch.nonzero(nearest > reach.min() / 4)[:, 0]
    for rows in torch.split(active, points.rows_per_block(len(chosen))):
        distances = smallest_squared_distance(points.block(rows), block)
        nearest[rows] = torch.minimum(nearest[rows], distances)
    nearest[chosen] = -1
