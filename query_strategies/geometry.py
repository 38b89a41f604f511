"""Squared Euclidean distances between many points, in blocks of bounded memory.

Distances are computed as |a|^2 + |b|^2 - 2 a.b, so that the work is matrix products. This identity
loses digits where the points lie far from the origin compared with their distances. Two measures
keep the digits: points are read relative to a centre, and `Points.of` uses float64 where float32
is not enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

# Elements of a temporary: 4 MB in float32. This is small enough for the cache and for the allocator
# to reuse (64 MB takes twice as long on a CPU, in page faults), and large enough for fast products.
BLOCK_ELEMENTS = 2**20
CENTRE_ELEMENTS = 2**22  # of the sample whose median is the centre
COPIES_BELOW = 1e-6  # squared distance of vectors of length 1 that are taken for copies
PRECISION_SAMPLE = 256  # points on which the precision is decided
LARGEST_ERROR = 1e-3  # relative, of the squared distance between neighbours


@dataclass(frozen=True)
class Block:
    """A few points. A point is the outer product of its row in each factor.

    factors: each [b, d_i]; squared_norms: [b]. All have the dtype of the `Points` they are from.
    """

    factors: tuple[Tensor, ...]
    squared_norms: Tensor


@dataclass(frozen=True)
class Points:
    """n points, of which one block at a time is converted to the dtype of the arithmetic.

    embeddings: float or uint8 [n, D], read as `embeddings - centre`.
    centre: float32 or float64 [D]. Its dtype is the dtype of all arithmetic with these points.
    coefficients: None, or float32 [n, C]. Point i is then the outer product
    coefficients[i] x (embeddings[i] - centre) of C * D numbers, which is never formed.
    squared_norms: [n], in the dtype of the centre.
    """

    embeddings: Tensor
    centre: Tensor
    coefficients: Tensor | None
    squared_norms: Tensor

    @staticmethod
    def of(
        embeddings: Tensor, centre: Tensor | None = None, coefficients: Tensor | None = None
    ) -> Points:
        """Points with their norms, in float64 where float32 would spoil the distances.

        Float64 is chosen where, for a tenth of a sample or more, the rounding error of a squared
        distance in float32 exceeds `LARGEST_ERROR` of the squared distance to the nearest
        neighbour. This is so for tight clusters that lie far apart.

        The centre defaults to `median`, which an outlier does not move. With coefficients it must
        be given, because there a shift changes the distances. ValueError where an embedding or a
        coefficient is not finite. One pass over the data.
        """
        if centre is None:
            if coefficients is not None:
                raise ValueError("points with coefficients need an explicit centre")
            centre = median(embeddings)
        points = _with_norms(embeddings, centre, coefficients)
        if _float32_suffices(points):
            return points
        return _with_norms(embeddings, centre.double(), coefficients)

    def beside(self, embeddings: Tensor) -> Points:
        """Other points, [m, D], with the same centre and the same precision."""
        return _with_norms(embeddings, self.centre, None)

    def __len__(self) -> int:
        return len(self.embeddings)

    def block(self, where: slice | Tensor) -> Block:
        """The points at a slice or at int64 positions."""
        dtype = self.centre.dtype
        shifted = self.embeddings[where].to(dtype) - self.centre
        norms = self.squared_norms[where]
        if self.coefficients is None:
            return Block((shifted,), norms)
        return Block((shifted, self.coefficients[where].to(dtype)), norms)

    def slices(self, width: int = 0) -> Iterator[slice]:
        """Slices over all points, each of `rows_per_block(width)` rows."""
        step = self.rows_per_block(width)
        return (slice(start, start + step) for start in range(0, len(self), step))

    def rows_per_block(self, width: int) -> int:
        """Rows of a block whose D columns, and whose `width` columns of results, fit the bound."""
        return max(1, BLOCK_ELEMENTS // max(1, self.embeddings.shape[1], width))


def _with_norms(embeddings: Tensor, centre: Tensor, coefficients: Tensor | None) -> Points:
    bare = Points(embeddings, centre, coefficients, centre.new_zeros(len(embeddings)))
    norms = [
        reduce(torch.mul, (f.square().sum(dim=1) for f in bare.block(rows).factors))
        for rows in bare.slices()
    ]
    squared_norms = torch.cat(norms or [bare.squared_norms])
    if not bool(squared_norms.isfinite().all()):
        count = int((~squared_norms.isfinite()).sum())
        raise ValueError(f"{count} of {len(squared_norms)} embeddings are not finite")
    return Points(embeddings, centre, coefficients, squared_norms)


def _float32_suffices(points: Points) -> bool:
    """Whether float32 keeps the distances between neighbours; see `Points.of`."""
    sample = _evenly_spaced(len(points), PRECISION_SAMPLE, points.centre.device)
    if len(sample) < 2:
        return True
    factors = tuple(factor.double() for factor in points.block(sample).factors)
    norms = reduce(torch.mul, (factor.square().sum(dim=1) for factor in factors))
    block = Block(factors, norms)
    between = squared_distances(block, block)
    # Copies of a point are no neighbours: float32 gives them a distance near zero, as it should.
    between[between <= 1e-12 * norms[:, None]] = torch.inf
    error = 4 * torch.finfo(torch.float32).eps * norms
    relative = error / between.amin(dim=1)
    return bool(relative.quantile(0.9) <= LARGEST_ERROR)


def median(embeddings: Tensor) -> Tensor:
    """Median of each column of [n, D], float32 [D], over a sample of evenly spaced rows.

    Between two values the lower is taken. The sample has at most `CENTRE_ELEMENTS` numbers.
    """
    n, dimension = embeddings.shape
    if n == 0:
        return embeddings.new_zeros(dimension, dtype=torch.float32)
    rows = _evenly_spaced(n, max(1, CENTRE_ELEMENTS // max(1, dimension)), embeddings.device)
    return embeddings[rows].float().median(dim=0).values


def of_length_one(embeddings: Tensor) -> Tensor:
    """Embeddings [n, D] scaled to length 1, in their own precision, whole numbers in float16.

    A row of zeros stays zero.
    """
    dtype = embeddings.dtype if embeddings.is_floating_point() else torch.float16
    scaled = torch.empty(embeddings.shape, dtype=dtype, device=embeddings.device)
    step = max(1, BLOCK_ELEMENTS // max(1, embeddings.shape[1]))
    for start in range(0, len(embeddings), step):
        rows = slice(start, start + step)
        scaled[rows] = torch.nn.functional.normalize(embeddings[rows].float(), dim=1)
    return scaled


def _evenly_spaced(n: int, count: int, device: torch.device) -> Tensor:
    """At most `count` of the positions 0..n-1, int64, ascending and distinct."""
    count = min(n, count)
    return torch.arange(count, device=device) * n // max(1, count)


def inner_products(a: Block, b: Block) -> Tensor:
    """Inner products, [len(a), len(b)]."""
    return reduce(torch.mul, (x @ y.T for x, y in zip(a.factors, b.factors, strict=True)))


def squared_distances(a: Block, b: Block) -> Tensor:
    """Squared Euclidean distances, [len(a), len(b)], never negative."""
    doubled = inner_products(a, b).mul_(-2)
    return doubled.add_(a.squared_norms[:, None]).add_(b.squared_norms).clamp_min_(0)


def smallest_squared_distance(a: Block, b: Block) -> Tensor:
    """Squared distance from each point of `a` to the nearest of `b`, [len(a)]."""
    # |a|^2 is added last, to one number per row: the large product is read twice less.
    closest = inner_products(a, b).sub_(b.squared_norms / 2).amax(dim=1)
    return (a.squared_norms - 2 * closest).clamp_min_(0)


def nearest_neighbour(points: Points, copies_below: float) -> Tensor:
    """Squared distance from each point to its nearest neighbour, [n]; inf where it has none.

    Neighbours nearer than `copies_below` (squared) are copies and do not count. O(n^2 D) time;
    memory of a few blocks.
    """
    nearest = torch.full_like(points.squared_norms, torch.inf)
    everything = points.block(slice(None))
    for rows in points.slices(len(points)):
        distances = squared_distances(points.block(rows), everything)
        distances[distances < copies_below] = torch.inf
        nearest[rows] = distances.amin(dim=1)
    return nearest


def nearest_squared_distance(points: Points, centres: Points) -> Tensor:
    """Squared distance from each point to the nearest centre, [n]; inf where there is no centre.

    O(n m D) time; memory of one block.
    """
    nearest = torch.full_like(points.squared_norms, torch.inf)
    for columns in centres.slices():
        block = centres.block(columns)
        for rows in points.slices(len(block.squared_norms)):
            distances = smallest_squared_distance(points.block(rows), block)
            nearest[rows] = torch.minimum(nearest[rows], distances)
    return nearest
