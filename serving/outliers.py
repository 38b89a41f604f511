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
BLOCK_BYTES = 2**26  # of distances computed at a time


class Neighbours:
    """Labelled images to compare others with.

    Args:
        references: embeddings float32 [n, D]; n is at least 1.
        count: how many nearest ones count; all where there are fewer.
    """

    def __init__(self, references: NDArray[np.float32], count: int = NEIGHBOURS) -> None:
        self._squares = np.square(references, dtype=np.float32).sum(1)
        self._products = np.ascontiguousarray(-2 * references.T, np.float32)  # [D, n]
        self._count = min(count, len(references))

    def distances(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean distance to the nearest references: embeddings [B, D] to float32 [B]."""
        step = max(1, BLOCK_BYTES // (4 * len(self._squares)))
        if len(embeddings) <= step:
            return self._block(embeddings)
        parts = [
            self._block(embeddings[start : start + step])
            for start in range(0, len(embeddings), step)
        ]
        return np.concatenate(parts)

    def _block(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab: one matrix product, never an [B, n, D] array.
        squares = embeddings @ self._products
        squares += self._squares
        squares.partition(self._count - 1, axis=1)
        nearest = squares[:, : self._count]
        nearest += np.square(embeddings).sum(1, keepdims=True)
        mean: NDArray[np.float32] = np.sqrt(np.maximum(nearest, 0)).mean(1)
        return mean
