"""Coverage by a smooth kernel: every candidate should have a labelled or picked image near it."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import COPIES_BELOW, Points, nearest_neighbour, of_length_one, squared_distances
from .scores import (
    PoolScores,
    pick_count,
    refuse_nan,
    required_embeddings,
    required_probabilities,
)
from .uncertainty import calibrated, margin_uncertainty

MAX_POOL = 16_000  # candidates in the kernel matrix
FLOAT32_UP_TO = 4_000  # above, the matrix is kept in half precision
MAX_HERDING_RADIUS = 1.0  # the authors' value for vectors of length 1
EVALUATED = 32  # candidates whose gain is computed at a time


def max_herding(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Greedily the candidates that add most to the mean similarity to the nearest labelled image.

    Bae et al. 2024, "Generalized Coverage for More Robust Low-Budget Active Learning" (MaxHerding):
    embeddings are scaled to length 1, and the similarity of x and y is exp(-|x - y|^2 / r^2) with r
    = `MAX_HERDING_RADIUS`. For small budgets; the model's probabilities are not used.

    Cost: see `_herd`.
    """
    count = pick_count(scores, k)
    if count == 0:
        return scores.candidates[:0]
    weights = torch.ones(len(scores.candidates), device=scores.candidates.device)
    return _herd(scores, weights, MAX_HERDING_RADIUS**2, count, generator)


def u_herding(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """`max_herding` that covers uncertain candidates first, ever more locally.

    Bae et al. 2025, "Uncertainty Herding: One Active Learning Method for All Label Budgets"
    (UHerding). Similarities are weighted with the candidate's uncertainty, 1 - (p1 - p2), by
    calibrated probabilities: the logits of each pass are divided by `scores.temperature`. The
    radius is the smallest distance between two labelled images, so that it shrinks as labels come
    in: the first queries cover the pool, the last ones follow the uncertainty. With fewer than two
    different labelled images the radius is that of `max_herding`.

    The paper chooses the temperature of least calibration error on a part of the labelled images
    that a second network has not seen. Here it has the least cross-entropy on the validation
    split, which needs no second network.

    Cost: see `_herd`, O(m^2 D) for m labelled images, and O(T n C); a copy of the probabilities.
    """
    count = pick_count(scores, k)
    weights = margin_uncertainty(calibrated(required_probabilities(scores), scores.temperature))
    refuse_nan(weights)
    required_embeddings(scores)
    if count == 0:
        return scores.candidates[:0]
    radius = _smallest_squared_distance(scores.labelled_embeddings)
    return _herd(scores, weights, radius, count, generator)


def _smallest_squared_distance(embeddings: Tensor | None) -> float:
    """Between two different vectors, scaled to length 1; `MAX_HERDING_RADIUS` without any."""
    if embeddings is None or len(embeddings) < 2:
        return MAX_HERDING_RADIUS**2
    nearest = nearest_neighbour(Points.of(of_length_one(embeddings)), COPIES_BELOW)
    smallest = float(nearest.min())
    return MAX_HERDING_RADIUS**2 if smallest == torch.inf else smallest


def _herd(
    scores: PoolScores,
    weights: Tensor,
    squared_radius: float,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Greedy maximum of the mean over candidates of weight * similarity to the nearest centre.

    Centres are the labelled images and the picks. weights: float32 [n]. Returns dataset indices,
    int64 [count]. The gain of a candidate only falls as picks are added. So candidates are
    evaluated in the order of their last known gain, and only as far as one could still win.

    The kernel matrix has at most `MAX_POOL` candidates: a random part of that size stands for a
    larger pool, and further picks than it holds are random. Time O(n'^2 D) for the matrix, n' =
    min(n, `MAX_POOL`), and O(n' `EVALUATED`) for each evaluation, of which there are a few for a
    pick. Memory: 2 n'^2 bytes and a copy of the embeddings. A few host synchronisations per pick.
    """
    n = len(scores.candidates)
    shuffled = torch.randperm(n, generator=generator, device=scores.candidates.device)
    # In ascending order, so that ties go to the smaller dataset index.
    kept = shuffled[:MAX_POOL].sort().values
    points = Points.of(of_length_one(required_embeddings(scores)[kept]))
    weights = weights[kept]
    similarity = _similarities(points, squared_radius)
    covered = torch.zeros_like(weights)
    if scores.labelled_embeddings is not None:
        labelled = points.beside(of_length_one(scores.labelled_embeddings))
        for rows in labelled.slices(len(points)):
            block = labelled.block(rows)
            for columns in points.slices(len(block.squared_norms)):
                distances = squared_distances(points.block(columns), block)
                near = torch.exp(-distances.amin(dim=1) / squared_radius)
                covered[columns] = torch.maximum(covered[columns], near.float())

    gains = torch.full_like(weights, torch.inf)  # upper bounds, except where just computed
    picked: list[Tensor] = []
    for _ in range(min(count, len(kept))):
        best = _largest_gain(similarity, covered, weights, gains)
        picked.append(best)
        gains[best] = -torch.inf
        covered = torch.maximum(covered, similarity[best][0].float())
    chosen = kept[torch.cat(picked)]
    others = shuffled[~torch.isin(shuffled, kept)]
    return scores.candidates[torch.cat([chosen, others])[:count]]


def _similarities(points: Points, squared_radius: float) -> Tensor:
    """exp(-squared distance / squared radius) between all points, [n, n]."""
    n = len(points)
    dtype = torch.float32 if n <= FLOAT32_UP_TO else torch.float16
    similarity = torch.empty(n, n, dtype=dtype, device=points.centre.device)
    everything = points.block(slice(None))
    for rows in points.slices(n):
        distances = squared_distances(points.block(rows), everything)
        similarity[rows] = torch.exp(-distances / squared_radius).to(dtype)
    similarity.fill_diagonal_(1)
    return similarity


def _largest_gain(similarity: Tensor, covered: Tensor, weights: Tensor, gains: Tensor) -> Tensor:
    """Position (int64 [1]) of the largest gain; the smaller position wins a tie.

    gains: [n], upper bounds on the gains, and -inf for the picks. They are replaced by the gains
    themselves, in place, from the largest down, until a gain is at least as large as every bound.
    """
    computed = torch.zeros_like(gains, dtype=torch.bool)
    while True:
        best = gains.argmax(dim=0, keepdim=True)
        if bool(computed[best]):
            return best
        rows = torch.cat([best, gains.topk(min(EVALUATED, len(gains))).indices])
        rows = rows[~computed[rows] & (gains[rows] > -torch.inf)]
        gains[rows] = (similarity[rows].float() - covered).clamp_min_(0) @ weights
        computed[rows] = True
