"""Strategies that want their picks both uncertain and different from one another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .clustering import sample_by_distance
from .diversity import distance_to_labelled, k_means
from .geometry import Points
from .scores import (
    PoolScores,
    pick_count,
    required_embeddings,
    required_probabilities,
    top_k_stable,
)
from .uncertainty import predictive_entropy


def most_uncertain(
    scores: PoolScores, uncertainty: Tensor, count: int, prefilter_factor: float
) -> tuple[PoolScores, Tensor]:
    """The ceil(prefilter_factor * count) most uncertain candidates, and their uncertainties.

    uncertainty: float [n]. ValueError where prefilter_factor is below 1: too few would remain.
    """
    if not prefilter_factor >= 1:
        raise ValueError(f"prefilter_factor must be at least 1, not {prefilter_factor}")
    kept = math.ceil(min(prefilter_factor * count, len(uncertainty)))
    positions = top_k_stable(uncertainty, kept).sort().values
    return scores.take(positions), uncertainty[positions]


def relative_weights(uncertainty: Tensor) -> Tensor:
    """Uncertainties, none negative, as weights in [1e-6, 1]; all 1 where no candidate has any.

    The floor leaves distance to decide among candidates the model is wholly sure of.
    """
    largest = uncertainty.amax()
    return torch.where(largest > 0, uncertainty / largest, 1.0).clamp(1e-6, 1.0)


def uncertainty_diversity(
    scores: PoolScores, k: int, generator: torch.Generator, prefilter_factor: float = 10.0
) -> Tensor:
    """The default: uncertain candidates, spread by D^2 sampling weighted with their entropy.

    The prefilter_factor * k candidates of largest predictive entropy are kept. Among them each pick
    is drawn with probability proportional to entropy * squared distance in embedding space to the
    nearest labelled or already picked image.

    The prefilter and the uncertainty weights are those of Zhdanov 2019, "Diverse mini-batch Active
    Learning", which then runs weighted k-means; D^2 sampling is that algorithm's seeding, and is
    shown by Ash et al. 2020 (BADGE) to give batches as good as a determinantal point process at any
    batch size. Being a draw and not a maximum, it does not run after outliers as greedy k-center
    does. That a cheap diversity step on the uncertain part of the pool is enough at large batches
    is what Citovsky et al. 2021, "Batch Active Learning at Scale", find. Counting distances to the
    labelled images keeps one round from repeating the last.

    Cost: that of `sample_by_distance` for prefilter_factor * k candidates, and their copy.
    ValueError where prefilter_factor is below 1.
    """
    count = pick_count(scores, k)
    uncertainty = predictive_entropy(required_probabilities(scores))
    kept, uncertainty = most_uncertain(scores, uncertainty, count, prefilter_factor)
    if count in (0, len(kept.candidates)):
        return kept.candidates[:count]
    points = Points.of(required_embeddings(kept))
    positions = sample_by_distance(
        points,
        count,
        generator,
        nearest=distance_to_labelled(kept, points),
        weights=relative_weights(uncertainty),
    )
    return kept.candidates[positions]


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
