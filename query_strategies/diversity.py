"""Strategies that spread the picks over embedding space, whatever the model's confidence."""

from __future__ import annotations

import torch
from torch import Tensor

from . import projection
from .clustering import k_means_clusters, nearest_to_means
from .farthest import farthest_first
from .geometry import Points, nearest_squared_distance
from .scores import PoolScores, pick_count, required_embeddings

DIRECTIONS = 512


def labelled_points(scores: PoolScores, centre: Tensor) -> Points | None:
    """The labelled images as points around `centre`; None where nothing is labelled yet."""
    labelled = scores.labelled_embeddings
    return None if labelled is None or len(labelled) == 0 else Points.of(labelled, centre)


def distance_to_labelled(scores: PoolScores, points: Points) -> Tensor | None:
    """Squared distance of each candidate to its nearest labelled image, float32 [n].

    None where nothing is labelled yet.
    """
    labelled = labelled_points(scores, points.centre)
    return None if labelled is None else nearest_squared_distance(points, labelled)


def k_center(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Greedy core-set: again and again the candidate farthest from all labelled and picked images.

    Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set
    Approach". With nothing labelled, the first pick is the candidate nearest to the mean. The
    greedy picks are exact; see `farthest_first` for how, and for the cost: 29 s, about what the
    bare product of all candidates with all picks takes.
    """
    count = pick_count(scores, k)
    if count in (0, len(scores.candidates)):
        return scores.candidates[:count]
    points = Points.of(required_embeddings(scores))
    return scores.candidates[farthest_first(points, count, distance_to_labelled(scores, points))]


def k_center_projected(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """`k_center` by distances along the principal directions: nearly as wide a cover, for less.

    Embeddings of D <= `DIRECTIONS` are taken as they are, and the picks are those of
    `k_center`. `benchmarks.speed` measures the covering radius against that of `k_center`: 1.0 %
    larger at n = 20,000, D = 2,048, k = 1,000 (2.6 % with half as many directions), and 1.6 % at
    n = 90,000, k = 4,430. Cost: as `k_center` with D = `DIRECTIONS`, and one projection: 11 s, on
    a core (AVX-512) where that takes 25 s.
    """
    count = pick_count(scores, k)
    if count in (0, len(scores.candidates)):
        return scores.candidates[:count]
    points = Points.of(required_embeddings(scores))
    labelled = labelled_points(scores, points.centre)
    if points.embeddings.shape[1] > DIRECTIONS:
        directions = projection.principal_directions(points, DIRECTIONS, generator)
        points = projection.project(points, directions)
        labelled = None if labelled is None else projection.project(labelled, directions)
    nearest = None if labelled is None else nearest_squared_distance(points, labelled)
    return scores.candidates[farthest_first(points, count, nearest)]


def k_means(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """k clusters of the candidates; from each the candidate nearest to its mean.

    As a baseline in Sener & Savarese 2018. For the cost see `k_means_clusters`: 71 s.
    """
    count = pick_count(scores, k)
    if count in (0, len(scores.candidates)):
        return scores.candidates[:count]
    points = Points.of(required_embeddings(scores))
    owner, distance = k_means_clusters(points, count, generator)
    return scores.candidates[nearest_to_means(owner, distance, count)]
