"""Any strategy, applied to each predicted class for the same number of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .scores import PoolScores, pick_count, refuse_nan, required_probabilities


def class_balanced(
    scores: PoolScores,
    k: int,
    generator: torch.Generator,
    select: Callable[[PoolScores, int, torch.Generator], Tensor],
) -> Tensor:
    """`select` within each predicted class, for the same number of images as far as sizes allow.

    It is meant for long-tailed pools, where nearly all of the best candidates are of the common
    classes. The predicted class is the likeliest of the mean over passes. A class that is too small
    for an equal share gives all its images, and the other classes share the rest; a remainder goes
    to the smaller classes. Picks are ordered by their rank within the class.

    As in the class-balanced sampling of Aggarwal et al. 2020, "Active Learning for Imbalanced
    Datasets", predictions stand in for the unknown labels. Cost: that of `select` on each class,
    and one copy of each class's scores.
    """
    count = pick_count(scores, k)
    mean = required_probabilities(scores).mean(dim=0)
    refuse_nan(mean)
    predicted = mean.argmax(dim=-1)
    sizes = torch.bincount(predicted, minlength=mean.shape[-1]).tolist()
    picks, ranks = [scores.candidates[:0]], [scores.candidates[:0]]
    for label, share in enumerate(equal_shares(sizes, count)):
        if share == 0:
            continue
        members = scores.take(torch.nonzero(predicted == label)[:, 0])
        picks.append(select(members, share, generator))
        ranks.append(torch.arange(share, device=predicted.device))
    return torch.cat(picks)[torch.cat(ranks).argsort(stable=True)]


def equal_shares(sizes: list[int], count: int) -> list[int]:
    """How many to take from groups of these sizes, `count` in all, as evenly as they allow."""
    shares = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for position, i in enumerate(order):
        # The smaller groups come first, so that the larger ones can hold what is left. Rounding up
        # gives a remainder to the smaller groups.
        fair = -(-count // (len(sizes) - position))
        shares[i] = min(sizes[i], fair)
        count -= shares[i]
    return shares
