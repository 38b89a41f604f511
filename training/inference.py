"""Runs a trained network over many images, as the query's scoring does: in eval mode, batch by
batch, without augmentation, in the run's precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from data import normalise
from query_strategies import predictive_entropy
from resnet_custom import SplitNetwork, dropout_masks
from training.hyperparameters import Hyperparameters
from training.seeds import make_generator


@dataclass(frozen=True)
class Inference:
    """A network in eval mode and what its images are normalised by.

    mean, std: float32 [C], of the training images, in units of full brightness.
    """

    network: SplitNetwork
    mean: Tensor
    std: Tensor
    compute_dtype: torch.dtype
    batch_size: int

    @property
    def device(self) -> torch.device:
        """Where the network is; images may be elsewhere, and are brought there in batches."""
        return self.mean.device

    @torch.inference_mode()
    def embed(self, images: Tensor, title: str) -> Tensor:
        """Images uint8 [N, C, S, S] to float32 embeddings [N, D] on the network's device."""
        blocks = [
            self.embed_batch(batch)
            for batch in tqdm(
                images.split(self.batch_size), desc=title, leave=False, disable=None, unit="batch"
            )
        ]
        return torch.cat(blocks)

    @torch.inference_mode()
    def embed_batch(self, batch: Tensor) -> Tensor:
        """The same for images that fit on the device together."""
        batch = batch.to(self.device).contiguous(memory_format=torch.channels_last)
        enabled = self.compute_dtype != torch.float32
        with torch.autocast(self.device.type, self.compute_dtype, enabled=enabled):
            return self.network.embed(normalise(batch, self.mean, self.std)).float()

    @torch.inference_mode()
    def logits(self, embeddings: Tensor) -> Tensor:
        """Float32 embeddings [N, D] to logits [N, classes], with dropout off."""
        return self.network.head(embeddings)

    @torch.inference_mode()
    def uncertainty(self, embeddings: Tensor, masks: Tensor) -> Tensor:
        """Predictive entropy [N], nats, of the mean over the passes of `query_masks`."""
        probabilities = self.network.monte_carlo_logits(embeddings, masks).softmax(2)
        return predictive_entropy(probabilities)


def query_masks(hp: Hyperparameters, network: SplitNetwork, seed: int, round_: int) -> Tensor:
    """Dropout masks [T, D] on the network's device: those of the query that opens `round_`.

    A single mask of ones where the run takes its uncertainty from a plain softmax.
    """
    device = network.classifier.weight.device
    if hp.uncertainty != "mc_dropout":
        return torch.ones(1, network.embedding_size, device=device)
    generator = make_generator(seed, "mc_dropout", round_, device=device)
    return dropout_masks(hp.mc_dropout_passes, network.embedding_size, hp.dropout, generator)
