"""Finds labels that a network confidently disagrees with: confident learning.

Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
Journal of Artificial Intelligence Research 70, doi 10.1613/jair.1.12125.
"""

from __future__ import annotations

import torch
from torch import Tensor


def suspected_labels(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions int64 [k] of suspected labels, the most suspected first, and the likelier classes.

    A class counts for an image if its probability reaches the class's threshold: its mean
    probability over the images that have this label. The threshold allows for a network that is
    too sure, or unsure, of a class. A label is suspected if the likeliest class that counts is
    another one. The order is by how much likelier that class is.

    Args:
        probabilities: [N, C], preferably of a network that was not trained on these images.
        labels: int64 [N].
    """
    probabilities, labels = probabilities.double().cpu(), labels.cpu()
    counts = torch.bincount(labels, minlength=probabilities.shape[1])
    own = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    sums = torch.zeros_like(counts, dtype=torch.float64).index_add_(0, labels, own)
    thresholds = sums / counts  # NaN, which nothing reaches, for a class without images
    likeliest, suggested = probabilities.where(probabilities >= thresholds, -1).max(1)
    positions = ((suggested != labels) & (likeliest > own)).nonzero().flatten()
    order = (likeliest - own)[positions].argsort(descending=True, stable=True)
    return positions[order], suggested[positions[order]]
