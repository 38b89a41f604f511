"""BADGE: diverse in the gradients that the model's own guesses would give its last layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .clustering import sample_by_distance
from .geometry import Points
from .scores import (
    PoolScores,
    pick_count,
    refuse_nan,
    required_embeddings,
    required_probabilities,
)


def badge(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """k-means++ seeding over the gradients of the loss at the predicted label.

    Ash et al. 2020, "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds". For
    a linear head that gradient is (p - onehot(argmax p)) x embedding, C * D numbers. An inner
    product of two such is the product of the two factors' inner products, so the n x (C * D)
    matrix is never formed. As in the authors' program, the first pick is the largest gradient.

    Cost: `sample_by_distance` with products of D + C columns in place of D.
    """
    count = pick_count(scores, k)
    mean = required_probabilities(scores).mean(dim=0)
    embeddings = required_embeddings(scores)
    refuse_nan(mean)
    if count == 0:
        return scores.candidates[:0]
    guess = torch.nn.functional.one_hot(mean.argmax(dim=-1), mean.shape[-1])
    no_shift = torch.zeros_like(embeddings[0], dtype=torch.float32)
    gradients = Points.of(embeddings, centre=no_shift, coefficients=mean - guess)
    first = gradients.squared_norms.argmax(dim=0, keepdim=True)
    return scores.candidates[sample_by_distance(gradients, count, generator, first=first)]
