"""Points reduced to their principal directions: distances at a fraction of the cost."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import Points

SAMPLE = 4096
ITERATIONS = 3


def principal_directions(points: Points, count: int, generator: torch.Generator) -> Tensor:
    """Orthonormal [D, count] that spans nearly the leading principal directions.

    Subspace iteration on a random `SAMPLE` of the points: Halko et al. 2011, "Finding Structure
    with Randomness". O(SAMPLE D count). D must exceed `count`. Directions are principal about the
    points' centre.
    """
    device = points.centre.device
    chosen = torch.randperm(len(points), generator=generator, device=device)[:SAMPLE]
    sample = points.block(chosen).factors[0]
    shape = (sample.shape[1], count)
    basis = torch.randn(shape, generator=generator, device=device).to(sample.dtype)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
    return basis


def project(points: Points, directions: Tensor) -> Points:
    """The points by their coordinates along the directions, with the norms of the whole points.

    Inner products then lack what two points have in common outside the directions, and nothing
    else: distances are right for points whose remainders are orthogonal, as the remainders of noise
    nearly are. O(n D count) for `count` directions; memory n x count.
    """
    parts = [points.block(rows).factors[0] @ directions for rows in points.slices()]
    coordinates = torch.cat(parts) if parts else directions.new_zeros(0, directions.shape[1])
    origin = torch.zeros_like(directions[0])
    return Points(coordinates, origin, None, points.squared_norms)
