"""Strategies for small budgets: typical images first, whatever the model's confidence."""

from __future__ import annotations

import torch
from torch import Tensor

from .clustering import k_means_clusters, rank_within
from .geometry import Points, nearest_squared_distance, of_length_one, squared_distances
from .scores import (
    PoolScores,
    pick_count,
    refuse_nan,
    required_embeddings,
    required_probabilities,
)
from .uncertainty import margin

MAX_CLUSTERS = 500
MIN_CLUSTER = 5
NEIGHBOURS = 20

LABELS_PER_CLASS = 10  # of tcm

MAX_GRAPH = 20_000
PURITY = 0.95
PURITY_SAMPLE = 1024
PURITY_RUNS = 5  # of k-means


def typiclust(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """The most typical candidate of each of the largest clusters that hold no label yet.

    Hacohen et al. 2022, "Active Learning on a Budget: Opposite Strategies Suit High and Low
    Budgets" (TPC_RP). K-means divides candidates and labelled images together into
    min(m + k, `MAX_CLUSTERS`) clusters. Typicality is one over the mean distance to the
    `NEIGHBOURS` nearest images of the cluster. Clusters take turns: first those with the fewest
    labelled or picked images, among them the larger. Clusters of fewer than `MIN_CLUSTER` images
    come last.

    Cost: `k_means_clusters` of n + m points and the distances inside the clusters, O(sum of squared
    cluster sizes * D); a copy of the embeddings, and the largest cluster in float32.
    """
    count = pick_count(scores, k)
    if count == 0:
        return scores.candidates[:0]
    embeddings = required_embeddings(scores)
    n = len(embeddings)
    if scores.labelled_embeddings is not None:
        embeddings = torch.cat([embeddings, scores.labelled_embeddings.to(embeddings.dtype)])
    points = Points.of(embeddings)
    clusters = min(len(embeddings) - n + count, MAX_CLUSTERS)
    owner = k_means_clusters(points, clusters, generator).owner
    typicality = _typicality(points, owner, clusters)[:n]

    sizes = torch.bincount(owner, minlength=clusters)
    labelled = torch.bincount(owner[n:], minlength=clusters)
    owner = owner[:n]
    turn = labelled[owner] + rank_within(owner, typicality, clusters)
    # The least important key is sorted first; the sorts are stable.
    order = owner.argsort(stable=True)
    order = order[sizes[owner][order].argsort(descending=True, stable=True)]
    order = order[turn[order].argsort(stable=True)]
    order = order[(sizes[owner][order] < MIN_CLUSTER).long().argsort(stable=True)]
    return scores.candidates[order[:count]]


def _typicality(points: Points, owner: Tensor, clusters: int) -> Tensor:
    """One over the mean distance to the nearest `NEIGHBOURS` of the same cluster, float32 [n]."""
    typicality = torch.zeros_like(points.squared_norms)
    sizes = torch.bincount(owner, minlength=clusters).tolist()
    for members in owner.argsort(stable=True).split(sizes):
        neighbours = min(NEIGHBOURS, len(members) - 1)
        if neighbours < 1:
            continue  # an image alone in its cluster is typical of nothing
        cluster = points.block(members)
        for rows in members.split(points.rows_per_block(len(members))):
            distances = squared_distances(points.block(rows), cluster)
            distances[rows[:, None] == members] = torch.inf
            nearest = distances.topk(neighbours, dim=1, largest=False).values.sqrt()
            typicality[rows] = 1 / nearest.mean(dim=1).clamp_min(1e-12)
    return typicality


def tcm(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """`typiclust` while labels are few, then `margin` (TypiClust, then margin).

    Doucet et al. 2024, "Bridging Diversity and Uncertainty in Active Learning with Self-Supervised
    Pre-Training" (TCM). Margin takes over once there are `LABELS_PER_CLASS` labels per class.
    Cost: that of the one or the other.
    """
    probabilities = required_probabilities(scores)
    refuse_nan(probabilities)
    required_embeddings(scores)
    labelled = scores.labelled_embeddings
    few = LABELS_PER_CLASS * probabilities.shape[-1]
    select = typiclust if labelled is None or len(labelled) < few else margin
    return select(scores, k, generator)


def prob_cover(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Greedily the candidates whose balls cover most of the pool that is not covered yet.

    Yehuda et al. 2022, "Active Learning Through a Covering Lens" (ProbCover). As there, embeddings
    are scaled to length 1. The radius is the largest at which a share `PURITY` of the balls hold
    one pseudo-label only. Pseudo-labels are the clusters of k-means with as many clusters as
    classes, the best of `PURITY_RUNS` runs. So the radius is the (1 - `PURITY`) quantile of the
    distance to the nearest image of another pseudo-label, estimated on `PURITY_SAMPLE` images.
    Balls around the labelled images are covered from the start. Once everything is covered, the
    remaining picks are random.

    The graph has at most `MAX_GRAPH` candidates: a random part of that size stands for a larger
    pool. Time O(n'^2 D), n' = min(n, `MAX_GRAPH`), besides the k-means of all n candidates. Memory:
    2 n'^2 bytes, a copy of the embeddings in half precision, and the part's embeddings. One host
    synchronisation per pick.
    """
    count = pick_count(scores, k)
    probabilities = required_probabilities(scores)
    refuse_nan(probabilities)
    n = len(scores.candidates)
    if count == 0:
        return scores.candidates[:0]
    embeddings = of_length_one(required_embeddings(scores))
    points = Points.of(embeddings)
    shuffled = torch.randperm(n, generator=generator, device=scores.candidates.device)
    radius = _pure_radius(
        points, min(probabilities.shape[-1], n), shuffled[:PURITY_SAMPLE], generator
    )

    # In ascending order, so that ties go to the smaller dataset index.
    kept = shuffled[:MAX_GRAPH].sort().values
    part = points.beside(embeddings[kept])
    uncovered = torch.ones_like(kept, dtype=torch.bool)
    if scores.labelled_embeddings is not None:
        labelled = points.beside(of_length_one(scores.labelled_embeddings))
        uncovered = nearest_squared_distance(part, labelled) >= radius
    graph = torch.empty(len(kept), len(kept), dtype=torch.bool, device=kept.device)
    gains = torch.empty_like(kept)
    position = torch.arange(len(kept), device=kept.device)
    everything = part.block(slice(None))
    for rows in part.slices(len(kept)):
        close = squared_distances(part.block(rows), everything) < radius
        graph[rows] = close | (position[rows, None] == position)  # each covers itself
        gains[rows] = (graph[rows] & uncovered).sum(dim=1)
    picked: list[Tensor] = []
    while len(picked) < count:
        best = gains.argmax(dim=0, keepdim=True)
        newly = torch.nonzero(graph[best][0] & uncovered)[:, 0]
        if len(newly) == 0:
            break
        gains -= graph[:, newly].sum(dim=1)
        uncovered[newly] = False
        picked.append(best)
    cover = kept[torch.cat(picked)] if picked else kept[:0]
    others = shuffled[~torch.isin(shuffled, cover)]
    return scores.candidates[torch.cat([cover, others])[:count]]


def _pure_radius(
    points: Points, clusters: int, sample: Tensor, generator: torch.Generator
) -> Tensor:
    """Squared radius, a scalar, at which a share `PURITY` of the sampled balls is pure."""
    owner = k_means_clusters(points, clusters, generator, runs=PURITY_RUNS).owner
    block = points.block(sample)
    nearest = torch.full_like(block.squared_norms, torch.inf)
    for rows in points.slices(len(sample)):
        distances = squared_distances(block, points.block(rows))
        distances[owner[sample][:, None] == owner[rows]] = torch.inf
        nearest = torch.minimum(nearest, distances.amin(dim=1))
    return nearest.sort().values[int((1 - PURITY) * len(sample))]
