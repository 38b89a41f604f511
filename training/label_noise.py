"""Simulates an annotator who makes mistakes: a given share of the labels is wrong.

The labels of the whole pool are drawn at once, from the seed alone. An image therefore has the same
label whenever, in whatever order and on whichever rank it is asked for. Validation and test labels
are never changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data import ImageStore, release
from errors import UserError
from training.seeds import make_generator

KINDS = ("uniform", "confusion")
BLOCK = 1024  # images that are converted to floats at a time


def noisy_labels(
    store: ImageStore, rate: float, kind: str, seed: int, purpose: str = "label_noise"
) -> Tensor:
    """The annotator's label of each image of `store`, int64 [N] on the CPU.

    Each label is wrong with probability `rate`, independently of the others. A wrong label is
    another class: each equally likely (`uniform`), or in the proportions of `confusion_shares`
    (`confusion`). These are the symmetric and the class-dependent noise of Patrini et al. 2017,
    "Making Deep Neural Networks Robust to Label Noise". With the same seed, a label that is wrong
    at one rate is wrong in the same way at every higher rate. With another `purpose`, an annotator
    errs independently.
    """
    labels = store.labels.cpu()
    if rate == 0:
        return labels
    generator = make_generator(seed, purpose)
    wrong = torch.rand(len(labels), generator=generator, dtype=torch.float64) < rate
    if kind == "confusion":
        shares = confusion_shares(store)
    else:
        shares = 1 - torch.eye(store.num_classes, dtype=torch.float64)
    other = torch.multinomial(shares[labels], 1, generator=generator).squeeze(1)
    return torch.where(wrong, other, labels)


def confusion_shares(store: ImageStore) -> Tensor:
    """How classes resemble each other: float64 [C, C] on the CPU, zero diagonal, rows sum to 1.

    Entry (i, j) is the share of class i's images whose pixels are closer to the mean image of class
    j than to that of any other class except their own. It uses the pool's images and true labels,
    which only the oracle knows, but no trained network and no other split.

    Raises:
        UserError: a class has no image and therefore no mean.
    """
    classes = store.num_classes
    counts = torch.bincount(store.labels.cpu(), minlength=classes)
    if (counts == 0).any():
        absent = store.class_names[int((counts == 0).nonzero()[0])]
        raise UserError(
            "hyperparameters.label_noise_kind: confusion needs a training image of every class, "
            f"and {absent!r} has none; set uniform, or add images"
        )
    blocks = range(0, len(store), BLOCK)
    sums = torch.zeros(classes, store.images[0].numel(), dtype=torch.float64)
    for start in blocks:
        pixels, labels = _block(store, start)
        sums.index_add_(0, labels, pixels)
    means = sums / counts[:, None]
    shares = torch.zeros(classes, classes, dtype=torch.float64)
    for start in blocks:
        pixels, labels = _block(store, start)
        distance = torch.cdist(pixels, means)
        distance[torch.arange(len(labels)), labels] = torch.inf
        pairs = (labels, distance.argmin(1))
        shares.index_put_(pairs, torch.ones(len(labels), dtype=torch.float64), accumulate=True)
    return shares / counts[:, None]


def _block(store: ImageStore, start: int) -> tuple[Tensor, Tensor]:
    """Pixels, float64 [b, C * H * W] in 0 to 255, and labels of the images from `start` on.

    Both are on the CPU. Float64 holds whole numbers and their sums exactly, so every machine
    computes the same shares.
    """
    rows = slice(start, start + BLOCK)
    pixels = store.images[rows].cpu().flatten(1).double()
    release(store.images)
    return pixels, store.labels[rows].cpu()
