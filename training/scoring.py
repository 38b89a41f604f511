"""One sweep over images with the network in eval mode: candidates in, scores out.

`PoolScorer` shares each sweep among data-parallel ranks and puts the parts together, so that every
rank ends with the same scores. Images are not augmented and BatchNorm's statistics do not change.
A query takes the images as they stand. Evaluations average over rotations if the network does,
which would make a sweep over the whole pool four times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from data import ImageStore
from query_strategies import PoolScores, Strategy
from resnet_custom import SplitNetwork
from training.host_images import batches_on
from training.inference import Inference, Passes
from training.ranks import Ranks

# Wraps an iterable of batches in a progress bar with a title.
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


class PoolScorer:
    """Scores pool images and evaluates splits with the network as it is at each call.

    Args:
        network: whose BatchNorm statistics all ranks agree on before a sweep.
        inference: runs that network over batches.
        ranks: which share of a sweep this process takes.
        progress: shows how far a sweep is.
    """

    def __init__(
        self, network: SplitNetwork, inference: Inference, ranks: Ranks, progress: Progress
    ) -> None:
        self._network = network
        self._inference = inference
        self._ranks = ranks
        self._progress = progress

    @torch.inference_mode()
    def score(
        self,
        images: Tensor,
        candidates: Tensor,
        labelled: Tensor,
        strategy: Strategy,
        passes: Passes,
        title: str,
    ) -> PoolScores:
        """What `strategy` reads about `candidates`, and their class probabilities.

        Args:
            images: the pool's, uint8 [N, C, S, S].
            candidates: int64 [n], ascending dataset indices.
            labelled: int64 [m], dataset indices of the labelled images.
            passes: how class probabilities are drawn.
        """
        embeddings, probabilities = [], []
        for batch in self._sweep(images, candidates, title):
            block = self._inference.embed_batch(batch, upright=True)
            probabilities.append(self._inference.probabilities(batch, block, passes))
            if strategy.embeddings:
                embeddings.append(block.half())
        # Ranks gather along the first axis, so candidates come first there.
        by_candidate = torch.cat(probabilities, dim=1).transpose(0, 1)
        return PoolScores(
            candidates=candidates,
            probabilities=self._ranks.gather(by_candidate, len(candidates)).transpose(0, 1),
            embeddings=self._ranks.gather(torch.cat(embeddings), len(candidates))
            if strategy.embeddings
            else None,
            labelled_embeddings=self.embeddings(images, labelled, "embedding labelled images")
            if strategy.labelled_embeddings
            else None,
        )

    @torch.inference_mode()
    def embeddings(self, images: Tensor, indices: Tensor, title: str) -> Tensor:
        """Float16 [k, D] for the images at `indices` (int64 [k])."""
        blocks = [
            self._inference.embed_batch(batch, upright=True).half()
            for batch in self._sweep(images, indices, title)
        ]
        return self._ranks.gather(torch.cat(blocks), len(indices))

    @torch.inference_mode()
    def logits(self, store: ImageStore, title: str) -> Tensor:
        """Float32 [N, classes] for all images of `store`, on the network's device."""
        everything = torch.arange(len(store), device=self._inference.device)
        blocks = [
            self._inference.logits(self._inference.embed_batch(batch))
            for batch in self._sweep(store.images, everything, title)
        ]
        return self._ranks.gather(torch.cat(blocks), len(store))

    def _sweep(self, images: Tensor, indices: Tensor, title: str) -> Iterator[Tensor]:
        """This rank's share of the images at `indices`, batch by batch, uint8 on the device."""
        share = indices[self._ranks.share(len(indices))]
        for buffer in self._network.buffers():
            # Each rank's batches have moved BatchNorm's statistics in a way of their own.
            self._ranks.agree(buffer)
        self._inference.refresh()
        blocks = share.to(images.device).split(self._inference.step)
        yield from batches_on(self._inference.device, images, self._progress(blocks, title))
