"""Strategies that rank candidates by how unsure the model is, one image at a time.

All cost O(T n C); `top_k_stable` says who wins ties. They score each image by itself, so they pick
all near-duplicates of an uncertain image together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .scores import PoolScores, pick_count, required_probabilities, top_k_stable


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats, float32 [n], of the mean over the T passes of `probabilities` [T, n, C]."""
    entropies: Tensor = torch.special.entr(probabilities.mean(dim=0))
    return entropies.sum(dim=-1)


def mutual_information(probabilities: Tensor) -> Tensor:
    """BALD score in nats, float32 [n]: H(mean over passes) - mean over passes of H.

    Houlsby et al. 2011, "Bayesian Active Learning for Classification and Preference Learning";
    with dropout passes, Gal et al. 2017, "Deep Bayesian Active Learning with Image Data".
    """
    # One pass at a time, because the entropies of all passes would double the peak memory.
    expected = torch.zeros_like(probabilities[0, :, 0])
    for one_pass in probabilities:
        expected += torch.special.entr(one_pass).sum(dim=-1)
    return predictive_entropy(probabilities) - expected / len(probabilities)


def margin_uncertainty(probabilities: Tensor) -> Tensor:
    """1 - (p1 - p2), float32 [n] in [0, 1], for the two likeliest classes of the mean over T."""
    if probabilities.shape[-1] < 2:
        raise ValueError("a margin needs at least two classes")
    best_two = probabilities.mean(dim=0).topk(2, dim=-1).values
    return 1 - (best_two[:, 0] - best_two[:, 1])


def calibrated(probabilities: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) from the softmax of the same logits, in the same shape."""
    return (probabilities.log() / temperature).softmax(dim=-1)


def entropy(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Largest predictive entropy (Shannon 1948; Settles 2009, survey, section 3.1)."""
    values = predictive_entropy(required_probabilities(scores))
    return scores.candidates[top_k_stable(values, pick_count(scores, k))]


def margin(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Smallest difference between the two likeliest classes (Scheffer et al. 2001)."""
    values = margin_uncertainty(required_probabilities(scores))
    return scores.candidates[top_k_stable(values, pick_count(scores, k))]


def least_confidence(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Smallest probability of the likeliest class (Lewis & Gale 1994)."""
    values = -required_probabilities(scores).mean(dim=0).amax(dim=-1)
    return scores.candidates[top_k_stable(values, pick_count(scores, k))]


def bald(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Largest mutual information between label and weights.

    `mutual_information` computes it. Raises ValueError for fewer than two passes, because a single
    pass never disagrees with itself.
    """
    values = mutual_information(required_probabilities(scores, passes=2))
    return scores.candidates[top_k_stable(values, pick_count(scores, k))]
