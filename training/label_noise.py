"""What a fallible annotator would answer: labels of which a given share is wrong.

The whole pool is answered for at once, from the seed alone, so that an image has one answer
whenever, in whatever order and on whichever rank it is asked for. Nothing else in the package sees
wrong labels: validation and test splits stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data import ImageStore, release
from training.seeds import make_generator

KINDS = ("uniform", "confusion")
BLOCK = 1024  # images whose pixels are floats at a time


def noisy_labels(store: ImageStore, rate: float, kind: str, seed: int) -> Tensor:
    """The label given for each image of `store`, int64 [N] on the CPU.

    Each is wrong with probability `rate`, independently. A wrong label is one of the other classes:
    any of them alike (`uniform`), or in the proportions of `confusion_shares` (`confusion`). These
    are the symmetric and the class-dependent noise of Patrini et al. 2017, "Making Deep Neural
    Networks Robust to Label Noise". What is wrong at one rate is wrong, and the same, at any higher
    one with the same seed.
    """
    labels = store.labels.cpu()
    generator = make_generator(seed, "label_noise")
    wrong = torch.rand(len(labels), generator=generator, dtype=torch.float64) < rate
    if kind == "confusion":
        shares = confusion_shares(store)
    else:
        shares = 1 - torch.eye(store.num_classes, dtype=torch.float64)
    other = torch.multinomial(shares[labels], 1, generator=generator).squeeze(1)
    return torch.where(wrong, other, labels)


def confusion_shares(store: ImageStore) -> Tensor:
    """Who is easily taken for whom: float64 [C, C] on the CPU, zero diagonal, rows that sum to 1.

    Entry (i, j) is the share of class i's images whose pixels lie nearer to the mean image of class
    j than to that of any other class but their own. It takes the pool's images and true labels,
    which the oracle alone knows, and no trained network and no other split.

    Raises:
        ValueError: a class has no image, and hence no mean.
    """
    classes = store.num_classes
    counts = torch.bincount(store.labels.cpu(), minlength=classes)
    if (counts == 0).any():
        raise ValueError("label_noise_kind confusion needs an image of every class in the pool")
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
    """Pixels float64 [b, C * H * W], 0 to 255, and labels of images from `start` on, on the CPU.

    In float64, whole numbers and their sums are exact: every machine finds the same shares.
    """
    rows = slice(start, start + BLOCK)
    pixels = store.images[rows].cpu().flatten(1).double()
    release(store.images)
    return pixels, store.labels[rows].cpu()
