"""Query strategies: which unlabelled images an annotator should label next.

A strategy is a function `(scores, k, generator) -> dataset indices`; `STRATEGIES` names them all.

    strategy = get_strategy("margin", prefilter_factor=10)
    indices = strategy.select(scores, 100, generator)  # int64 [min(100, n)], distinct

`class_balanced:NAME` asks any of them for the same number of images of every predicted class.

Every strategy works in bounded memory for 90,000 candidates of 2,048 dimensions.
`python -m benchmarks.strategy_cost` measures the seconds and the memory that each one takes, and
benchmarks/results/strategy_cost.csv holds the table.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from . import (
    baseline,
    disagreement,
    diversity,
    gradient,
    herding,
    hybrid,
    information,
    typical,
    uncertainty,
)
from .balanced import class_balanced
from .scores import PoolScores
from .uncertainty import predictive_entropy

__all__ = ["STRATEGIES", "PoolScores", "Strategy", "get_strategy", "predictive_entropy"]


@dataclass(frozen=True)
class Strategy:
    """A selection function and which of the scores it reads.

    select: (scores, k, generator) -> int64 [min(k, n)], distinct dataset indices out of
    `scores.candidates`, in order of preference where the strategy has one. The generator is on the
    scores' device. Inputs are not changed.
    stochastic: needs two or more passes in `scores.probabilities`, not a plain softmax.
    prefilter: `select` also takes the keyword `prefilter_factor`.
    largest_query: the most images that it selects at a time; None: any number.
    """

    select: Callable[..., Tensor]
    probabilities: bool = False
    embeddings: bool = False
    labelled_embeddings: bool = False
    stochastic: bool = False
    prefilter: bool = False
    largest_query: int | None = None


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(baseline.random),
    "entropy": Strategy(uncertainty.entropy, probabilities=True),
    "margin": Strategy(uncertainty.margin, probabilities=True),
    "least_confidence": Strategy(uncertainty.least_confidence, probabilities=True),
    "bald": Strategy(uncertainty.bald, probabilities=True, stochastic=True),
    "k_center": Strategy(diversity.k_center, embeddings=True, labelled_embeddings=True),
    "k_center_projected": Strategy(
        diversity.k_center_projected, embeddings=True, labelled_embeddings=True
    ),
    "k_means": Strategy(diversity.k_means, embeddings=True),
    "uncertainty_diversity": Strategy(
        hybrid.uncertainty_diversity,
        probabilities=True,
        embeddings=True,
        labelled_embeddings=True,
        prefilter=True,
    ),
    "margin_diversity": Strategy(
        hybrid.margin_diversity,
        probabilities=True,
        embeddings=True,
        labelled_embeddings=True,
        prefilter=True,
    ),
    "spread_margin": Strategy(
        hybrid.spread_margin,
        probabilities=True,
        embeddings=True,
        labelled_embeddings=True,
        prefilter=True,
    ),
    "half_and_half": Strategy(hybrid.half_and_half, probabilities=True, embeddings=True),
    "badge": Strategy(gradient.badge, probabilities=True, embeddings=True),
    "batch_bald": Strategy(
        information.batch_bald,
        probabilities=True,
        stochastic=True,
        largest_query=information.MAX_PICKS,
    ),
    "power_bald": Strategy(information.power_bald, probabilities=True, stochastic=True),
    "weighted_k_means": Strategy(
        hybrid.weighted_k_means, probabilities=True, embeddings=True, prefilter=True
    ),
    "cluster_margin": Strategy(
        hybrid.cluster_margin, probabilities=True, embeddings=True, prefilter=True
    ),
    "coreset_uncertainty": Strategy(
        hybrid.coreset_uncertainty, probabilities=True, embeddings=True, labelled_embeddings=True
    ),
    "density_weighted": Strategy(hybrid.density_weighted, probabilities=True, embeddings=True),
    "typiclust": Strategy(typical.typiclust, embeddings=True, labelled_embeddings=True),
    "prob_cover": Strategy(
        typical.prob_cover, probabilities=True, embeddings=True, labelled_embeddings=True
    ),
    "max_herding": Strategy(herding.max_herding, embeddings=True, labelled_embeddings=True),
    "u_herding": Strategy(
        herding.u_herding, probabilities=True, embeddings=True, labelled_embeddings=True
    ),
    "tcm": Strategy(typical.tcm, probabilities=True, embeddings=True, labelled_embeddings=True),
    "drop_query": Strategy(
        disagreement.drop_query, probabilities=True, embeddings=True, stochastic=True
    ),
    "falcun": Strategy(disagreement.falcun, probabilities=True),
    "epig": Strategy(information.epig, probabilities=True, stochastic=True),
}

BALANCED = "class_balanced:"


def get_strategy(name: str, prefilter_factor: float) -> Strategy:
    """The strategy called `name`, one of `STRATEGIES` or `class_balanced:` and one of them.

    prefilter_factor: for the strategies that keep only the prefilter_factor * k most uncertain
    candidates; the others ignore it. The ValueError for an unknown name gives the nearest valid
    name and all that are allowed.
    """
    base = name.removeprefix(BALANCED)
    if base not in STRATEGIES:
        nearest = difflib.get_close_matches(base, STRATEGIES, n=1, cutoff=0.0)[0]
        prefix = name[: len(name) - len(base)]
        raise ValueError(
            f"unknown query strategy {name!r}; did you mean {prefix + nearest!r}? "
            f"Allowed: {', '.join(sorted(STRATEGIES))}; "
            f"each also as {BALANCED}NAME"
        )
    strategy = STRATEGIES[base]
    if strategy.prefilter:
        bound = partial(strategy.select, prefilter_factor=prefilter_factor)
        strategy = replace(strategy, select=bound)
    if base != name:
        balanced = partial(class_balanced, select=strategy.select)
        strategy = replace(strategy, select=balanced, probabilities=True)
    return strategy
