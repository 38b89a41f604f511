"""Query strategies as they are usually written: a loop over the picks, in NumPy float32.

Each pick visits all points. `benchmarks.speed` times a few picks of a large query and extrapolates,
because the whole query would take up to an hour.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def k_center(points: Floats, picks: int) -> NDArray[np.int64]:
    """Greedy farthest-first; each pick computes all distances to the new centre."""
    picked = [0]
    nearest = np.full(len(points), np.inf, np.float32)
    for _ in range(picks):
        nearest = np.minimum(nearest, np.linalg.norm(points - points[picked[-1]], axis=1))
        picked.append(int(nearest.argmax()))
    return np.array(picked[1:])


def weighted_d2_sampling(points: Floats, weights: Floats, picks: int) -> NDArray[np.int64]:
    """Weighted k-means++ seeding with one pass over the points per pick."""
    generator = np.random.default_rng(0)
    picked = [int(weights.argmax())]
    nearest = np.full(len(points), np.inf, np.float32)
    while len(picked) < picks:
        nearest = np.minimum(nearest, ((points - points[picked[-1]]) ** 2).sum(axis=1))
        mass = (nearest * weights).astype(np.float64)
        mass[picked] = 0
        mass = mass / mass.sum() if mass.sum() > 0 else np.full(len(points), 1 / len(points))
        picked.append(int(generator.choice(len(points), p=mass)))
    return np.array(picked)


def gradient_embeddings(embeddings: Floats, probabilities: Floats) -> Floats:
    """The full gradient embeddings [n, C * D] of BADGE."""
    residual = probabilities.copy()
    residual[np.arange(len(residual)), probabilities.argmax(axis=1)] -= 1
    product: Any = residual[:, :, None] * embeddings[:, None, :]
    return product.reshape(len(embeddings), -1)


def lloyd_assignment(points: Floats, centres: Floats) -> NDArray[np.int64]:
    """The nearest of `centres` to each point, which is nearly all the work of a k-means round."""
    scores: Any = points @ centres.T - (centres**2).sum(axis=1) / 2
    return np.asarray(scores.argmax(axis=1))
