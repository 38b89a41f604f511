"""Strategies whose picks are both uncertain and different from one another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .clustering import k_means_clusters, nearest_to_means, rank_within, sample_by_distance
from .diversity import distance_to_labelled, k_means
from .farthest import farthest_first
from .geometry import (
    COPIES_BELOW,
    Points,
    nearest_neighbour,
    nearest_squared_distance,
    of_length_one,
)
from .scores import (
    PoolScores,
    pick_count,
    refuse_nan,
    required_embeddings,
    required_probabilities,
    top_k_stable,
)
from .uncertainty import margin_uncertainty, predictive_entropy

MEMBERS_PER_CLUSTER = 10
RADIUS_QUANTILE = 0.05  # of the distances between labelled images and their nearest neighbours
LAST_RESORT = 1e-6  # what a copy of a labelled image is worth, so that copies go by their margin


def most_uncertain(
    scores: PoolScores, uncertainty: Tensor, count: int, prefilter_factor: float
) -> tuple[PoolScores, Tensor]:
    """The ceil(prefilter_factor * count) most uncertain candidates, and their uncertainties.

    uncertainty: float [n]. ValueError where prefilter_factor is below 1.
    """
    if not prefilter_factor >= 1:
        raise ValueError(f"prefilter_factor must be at least 1, not {prefilter_factor}")
    kept = math.ceil(min(prefilter_factor * count, len(uncertainty)))
    positions = top_k_stable(uncertainty, kept).sort().values
    return scores.take(positions), uncertainty[positions]


def relative_weights(uncertainty: Tensor) -> Tensor:
    """Uncertainties, none negative, as weights in [1e-6, 1]; all 1 where all uncertainties are 0.

    With the floor, the distance decides among candidates of which the model is entirely sure.
    """
    largest = uncertainty.amax()
    return torch.where(largest > 0, uncertainty / largest, 1.0).clamp(1e-6, 1.0)


def uncertainty_diversity(
    scores: PoolScores, k: int, generator: torch.Generator, prefilter_factor: float
) -> Tensor:
    """Uncertain candidates, spread by D^2 sampling weighted with their entropy.

    The prefilter_factor * k candidates of largest predictive entropy are kept. Among them each pick
    is drawn with probability proportional to entropy * squared distance in embedding space to the
    nearest labelled or already picked image.

    The prefilter and the uncertainty weights are those of Zhdanov 2019, "Diverse mini-batch Active
    Learning", which then runs weighted k-means. D^2 sampling is the seeding of that algorithm. Ash
    et al. 2020 (BADGE) show that it gives batches as good as a determinantal point process at any
    batch size. It draws, so it is not attracted to outliers as greedy k-center is. Citovsky et al.
    2021, "Batch Active Learning at Scale", find that a cheap diversity step on the uncertain part
    of the pool is enough for large batches. Distances to the labelled images count, so that a round
    does not repeat the last one.

    Cost: that of `sample_by_distance` for prefilter_factor * k candidates, and a copy of them.
    ValueError where prefilter_factor is below 1.
    """
    uncertainty = predictive_entropy(required_probabilities(scores))
    return _spread_of_the_uncertain(scores, k, generator, prefilter_factor, uncertainty)


def _spread_of_the_uncertain(
    scores: PoolScores,
    k: int,
    generator: torch.Generator,
    prefilter_factor: float,
    uncertainty: Tensor,
) -> Tensor:
    """D^2 sampling of the most uncertain candidates, weighted with their uncertainty [n]."""
    count = pick_count(scores, k)
    kept, uncertainty = most_uncertain(scores, uncertainty, count, prefilter_factor)
    if count == 0:
        return kept.candidates
    points = Points.of(required_embeddings(kept))
    positions = sample_by_distance(
        points,
        count,
        generator,
        nearest=distance_to_labelled(kept, points),
        weights=relative_weights(uncertainty),
    )
    return kept.candidates[positions]


def margin_diversity(
    scores: PoolScores, k: int, generator: torch.Generator, prefilter_factor: float
) -> Tensor:
    """`uncertainty_diversity` with 1 - (p1 - p2) in place of the entropy.

    The margin ranks images by the boundary that they are nearest to, where the entropy prefers
    images that many classes share. Cost: as `uncertainty_diversity`.
    """
    uncertainty = margin_uncertainty(required_probabilities(scores))
    return _spread_of_the_uncertain(scores, k, generator, prefilter_factor, uncertainty)


def spread_margin(
    scores: PoolScores, k: int, generator: torch.Generator, prefilter_factor: float
) -> Tensor:
    """Smallest margins, penalised near labelled and picked images.

    Of the prefilter_factor * k candidates of smallest margin, greedily the one of largest
    (1 - margin) * (1 - exp(-d^2 / r^2)), where d is the distance to the nearest labelled or picked
    image and embeddings are scaled to length 1. This is the local penalisation that Gonzalez et al.
    2016, "Batch Bayesian Optimization via Local Penalization", spread a batch with. Where no
    candidate has a near neighbour it is `margin`; of near-duplicates it takes one.

    The radius r follows the labels, as in UHerding (Bae et al. 2025): it is a low quantile
    (`RADIUS_QUANTILE`) of the distances between each labelled image and its nearest labelled
    neighbour. It therefore shrinks as labels come in, and a pool of near-duplicates, of which some
    are labelled by then, sets it to the distance of the duplicates. Without labels it is 1.

    Cost: that of `farthest_first` for prefilter_factor * k candidates, a copy of them, and
    O(m^2 D) for m labelled images. ValueError where prefilter_factor is below 1.
    """
    count = pick_count(scores, k)
    uncertainty = margin_uncertainty(required_probabilities(scores))
    kept, uncertainty = most_uncertain(scores, uncertainty, count, prefilter_factor)
    if count == 0:
        return kept.candidates
    points = Points.of(of_length_one(required_embeddings(kept)))
    nearest = torch.full_like(points.squared_norms, torch.inf)
    squared_radius = 1.0
    if kept.labelled_embeddings is not None and len(kept.labelled_embeddings):
        labelled = points.beside(of_length_one(kept.labelled_embeddings))
        nearest = nearest_squared_distance(points, labelled)
        between = nearest_neighbour(labelled, COPIES_BELOW)
        between = between[between.isfinite()]
        if len(between):
            squared_radius = float(between.quantile(RADIUS_QUANTILE))

    def value(squared_distance: Tensor) -> Tensor:
        return 1 - torch.exp(-squared_distance / squared_radius) + LAST_RESORT

    weights = relative_weights(uncertainty)
    return kept.candidates[farthest_first(points, count, nearest, weights, value)]


def weighted_k_means(
    scores: PoolScores, k: int, generator: torch.Generator, prefilter_factor: float
) -> Tensor:
    """k-means of the least certain candidates, weighted with their uncertainty (DBAL).

    Zhdanov 2019, "Diverse mini-batch Active Learning": the prefilter_factor * k candidates of
    smallest margin are clustered with weights 1 - margin; the candidate nearest to each mean is
    picked. Cost: `k_means_clusters` of those candidates. ValueError where prefilter_factor is
    below 1.
    """
    count = pick_count(scores, k)
    uncertainty = margin_uncertainty(required_probabilities(scores))
    kept, uncertainty = most_uncertain(scores, uncertainty, count, prefilter_factor)
    if count == 0:
        return kept.candidates
    points = Points.of(required_embeddings(kept))
    weights = relative_weights(uncertainty)
    clusters = k_means_clusters(points, count, generator, weights)
    return kept.candidates[nearest_to_means(clusters.owner, clusters.distance, count)]


def cluster_margin(
    scores: PoolScores, k: int, generator: torch.Generator, prefilter_factor: float
) -> Tensor:
    """The candidates of smallest margin, taken in turn from clusters, the smallest cluster first.

    Citovsky et al. 2021, "Batch Active Learning at Scale" (Cluster-Margin): of the
    prefilter_factor * k candidates of smallest margin, one at random from each cluster in order of
    ascending size, round after round. The paper clusters the whole pool once, hierarchically; here
    the kept candidates are clustered by k-means, into clusters of `MEMBERS_PER_CLUSTER` on average
    as in the paper, because a hierarchy needs all n^2 distances. Cost: `k_means_clusters` of the
    kept candidates. ValueError where prefilter_factor is below 1.
    """
    count = pick_count(scores, k)
    uncertainty = margin_uncertainty(required_probabilities(scores))
    kept, _ = most_uncertain(scores, uncertainty, count, prefilter_factor)
    if count == 0:
        return kept.candidates
    points = Points.of(required_embeddings(kept))
    clusters = math.ceil(len(points) / MEMBERS_PER_CLUSTER)
    owner = k_means_clusters(points, clusters, generator).owner
    lots = torch.rand(len(points), generator=generator, device=owner.device)
    sizes = torch.bincount(owner, minlength=clusters)[owner]
    order = sizes.argsort(stable=True)
    order = order[rank_within(owner, lots, clusters)[order].argsort(stable=True)]
    return kept.candidates[order[:count]]


def coreset_uncertainty(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-center by distance times predictive entropy.

    This is the core-set of Sener & Savarese 2018, weighted towards what the model does not know.
    Ramalingam et al. 2023, "A Weighted K-Center Algorithm for Data Subset Selection", take a
    weighted sum of the two objectives; the product needs no constant. Cost: as `k_center`.
    """
    count = pick_count(scores, k)
    uncertainty = predictive_entropy(required_probabilities(scores))
    refuse_nan(uncertainty)
    if count == 0:
        return scores.candidates[:0]
    points = Points.of(required_embeddings(scores))
    weights = relative_weights(uncertainty).square()  # of squared distances
    nearest = distance_to_labelled(scores, points)
    return scores.candidates[farthest_first(points, count, nearest, weights)]


