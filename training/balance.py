"""Compensates for classes with few labels: class-balanced batches, or a class-weighted loss.

Both depend only on the labels given so far. A class without labels is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def balanced_order(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The order to train on: int64 [count], positions in `labels`, every class equally often.

    Every K consecutive positions hold each of the K classes once, in random order. All images of a
    class come once, in random order, before any of them comes again.

    Args:
        labels: int64 [m], on the CPU.
        count: length of the order.
        generator: CPU generator of both kinds of random order.
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
    """Float32 [num_classes]: the inverse frequency of each class; 0 for a class without labels.

    The weights are scaled so that those of all m images in `labels`, int64 [m], have mean 1.
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
    """Mean cross-entropy in nats, each image weighted by its class: a scalar.

    The weight of an image's class applies to its smoothed target as a whole. The `weight` of
    torch's own function would weight each class's share of the smoothing separately, so that a
    class without labels would need a weight as well.

    The mean of all ranks' results is the weighted mean over the whole batch, however its weight is
    spread over them.

    Args:
        logits, targets: of this rank, [b, C] and int64 [b].
        weights: [C], from `class_weights`.
        all_targets: int64 [B], the targets of all ranks.
        ranks: their number.
        label_smoothing: as of `torch.nn.functional.cross_entropy`.
    """
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return (losses * weights[targets]).sum() / (weights[all_targets].sum() / ranks)
