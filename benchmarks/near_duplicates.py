"""A pool in which every image stands several times with slight changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from data import ImageStore
from training.seeds import make_generator

BRIGHTNESS = 0.03  # share by which a copy is brighter or darker at most
NOISE = 2.0  # standard deviation, in grey levels of 0..255


def with_near_duplicates(store: ImageStore, copies: int) -> ImageStore:
    """`store` with every image `copies` times: as it is, and `copies` - 1 times changed slightly.

    A changed copy is shifted by one pixel at most, brighter or darker by `BRIGHTNESS` at most, and
    has noise of `NOISE` grey levels. Copies of an image have its label and its source. The
    images of copy c stand at c * N .. (c + 1) * N - 1. The changes are always the same.
    """
    generator = make_generator(0, "near duplicates")
    images = [store.images]
    for _ in range(copies - 1):
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        moved = torch.roll(store.images, shift, dims=(2, 3)).float()
        gain = 1 + BRIGHTNESS * (2 * torch.rand(len(moved), 1, 1, 1, generator=generator) - 1)
        noise = NOISE * torch.randn(moved.shape, generator=generator)
        images.append((moved * gain + noise).round().clamp(0, 255).to(torch.uint8))
    everyone = np.arange(len(store))
    return replace(
        store,
        images=torch.cat(images),
        labels=store.labels.repeat(copies),
        sources=store.sources.take(np.tile(everyone, copies)),
    )
