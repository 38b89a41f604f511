"""Which images each step of a round trains on: a pure function of settings, seed and round."""

from __future__ import annotations

import torch
from torch import Tensor

from training.balance import balanced_order
from training.hyperparameters import Hyperparameters
from training.seeds import make_generator


def round_batches(
    hp: Hyperparameters, labelled: Tensor, labels: Tensor, seed: int, round_: int
) -> Tensor:
    """Dataset indices of all batches of a round: int64 [batches_per_round, batch_size].

    Batches follow permutations of the labelled set, one after another, so a labelled set smaller
    than a batch comes more than once in it. With `class_balanced_batches` they follow
    `balanced_order` instead.

    Args:
        labelled: int64 [m], dataset indices.
        labels: int64 [m], theirs.
    """
    count = hp.batches_per_round * hp.batch_size
    if hp.class_balanced_batches:
        generator = make_generator(seed, "balanced order", round_)
        order = labelled[balanced_order(labels, count, generator)]
    else:
        passes = -(-count // len(labelled))
        permutations = [
            torch.randperm(len(labelled), generator=make_generator(seed, "order", round_, number))
            for number in range(passes)
        ]
        order = labelled[torch.cat(permutations)[:count]]
    return order.view(-1, hp.batch_size)
