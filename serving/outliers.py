"""How far an image is from everything that was labelled.

The distance is the mean Euclidean distance between the image's embedding and the five nearest
embeddings of labelled images. After Sun et al. 2022, "Out-of-Distribution Detection with Deep
Nearest Neighbors", arXiv 2204.06507, who normalise embeddings to length 1 and take the k-th
distance. Here the length stays: on blood cells it detects more (`python -m benchmarks.outliers`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 5
PERCENTILE = 95.0
BLOCK_BYTES = 2**26  # of distances, or of differences, computed at a time
# References that a core's cache holds are compared one and all. More are read from memory, which
# takes longer than computing with them, so most are ruled out first.
CACHED_BYTES = 2**21
DIRECTIONS = 32  # of a projection that rules references out
# Rounding of a squared distance, as a share of the squared lengths that it is computed from.
ROUNDING = 1e-5


class Neighbours:
    """Labelled images to compare others with.

    The distances are exact. Where there are many references, a lower bound rules most of them out:
    two points are at least as far apart as their projections on a few directions, together with
    the difference of the lengths that the projection leaves out.

    Args:
        references: embeddings float32 [n, D]; n is at least 1.
        count: how many nearest ones count; all where there are fewer.
    """

    def __init__(self, references: NDArray[np.float32], count: int = NEIGHBOURS) -> None:
        self._references = np.ascontiguousarray(references, np.float32)
        self._count = min(count, len(references))
        self._projection: Projection | None = None
        compared = self._references
        if self._references.nbytes > CACHED_BYTES and min(references.shape) > DIRECTIONS:
            self._projection = Projection(self._references)
            compared = self._projection.project(self._references)
        self._squares = np.square(compared).sum(1)
        self._products = np.ascontiguousarray(-2 * compared.T)

    def distances(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean distance to the nearest references: embeddings [B, D] to float32 [B]."""
        step = max(1, BLOCK_BYTES // (4 * len(self._squares)))
        one_block = self._all if self._projection is None else self._not_ruled_out
        if len(embeddings) <= step:
            return one_block(embeddings)
        parts = [
            one_block(embeddings[start : start + step]) for start in range(0, len(embeddings), step)
        ]
        return np.concatenate(parts)

    def _all(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        squares = self._squared(embeddings)
        squares.partition(self._count - 1, axis=1)
        mean: NDArray[np.float32] = np.sqrt(np.maximum(squares[:, : self._count], 0)).mean(1)
        return mean

    def _not_ruled_out(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        assert self._projection is not None
        projected = self._projection.project(embeddings)
        bounds = self._squared(projected)
        rounding = ROUNDING * (np.square(projected).sum(1) + self._squares.max())
        means = np.empty(len(embeddings), np.float32)
        for row, embedding in enumerate(embeddings):
            likely = bounds[row].argpartition(self._count - 1)[: self._count]
            limit = self._exact(embedding, likely).max() + rounding[row]
            squares = self._exact(embedding, np.flatnonzero(~(bounds[row] > limit)))
            squares.partition(self._count - 1)
            means[row] = np.sqrt(squares[: self._count]).mean()
        return means

    def _squared(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Squared distances of points [B, d] to all references, [B, n], d being D or projected."""
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab: one matrix product, never a [B, n, d] array.
        squares = points @ self._products
        squares += self._squares
        squares += np.square(points).sum(1, keepdims=True)
        return squares

    def _exact(
        self, embedding: NDArray[np.float32], chosen: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Squared distances of one embedding [D] to the chosen references."""
        squares = np.empty(len(chosen), np.float32)
        step = max(1, BLOCK_BYTES // embedding.nbytes)
        for start in range(0, len(chosen), step):
            apart = self._references[chosen[start : start + step]]
            apart -= embedding
            np.einsum("nd,nd->n", apart, apart, out=squares[start : start + step])
        return squares


class Projection:
    """The directions in which points [n, D] differ most, found by two steps of subspace iteration.

    Halko, Martinsson and Tropp 2011, "Finding Structure with Randomness", SIAM Review 53(2).
    """

    def __init__(self, points: NDArray[np.float32]) -> None:
        self._centre = points.mean(0)
        centred = points - self._centre
        shape = (points.shape[1], DIRECTIONS)
        directions = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        for _ in range(2):
            directions, _ = np.linalg.qr(centred.T @ (centred @ directions))
        self._directions = np.ascontiguousarray(directions)

    def project(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points [B, D] as [B, `DIRECTIONS` + 1]; the last value is the length that is left out."""
        centred = points - self._centre
        inside = centred @ self._directions
        left_out = np.square(centred).sum(1) - np.square(inside).sum(1)
        return np.column_stack((inside, np.sqrt(np.maximum(left_out, 0))))
