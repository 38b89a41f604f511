"""Strategies that spread the picks over embedding space, whatever the model's confidence."""

from __future__ import annotations

import torch
from torch import Tensor

from .clustering import k_means_clusters, nearest_to_means
from .farthest import farthest_first
from .geometry import Points, nearest_squared_distance
from .scores import PoolScores, pick_count, required_embeddings


def distance_to_labelled(scores: PoolScores, points: Points) -> Tensor | None:
    """Squared distance of each candidate to its nearest labelled image, float32 [n].

    None where nothing is labelled yet.
    """
    labelled = scores.labelled_embeddings
    if labelled is None or len(labelled) == 0:
        return None
    return nearest_squared_distance(points, Points.of(labelled, centre=points.centre))


def k_center(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Greedy core-set: again and again the candidate farthest from all labelled and picked images.

    Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set
    Approach". With nothing labelled, the first pick is the candidate nearest to the mean. The
    greedy picks are exact; see `farthest_first` for how, and for the cost.
    """
    count = pick_count(scores, k)
    if count in (0, len(scores.candidates)):
        return scores.candidates[:count]
    points = Points.of(required_embeddings(scores))
    return scores.candidates[farthest_first(points, count, distance_to_labelled(scores, points))]


def k_means(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """k clusters of the candidates; from each the candidate nearest to its mean.

    As a baseline in Sener & Savarese 2018. For the cost see `k_means_clusters`.
    """
    count = pick_count(scores, k)
    if count in (0, len(scores.candidates)):
        return scores.candidates[:count]
    points = Points.of(required_embeddings(scores))
    owner, distance = k_means_clusters(points, count, generator)
    return scores.candidates[nearest_to_means(owner, distance, count)]
