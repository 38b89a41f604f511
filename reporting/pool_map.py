"""A map of the pool: where labelled, newly queried and unlabelled images lie in feature space."""

from __future__ import annotations

import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from reporting.prediction_figures import embedding_map
from training.inference import Inference
from training.seeds import derive_seed, make_generator

PRINCIPAL_COMPONENTS = 50  # go into t-SNE, as in van der Maaten & Hinton 2008


def pool_map(
    images: Tensor,
    acquired_round: Tensor,
    round_: int,
    inference: Inference,
    class_names: tuple[str, ...],
    seed: int,
    points: int,
) -> bytes:
    """A PNG of embeddings brought into the plane by PCA and then t-SNE.

    van der Maaten & Hinton 2008, "Visualizing Data using t-SNE".

    Args:
        images: uint8 [N, C, S, S], the pool's, on any device; only those drawn are read.
        acquired_round: int64 [N], on the CPU: the round in which each was labelled; -1 for none.
        round_: the images labelled in this round are shown as queried last.
        seed: of the draw and of t-SNE.
        points: drawn at most of each kind: unlabelled, labelled earlier, queried last.
    """
    generator = make_generator(seed, "map")
    last = acquired_round == round_
    groups = (last, (acquired_round >= 0) & ~last, acquired_round < 0)
    chosen = torch.cat([_draw(group, points, generator) for group in groups])
    embeddings = inference.embed(images[chosen.to(images.device)], "map")
    predicted = inference.logits(embeddings).argmax(1).cpu()
    status = (acquired_round[chosen] >= 0).long() + last[chosen].long()
    places = _plane(embeddings.cpu(), derive_seed(seed, "map") % 2**32)
    return embedding_map(places, status, predicted, class_names)


def _draw(group: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` of the True positions of `group`, drawn at random."""
    positions = group.nonzero().flatten()
    order = torch.randperm(len(positions), generator=generator)
    return positions[order[:count]]


def _plane(embeddings: Tensor, seed: int) -> Tensor:
    """Embeddings [n, D] as points [n, 2]."""
    components = min(PRINCIPAL_COMPONENTS, *embeddings.shape)
    reduced = PCA(components, random_state=seed).fit_transform(embeddings.numpy())
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return torch.from_numpy(points)
