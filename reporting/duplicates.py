"""Finds images that are the same, and images that are nearly the same, within and across splits.

Nearly the same means: reduced to `SIDE` pixels, and each channel's mean taken off, the pixels of
two images correlate at `threshold` or more. So a copy that was compressed anew, made brighter or
given more contrast is found, and one that was shifted, turned or cropped is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

SIDE = 32
FLAT = 1.0  # grey levels: an image whose pixels deviate less from their mean is compared to none
COMPONENTS = 48
SAMPLE = 2048  # images that the principal components come from
ROWS, COLUMNS = 1024, 8192  # images compared with each other at a time
BLOCK = 1024  # images, or pairs, whose pixels are held at a time
MOST_PAIRS = 100_000
ROUNDING = 1e-5  # that float32 makes in a product of two features


@dataclass(frozen=True)
class Pairs:
    """Pairs of images that are alike, the most alike first.

    first, second: int64 [P], positions in the splits laid end to end, first < second.
    similarity: float32 [P], correlations from `threshold` to 1.
    threshold: what was asked for; more if that would have given over `MOST_PAIRS` pairs.
    """

    first: Tensor
    second: Tensor
    similarity: Tensor
    threshold: float


def first_copies(splits: Sequence[Tensor]) -> Tensor:
    """For each image, in the splits laid end to end, the first with the same bytes: int64 [N].

    Args:
        splits: uint8 [n, C, S, S] each.
    """
    first: dict[bytes, int] = {}
    found: list[int] = []
    for block in _blocks(splits, "hashing"):
        for image in block.numpy():
            digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            found.append(first.setdefault(digest, len(found)))
    return torch.tensor(found)


def near_pairs(
    splits: Sequence[Tensor], chosen: Tensor, threshold: float, generator: torch.Generator
) -> Pairs:
    """All pairs among the `chosen` images (int64, ascending) that are nearly the same.

    Exact: compared are projections on principal components, to which the length of what they leave
    out is added; that can only overestimate a correlation (Cauchy-Schwarz), and pairs that pass are
    compared whole. Memory grows with the number of images (200 bytes each), not of pairs.

    Args:
        splits: uint8 [n, C, S, S] each, on the CPU.
        generator: draws the images that the components come from.
    """
    drawn = chosen[torch.randperm(len(chosen), generator=generator)[:SAMPLE]]
    sample = _standardised(_gather(splits, drawn))
    components = _components(sample, generator)
    features = torch.cat(
        [
            _features(_standardised(_gather(splits, part)), components)
            for part in tqdm(chosen.split(BLOCK), desc="projecting", leave=False, disable=None)
        ]
    )
    none = torch.empty(0, dtype=torch.int64)
    best = Pairs(none, none, torch.empty(0), threshold)
    for start in tqdm(range(0, len(chosen), ROWS), desc="comparing", leave=False, disable=None):
        for other in range(start, len(chosen), COLUMNS):
            bounds = features[start : start + ROWS] @ features[other : other + COLUMNS].T
            rows, columns = (bounds >= best.threshold - ROUNDING).nonzero().T
            rows, columns = rows + start, columns + other
            once = rows < columns
            for pair in torch.stack([chosen[rows[once]], chosen[columns[once]]]).split(BLOCK, 1):
                best = _with(best, splits, pair)
    return best


def _with(best: Pairs, splits: Sequence[Tensor], pair: Tensor) -> Pairs:
    """`best` and those of the candidates `pair` [2, p] that are alike, at most `MOST_PAIRS`."""
    first, second = (_standardised(_gather(splits, side)) for side in pair)
    similarity = (first * second).sum(1).clamp(max=1)
    alike = similarity >= best.threshold
    similarity, order = torch.cat([best.similarity, similarity[alike]]).sort(
        descending=True, stable=True
    )
    threshold = best.threshold
    if len(order) > MOST_PAIRS:
        order, similarity = order[:MOST_PAIRS], similarity[:MOST_PAIRS]
        threshold = float(similarity[-1])
    firsts = torch.cat([best.first, pair[0][alike]])[order]
    seconds = torch.cat([best.second, pair[1][alike]])[order]
    return Pairs(firsts, seconds, similarity, threshold)


def _components(sample: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 [D, K]: orthonormal directions in which the sample [n, D] varies most.

    Halko et al. 2011 (doi 10.1137/090771806): a random projection and two power iterations.
    """
    count = min(COMPONENTS, *sample.shape)
    drawn = torch.randn(sample.shape[1], count, generator=generator)
    for _ in range(3):
        drawn = torch.linalg.qr(sample.T @ (sample @ drawn)).Q
    return drawn


def _features(standardised: Tensor, components: Tensor) -> Tensor:
    """Float32 [n, K + 1]: the coordinates, and the length of what they leave out."""
    inside = standardised @ components
    rest = (standardised.square().sum(1) - inside.square().sum(1)).clamp(min=0).sqrt()
    return torch.cat([inside, rest[:, None]], dim=1)


def _standardised(images: Tensor) -> Tensor:
    """uint8 [n, C, S, S] as float32 [n, D] of length 1, or 0 for flat images."""
    pixels = images.float()
    if images.shape[-1] > SIDE:
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="area")
    pixels = (pixels - pixels.mean((2, 3), keepdim=True)).flatten(1)
    length = pixels.norm(dim=1, keepdim=True)
    flat = length < FLAT * pixels.shape[1] ** 0.5
    return pixels.div_(length.clamp(min=1e-6)).masked_fill_(flat, 0)


def _gather(splits: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Images uint8 [n, C, S, S] at positions in the splits laid end to end."""
    found = torch.empty(len(positions), *splits[0].shape[1:], dtype=torch.uint8)
    offset = 0
    for images in splits:
        inside = (positions >= offset) & (positions < offset + len(images))
        found[inside] = images[positions[inside] - offset]
        offset += len(images)
    return found


def _blocks(splits: Sequence[Tensor], title: str) -> Iterator[Tensor]:
    blocks = [(images, start) for images in splits for start in range(0, len(images), BLOCK)]
    for images, start in tqdm(blocks, desc=title, leave=False, disable=None):
        yield images[start : start + BLOCK]
