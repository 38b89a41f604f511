"""Strategies on what the passes and the class probabilities say: DropQuery and FALCUN."""

from __future__ import annotations

import torch
from torch import Tensor

from .clustering import k_means_clusters, nearest_to_means
from .geometry import Points
from .scores import (
    PoolScores,
    pick_count,
    refuse_nan,
    required_embeddings,
    required_probabilities,
    top_k_stable,
)
from .uncertainty import margin_uncertainty

FALCUN_GAMMA = 10  # the authors' value


def drop_query(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """k-means representatives of the candidates that most passes classify otherwise.

    Gupte et al. 2024, "Revisiting Active Learning in the Era of Vision Foundation Models"
    (DropQuery): candidates whose label in more than half of the dropout passes is not the predicted
    label are divided into k clusters, and the candidate nearest to each mean is picked. Here the
    predicted label is the likeliest of the mean over passes. Where fewer than k candidates qualify,
    the k with the most disagreement are taken; the smaller margin wins among equals.

    Cost: O(T n C), and `k_means_clusters` of the candidates that qualify. ValueError below two
    passes.
    """
    count = pick_count(scores, k)
    probabilities = required_probabilities(scores, passes=2)
    required_embeddings(scores)
    mean = probabilities.mean(dim=0)
    refuse_nan(mean)
    if count == 0:
        return scores.candidates[:0]
    predicted = mean.argmax(dim=-1)
    disagreeing = torch.zeros_like(mean[:, 0])
    for one_pass in probabilities:
        disagreeing += one_pass.argmax(dim=-1) != predicted
    qualified = int((disagreeing > len(probabilities) / 2).sum())
    # A margin uncertainty lies in [0, 1], so half of it decides among equal counts only.
    order = top_k_stable(disagreeing + margin_uncertainty(probabilities) / 2, max(qualified, count))
    kept = scores.take(order)
    points = Points.of(required_embeddings(kept))
    clusters = k_means_clusters(points, count, generator)
    return kept.candidates[nearest_to_means(clusters.owner, clusters.distance, count)]


def falcun(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Uncertain candidates whose class probabilities differ from those of the picks.

    Gilhuber et al. 2024, "FALCUN: A Simple and Efficient Deep Active Learning Strategy". A pick is
    drawn with probability proportional to (u + d)^`FALCUN_GAMMA`. u is the uncertainty,
    1 - (p1 - p2). d is at first u, and then the smallest sum of absolute differences between the
    probabilities of the candidate and those of a pick, scaled to [0, 1] after each pick. No
    embeddings are needed.

    Cost: O(n C) per pick, no host synchronisation; memory of a few vectors of n numbers.
    """
    count = pick_count(scores, k)
    probabilities = required_probabilities(scores)
    mean = probabilities.mean(dim=0)
    uncertainty = margin_uncertainty(probabilities)
    refuse_nan(uncertainty)
    distance = uncertainty.clone()
    taken = torch.zeros_like(uncertainty, dtype=torch.bool)
    # One tensor for all picks: thousands of small ones would break the memory into pieces between
    # the vectors of n numbers, which could then not be used again.
    picked = torch.zeros(count, dtype=torch.int64, device=taken.device)
    for step in range(count):
        # In logarithms, the largest sum of log mass and Gumbel noise is a draw by mass.
        mass = FALCUN_GAMMA * (uncertainty + distance).clamp_min(1e-12).log()
        noise = torch.empty_like(mass).exponential_(generator=generator).log()
        best = (mass - noise).masked_fill(taken, -torch.inf).argmax(dim=0, keepdim=True)
        taken[best] = True
        picked[step] = best[0]
        distance = torch.minimum(distance, (mean - mean[best]).abs().sum(dim=-1))
        distance = distance - distance.min()
        distance = distance / distance.max().clamp_min(1e-12)
    return scores.candidates[picked]