def density_weighted(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Largest predictive entropy times mean cosine similarity to the pool (information density).

    Settles & Craven 2008, "An Analysis of Active Learning Strategies for Sequence Labeling Tasks",
    with exponent 1. A mean similarity below zero counts as zero. The mean over the pool of a cosine
    is one product with the mean unit vector: O(n (T C + D)).
    """
    count = pick_count(scores, k)
    uncertainty = predictive_entropy(required_probabilities(scores))
    embeddings = required_embeddings(scores)
    if count == 0:
        return scores.candidates[:0]
    points = Points.of(embeddings, centre=torch.zeros_like(embeddings[0], dtype=torch.float32))
    scale = points.squared_norms.clamp_min(1e-30).rsqrt()
    direction = torch.zeros_like(points.centre)
    for rows in points.slices():
        direction += scale[rows] @ points.block(rows).factors[0] / len(points)
    similarity = [
        scale[rows] * (points.block(rows).factors[0] @ direction) for rows in points.slices()
    ]
    values = uncertainty * torch.cat(similarity).clamp_min(0)
    return scores.candidates[top_k_stable(values, count)]


def half_and_half(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """ceil(k / 2) of largest predictive entropy, then k-means representatives of the others.

    Cost: `k_means` for half the picks, and a copy of the other candidates' embeddings.
    """
    count = pick_count(scores, k)
    uncertainty = predictive_entropy(required_probabilities(scores))
    order = top_k_stable(uncertainty, len(uncertainty))
    by_entropy, others = order[: (count + 1) // 2], order[(count + 1) // 2 :]
    spread = k_means(scores.take(others), count - len(by_entropy), generator)
    return torch.cat([scores.candidates[by_entropy], spread])
