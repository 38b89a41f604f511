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


def labelled_points(scores: PoolScores, points: Points) -> Points | None:
    """The labelled images beside the candidates `points`; None where nothing is labelled yet."""
    labelled = scores.labelled_embeddings
    return None if labelled is None or len(labelled) == 0 else points.beside(labelled)


def distance_to_labelled(scores: PoolScores, points: Points) -> Tensor | None:
    """Squared distance of each candidate to its nearest labelled image, [n].

    None where nothing is labelled yet.
    """
    labelled = labelled_points(scores, points)
    return None if labelled is None else nearest_squared_distance(points, labelled)


def k_center(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Greedy core-set: repeatedly the candidate farthest from all labelled and picked images.

    Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set
    Approach". With nothing labelled, the first pick is the candidate nearest to the median of every
    coordinate. The greedy picks are exact. `farthest_first` describes the method and its cost,
    which is about that of the bare product of all candidates with all picks.
    """
    count = pick_count(scores, k)
    if count == 0:
        return scores.candidates[:0]
    points = Points.of(required_embeddings(scores))
    return scores.candidates[farthest_first(points, count, distance_to_labelled(scores, points))]


def k_center_projected(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """`k_center` by distances along the principal directions: nearly as wide a cover, for less.

    Embeddings of D <= `DIRECTIONS` are used as they are, and the picks are those of `k_center`.
    `benchmarks.speed` measures the covering radius against that of `k_center`. Cost: as `k_center`
    with D = `DIRECTIONS`, and one projection.
    """
    count = pick_count(scores, k)
    if count == 0:
        return scores.candidates[:0]
    points = Points.of(required_embeddings(scores))
    labelled = labelled_points(scores, points)
    if points.embeddings.shape[1] > DIRECTIONS:
        directions = projection.principal_directions(points, DIRECTIONS, generator)
        points = projection.project(points, directions)
        labelled = None if labelled is None else projection.project(labelled, directions)
    nearest = None if labelled is None else nearest_squared_distance(points, labelled)
    return scores.candidates[farthest_first(points, count, nearest)]


def k_means(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """k clusters of the candidates; from each cluster the candidate nearest to its mean.

    A baseline in Sener & Savarese 2018. Cost: `k_means_clusters` with k clusters.
    """
    count = pick_count(scores, k)
    if count == 0:
        return scores.candidates[:0]
    points = Points.of(required_embeddings(scores))
    clusters = k_means_clusters(points, count, generator)
    return scores.candidates[nearest_to_means(clusters.owner, clusters.distance, count)]
