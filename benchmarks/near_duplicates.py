"""Builds a pool in which every image occurs several times with slight changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from data import ImageStore
from training.seeds import make_generator

BRIGHTNESS = 0.03  # largest relative change of a copy's brightness
NOISE = 2.0  # standard deviation, in grey levels of 0..255


def with_near_duplicates(store: ImageStore, copies: int) -> ImageStore:
    """Return `store` with `copies` versions of each image: the original and slightly changed ones.

    A changed copy is shifted by at most one pixel, its brightness changes by at most `BRIGHTNESS`,
    and it has noise of `NOISE` grey levels. A copy keeps the label and the source of its image.
    The images of copy c have the positions c * N .. (c + 1) * N - 1. The generator has a fixed
    seed, so every call makes the same changes.
    """
    generator = make_generator(0, "near duplicates")
    images = [store.images]
    for _ in range(copies - 1):
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        moved = torch.roll(store.images, shift, dims=(2, 3)).float()
        gain = 1 + BRIGHTNESS * (2 * torch.rand(len(moved), 1, 1, 1, generator=generator) - 1)
        noise = NOISE * torch.randn(moved.shape, generator=generator)
        images.append((moved * gain + noise).round().clamp(0, 255).to(torch.uint8))
    positions = np.arange(len(store))
    return replace(
        store,
        images=torch.cat(images),
        labels=store.labels.repeat(copies),
        sources=store.sources.take(np.tile(positions, copies)),
    )
