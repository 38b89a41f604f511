"""Finds images that are the same, and images that are nearly the same, within and across splits.

Nearly the same means: reduced to `SIDE` pixels, and each channel's mean subtracted, the pixels of
two images correlate at `threshold` or more. This finds a copy that was compressed anew, made
brighter or given more contrast. It does not find a copy that was shifted, turned or cropped. Parts
that are black, or white, in nearly all images, such as the surroundings of a round field of view,
do not count: they would make all images alike.

Every image is compared with the images of its own split and of each earlier split. It counts as a
copy as soon as one of them is like it, so a test image with a copy in the training split is never
missed. Of an image with many copies, as frames of one film have, `MOST_COPIES` in each split are
listed: the work and the memory grow with the number of images, not with that of pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reporting.progress import progress

SIDE = 32
FRAME = 4.0  # grey levels from black or white within which a frame lies
FRAME_SHARE = 0.95  # of the images, in which a pixel of a frame is black, or white
FLAT = 1.0  # grey levels: an image whose pixels deviate less from their mean is compared to none
COMPONENTS = 96
SAMPLE = 2048  # images that the principal components come from
MOST_COPIES = 3  # listed of an image in each split
ROWS, COLUMNS = 2048, 2048  # images compared with each other at a time
BLOCK = 1024  # images, or pairs, whose pixels are held at a time
# Candidates in a block, from which on a product of all pixels is faster than pair by pair, unless
# most of them are alike. One scene with too much noise for its pictures to be alike has so many.
MANY_CANDIDATES = 10_000
PROBED = 256  # candidates that tell whether most are alike
SPARE = 0.03  # of the length of an image of noise, by which components describe more than needed
ROUNDING = 1e-5  # that float32 makes in a product of two features


@dataclass(frozen=True)
class Pairs:
    """Pairs of images that are alike, the most alike first.

    first, second: int64 [P], positions in the splits laid end to end, first < second.
    similarity: float32 [P], correlations from the threshold to 1.
    """

    first: Tensor
    second: Tensor
    similarity: Tensor

    def __len__(self) -> int:
        return len(self.first)


def exact_copies(splits: Sequence[Tensor]) -> Pairs:
    """Each image that has the same bytes as an earlier one, with the first such one.

    Args:
        splits: uint8 [n, C, S, S] each, on the CPU.
    """
    places: dict[bytes, int] = {}
    first: list[int] = []
    blocks = [(images, start) for images in splits for start in range(0, len(images), BLOCK)]
    for images, start in progress(blocks, "hashing"):
        for image in images[start : start + BLOCK].numpy():
            digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            first.append(places.setdefault(digest, len(first)))
    positions = torch.arange(len(first))
    originals = torch.tensor(first)
    copies = positions[originals != positions]
    return Pairs(originals[copies], copies, torch.ones(len(copies)))


def near_copies(
    splits: Sequence[Tensor], chosen: Tensor, threshold: float, generator: torch.Generator
) -> Pairs:
    """Pairs among the `chosen` images (int64, ascending) that are nearly the same.

    An image is in a pair with an image of a split, as the second of the two, exactly if that split
    holds an image before it that is like it. Projections on principal components are compared, to
    which the length of the rest is added: that can only overestimate a correlation
    (Cauchy-Schwarz). Pairs that pass are compared by all their pixels.

    Args:
        splits: uint8 [n, C, S, S] each, on the CPU.
        generator: draws the images that the components come from.
    """
    drawn = chosen[torch.randperm(len(chosen), generator=generator)[:SAMPLE]]
    images = Standardised(splits, _inside(_reduced(_gather(splits, drawn))))
    components = _components(images[drawn], threshold, generator)
    features = torch.cat(
        [
            _features(images[part], components)
            for part in progress(chosen.split(BLOCK), "projecting")
        ]
    )
    ends = torch.tensor([len(images) for images in splits]).cumsum(0)
    bounds = [0, *torch.searchsorted(chosen, ends).tolist()]
    copies: list[Tensor] = []
    blocks = [
        (start, min(start + ROWS, bounds[split + 1]), split)
        for split in range(len(splits))
        for start in range(bounds[split], bounds[split + 1], ROWS)
    ]
    for start, end, split in progress(blocks, "comparing"):
        for other in range(split + 1):
            copies += _block_copies(
                images,
                chosen,
                features,
                (start, end),
                (bounds[other], bounds[other + 1]),
                threshold,
            )
    return _sorted_pairs(copies)


def _block_copies(
    images: Standardised,
    chosen: Tensor,
    features: Tensor,
    rows: tuple[int, int],
    columns: tuple[int, int],
    threshold: float,
) -> list[Tensor]:
    """Float64 [3, k] each: first, second and similarity, at most `MOST_COPIES` of each row.

    Rows and columns are ranges of `chosen`; only columns before the row count.
    """
    searching = torch.arange(*rows)
    wanted = torch.full((len(searching),), MOST_COPIES)
    copies = []
    pixels = torch.empty(0)  # of all rows, once they are needed
    for left in range(columns[0], min(columns[1], rows[1]), COLUMNS):
        searching, wanted = searching[wanted > 0], wanted[wanted > 0]
        right = min(left + COLUMNS, columns[1], rows[1])
        passing = features[searching] @ features[left:right].T >= threshold - ROUNDING
        if right > rows[0]:  # each pair once, and no image with itself
            passing &= torch.arange(left, right) < searching[:, None]
        there = chosen[left:right]
        is_sifted = int(passing.sum()) > MANY_CANDIDATES and not _are_mostly_alike(
            images, chosen[searching], there, passing, threshold
        )
        if is_sifted:
            if not len(pixels):
                pixels = images[chosen[rows[0] : rows[1]]]
            passing &= pixels[searching - rows[0]] @ images[there].T >= threshold - ROUNDING
        row, column = passing.nonzero().T
        while len(row):
            # As many candidates of each row as it still wants; most of them turn out to be alike.
            # Candidates are ordered by row, so their numbers count from where their row begins.
            number = torch.arange(len(row)) - torch.searchsorted(row, row)
            now = number < wanted[row]
            pair = torch.stack([there[column[now]], chosen[searching[row[now]]]])
            similarity = torch.cat([_similarity(images, part) for part in pair.split(BLOCK, 1)])
            alike = similarity >= threshold
            copies.append(torch.cat([pair.double(), similarity[None].double()])[:, alike])
            wanted -= torch.bincount(row[now][alike], minlength=len(wanted))
            later = ~now & (wanted[row] > 0)
            row, column = row[later], column[later]
            if len(row) > MANY_CANDIDATES and not is_sifted:
                passing = images[chosen[searching]] @ images[there].T >= threshold - ROUNDING
                row, column = torch.stack([row, column])[:, passing[row, column]]
                is_sifted = True
    return copies


def _are_mostly_alike(
    images: Standardised, rows: Tensor, columns: Tensor, passing: Tensor, threshold: float
) -> bool:
    """Whether most candidates are alike, by the first one of some rows.

    rows, columns: int64, positions of images. passing: bool [rows, columns].
    """
    some = passing.any(1).nonzero().flatten()
    some = some[:: max(1, len(some) // PROBED)]
    first = passing[some].to(torch.uint8).argmax(1)
    similarity = _similarity(images, torch.stack([columns[first], rows[some]]))
    return bool((similarity >= threshold).float().mean() > 0.5)


def _similarity(images: Standardised, pair: Tensor) -> Tensor:
    """Float32 [p]: the correlations of the pairs [2, p], by all pixels."""
    return (images[pair[0]] * images[pair[1]]).sum(1).clamp(max=1)


def _sorted_pairs(copies: Sequence[Tensor]) -> Pairs:
    first, second, similarity = torch.cat([torch.empty(3, 0, dtype=torch.float64), *copies], dim=1)
    order = similarity.argsort(descending=True, stable=True)
    return Pairs(first[order].long(), second[order].long(), similarity[order].float())


def _components(sample: Tensor, threshold: float, generator: torch.Generator) -> Tensor:
    """Float32 [D, K]: orthonormal directions in which the sample [n, D] varies most.

    K is `COMPONENTS`. Images of mere noise have their length in all directions alike; of them, K
    directions describe too little to tell any two apart. There K is so large that they do.
    """
    # Of the images that they come from, components describe more than of any others.
    others, held_out = sample.tensor_split([len(sample) * 3 // 4])
    components = _directions(others, COMPONENTS, generator)
    described = float((held_out @ components).square().sum(1).mean())
    if described > 1 - threshold:
        return components
    return _directions(sample, math.ceil((1 - threshold + SPARE) * sample.shape[1]), generator)


def _directions(sample: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the components, or as many as there can be.

    Halko et al. 2011 (doi 10.1137/090771806): a random projection and two power iterations.
    """
    count = min(count, *sample.shape)
    directions = torch.randn(sample.shape[1], count, generator=generator)
    for _ in range(3):
        directions = torch.linalg.qr(sample.T @ (sample @ directions)).Q
    return directions


