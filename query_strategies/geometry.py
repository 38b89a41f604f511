"""Squared Euclidean distances between many points, in blocks of bounded memory.

Everything is float32 arithmetic on squared distances |a|^2 + |b|^2 - 2 a.b, so that the work is
matrix products. Points are shifted to their mean first: the identity loses digits where the
points lie far from the origin compared with their spread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

# Elements a temporary may hold: 4 MB in float32. Small enough for the cache and for the allocator
# to reuse (64 MB took twice as long on a CPU, in page faults), large enough for fast products.
BLOCK_ELEMENTS = 2**20


@dataclass(frozen=True)
class Block:
    """A few points in float32. A point is the outer product of its row in each factor.

    factors: each float32 [b, d_i]; squared_norms: float32 [b].
    """

    factors: tuple[Tensor, ...]
    squared_norms: Tensor


@dataclass(frozen=True)
class Points:
    """n points of which only a block at a time is held in float32.

    embeddings: float or uint8 [n, D], read as `embeddings - centre`; centre: float32 [D].
    coefficients: None, or float32 [n, C]: point i is then the outer product
    coefficients[i] x (embeddings[i] - centre) of C * D numbers, which is never formed.
    squared_norms: float32 [n].
    """

    embeddings: Tensor
    centre: Tensor
    coefficients: Tensor | None
    squared_norms: Tensor

    @staticmethod
    def of(
        embeddings: Tensor, centre: Tensor | None = None, coefficients: Tensor | None = None
    ) -> Points:
        """Points with their norms, one pass over the data.

        The centre defaults to the mean; with coefficients it must be given, because there a shift
        changes the distances. ValueError where an embedding or coefficient is not finite.
        """
        if centre is None:
            if coefficients is not None:
                raise ValueError("points with coefficients need an explicit centre")
            centre = mean(embeddings)
        bare = Points(embeddings, centre, coefficients, centre.new_zeros(len(embeddings)))
        norms = torch.cat([bare._norms(rows) for rows in bare.slices()] or [bare.squared_norms])
        if not bool(norms.isfinite().all()):
            raise ValueError(
                f"{int((~norms.isfinite()).sum())} of {len(norms)} embeddings are not finite"
            )
        return Points(embeddings, centre, coefficients, norms)

    def __len__(self) -> int:
        return len(self.embeddings)

    def block(self, where: slice | Tensor) -> Block:
        """The points at a slice or at int64 positions, in float32."""
        shifted = self.embeddings[where].float() - self.centre
        norms = self.squared_norms[where]
        if self.coefficients is None:
            return Block((shifted,), norms)
        return Block((shifted, self.coefficients[where]), norms)

    def slices(self, width: int = 0) -> Iterator[slice]:
        """Slices over all points, each of `rows_per_block(width)` rows."""
        step = self.rows_per_block(width)
        return (slice(start, start + step) for start in range(0, len(self), step))

    def rows_per_block(self, width: int) -> int:
        """Rows of a block whose D columns, and whose `width` columns of results, fit the bound."""
        return max(1, BLOCK_ELEMENTS // max(1, self.embeddings.shape[1], width))

    def _norms(self, rows: slice) -> Tensor:
        return reduce(torch.mul, (f.square().sum(dim=1) for f in self.block(rows).factors))


def mean(embeddings: Tensor) -> Tensor:
    """Mean row of [n, D] as float32 [D], summed in float32 whatever the dtype of the rows.

    A block at a time, because to sum whole numbers torch makes a float32 copy of all of them.
    """
    total = embeddings.new_zeros(embeddings.shape[1], dtype=torch.float32)
    for block in embeddings.split(max(1, BLOCK_ELEMENTS // max(1, embeddings.shape[1]))):
        total += block.sum(dim=0, dtype=torch.float32)
    return total / max(1, len(embeddings))


def inner_products(a: Block, b: Block) -> Tensor:
    """Inner products, float32 [len(a), len(b)]."""
    return reduce(torch.mul, (x @ y.T for x, y in zip(a.factors, b.factors, strict=True)))


def squared_distances(a: Block, b: Block) -> Tensor:
    """Squared Euclidean distances, float32 [len(a), len(b)], never negative."""
    doubled = inner_products(a, b).mul_(-2)
    return doubled.add_(a.squared_norms[:, None]).add_(b.squared_norms).clamp_min_(0)


def smallest_squared_distance(a: Block, b: Block) -> Tensor:
    """Squared distance from each point of `a` to the nearest of `b`, float32 [len(a)]."""
    # |a|^2 is left out until one number per row remains: the product's result is read twice less.
    closest = inner_products(a, b).sub_(b.squared_norms / 2).amax(dim=1)
    return (a.squared_norms - 2 * closest).clamp_min_(0)


def nearest_squared_distance(points: Points, centres: Points) -> Tensor:
    """Squared distance from each point to the nearest centre, float32 [n]; inf where m = 0.

    O(n m D) time; memory of one block.
    """
    nearest = torch.full_like(points.squared_norms, torch.inf)
    for columns in centres.slices():
        reached = centres.block(columns)
        for rows in points.slices(len(reached.squared_norms)):
            distances = smallest_squared_distance(points.block(rows), reached)
            nearest[rows] = torch.minimum(nearest[rows], distances)
    return nearest
