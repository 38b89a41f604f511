"""Batches of made-up images for the tests of labelling."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labelling.batch import Batch, BatchImage, batch_folder, write_batch

CLASSES = ("debris", "lymphocyte", "tumour")


def made_up_batch(
    size: int, round_: int = 0, classes: tuple[str, ...] = CLASSES, first: int = 0, pixels: int = 8
) -> Batch:
    """Images `first`, `first + 1`, ...: each class is a grey level, which is the truth."""
    generator = np.random.default_rng(round_)
    images = []
    for index in range(first, first + size):
        truth = index % len(classes)
        image = generator.integers(0, 40, (3, pixels, pixels)).astype(np.uint8)
        image += np.uint8(truth * (200 // len(classes)))
        suggested = (truth + (index % 4 == 0)) % len(classes)  # wrong for one image in four
        images.append(
            BatchImage(
                index,
                f"slide/{index:05d}.png",
                image,
                suggested,
                0.5 + 0.4 * float(generator.random()),
                float(generator.random()),
            )
        )
    return Batch(round_, "margin", classes, tuple(images))


def made_up_run(run: Path, size: int = 12, **options: object) -> Path:
    """A run folder whose round 0 asks for `size` images; returns the batch's folder."""
    batch = made_up_batch(size, **options)  # type: ignore[arg-type]
    folder = batch_folder(run, batch.round)
    write_batch(folder, batch)
    return folder