def _features(standardised: Tensor, components: Tensor) -> Tensor:
    """Float32 [n, K + 1]: the coordinates, and the length of the rest that they leave out."""
    inside = standardised @ components
    rest = (standardised.square().sum(1) - inside.square().sum(1)).clamp(min=0).sqrt()
    return torch.cat([inside, rest[:, None]], dim=1)


def _reduced(images: Tensor) -> Tensor:
    """uint8 [n, C, S, S] as float32 [n, C, s, s] with s at most `SIDE`."""
    if images.shape[-1] <= SIDE:
        return images.float()
    return F.interpolate(images.float(), (SIDE, SIDE), mode="area")


def _inside(reduced: Tensor) -> Tensor:
    """Bool [s, s]: pixels that are neither black nor white in most of the images [n, C, s, s]."""
    black = (reduced.amax(1) <= FRAME).float().mean(0) >= FRAME_SHARE
    white = (reduced.amin(1) >= 255 - FRAME).float().mean(0) >= FRAME_SHARE
    inside = ~(black | white)
    return inside if inside.any() else torch.ones_like(inside)


@dataclass(frozen=True)
class Standardised:
    """The images of all splits, laid end to end, ready to be correlated by a product.

    splits: uint8 [n, C, S, S] each. inside: bool [s, s], pixels that count.
    """

    splits: Sequence[Tensor]
    inside: Tensor

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Float32 [n, D] of length 1 at int64 [n]; 0 for flat images."""
        pixels = _reduced(_gather(self.splits, positions)).flatten(2)
        if not bool(self.inside.all()):
            pixels = pixels[..., self.inside.flatten()]
        pixels = (pixels - pixels.mean(2, keepdim=True)).flatten(1)
        length = pixels.norm(dim=1, keepdim=True)
        flat = length < FLAT * pixels.shape[1] ** 0.5
        return pixels.div_(length.clamp(min=1e-6)).masked_fill_(flat, 0)


def _gather(splits: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Images uint8 [n, C, S, S] at positions in the splits laid end to end."""
    gathered = torch.empty(len(positions), *splits[0].shape[1:], dtype=torch.uint8)
    offset = 0
    for images in splits:
        inside = (positions >= offset) & (positions < offset + len(images))
        gathered[inside] = images[positions[inside] - offset]
        offset += len(images)
    return gathered
