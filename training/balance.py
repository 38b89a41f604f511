"""What makes up for classes with few labels: balanced batches, or a weighted loss.

Both look at the labels given so far and at nothing else; a class without any is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def balanced_order(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Positions in `labels` (int64 [m]) to train on, int64 [count], every class equally often.

    Of the K classes there are, each comes once in every K positions in a row, in random order.
    All images of a class come, in random order, before one of them comes again.
    """
    classes = labels.unique().tolist()
    turns = -(-count // len(classes))
    columns = []
    for label in classes:
        members = (labels == label).nonzero().squeeze(1)
        passes = -(-turns // len(members))
        orders = [torch.randperm(len(members), generator=generator) for _ in range(passes)]
        columns.append(members[torch.cat(orders)[:turns]])
    by_turn = torch.stack(columns, 1)
    shuffled = torch.rand(by_turn.shape, generator=generator).argsort(1)
    return by_turn.gather(1, shuffled).flatten()[:count]


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Float32 [num_classes]: inverse frequency among `labels` (int64 [m]), 0 where there is none.

    Scaled so that the weights of all m images have mean 1.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    weights = len(labels) / ((counts > 0).sum() * counts.clamp(min=1).float())
    return weights * (counts > 0)


def weighted_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    all_targets: Tensor,
    ranks: int,
    label_smoothing: float,
) -> Tensor:
    """Mean cross-entropy, nats, in which an image counts by its class's weight; a scalar.

    An image's weight is that of its own class, for its smoothed target as a whole: torch's own
    `weight` would weigh each class's part of the smoothing apart, so that a class without labels
    needs a weight too. The mean of all ranks' results is the weighted mean over their batch
    together, whatever share of its weight each has.

    Args:
        logits, targets: this rank's, [b, C] and int64 [b].
        weights: [C], as of `class_weights`.
        all_targets: int64 [B], those of all `ranks`, this one's among them.
    """
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return (losses * weights[targets]).sum() / (weights[all_targets].sum() / ranks)
