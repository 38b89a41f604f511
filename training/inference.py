"""Runs a network over many images for queries, evaluations and predictions.

The network is in eval mode and computes in the run's precision. Images are not augmented, except
for the additional views of test-time augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from data import normalise, release
from query_strategies import predictive_entropy
from resnet_custom import SplitNetwork, dropout_masks
from training.augmentation import Augmentation
from training.embedding import LARGEST_CPU_STEP, Embedder
from training.hyperparameters import Hyperparameters
from training.seeds import derive_seed, make_generator


@dataclass(frozen=True)
class Passes:
    """The T stochastic passes of a query, drawn once for all candidates.

    A pass is one fixed function of an image, the same for the whole pool. Its predictions for two
    images can therefore be compared, which BALD for batches needs, and neither the batch size nor
    the number of ranks changes them.

    masks: float32 [M, D], dropout masks for the head on the unchanged image; a single mask of ones
        switches dropout off.
    view_seeds: seeds of the other T - M passes, each on an augmented view of the image.
    augmentation: makes the views.
    """

    masks: Tensor
    view_seeds: tuple[int, ...]
    augmentation: Augmentation


def query_passes(hp: Hyperparameters, network: SplitNetwork, seed: int, round_: int) -> Passes:
    """The passes of the query that opens round `round_`, on the network's device.

    - `softmax`: one pass without dropout.
    - `mc_dropout`: T sampled heads, which share one pass of the backbone. Gal & Ghahramani 2016,
      "Dropout as a Bayesian Approximation".
    - `test_time_augmentation`: the unchanged image and T - 1 views of it, made by the augmentation
      that the network is trained with; each costs a pass of the backbone. Ayhan & Berens 2018,
      "Test-time Data Augmentation for Estimation of Heteroscedastic Aleatoric Uncertainty in Deep
      Neural Networks"; Wang et al. 2019, doi 10.1016/j.neucom.2019.01.103.
    """
    device = network.classifier.weight.device
    masks = torch.ones(1, network.embedding_size, device=device)
    view_seeds: tuple[int, ...] = ()
    if hp.uncertainty == "mc_dropout":
        generator = make_generator(seed, "mc_dropout", round_, device=device)
        masks = dropout_masks(hp.uncertainty_passes, masks.shape[1], hp.dropout, generator)
    elif hp.uncertainty == "test_time_augmentation":
        numbers = range(1, hp.uncertainty_passes)
        view_seeds = tuple(derive_seed(seed, "view", round_, number) for number in numbers)
    return Passes(masks, view_seeds, Augmentation.of_trial(hp))


@dataclass(frozen=True)
class Inference:
    """A network in eval mode, with the mean and deviation that normalise its images.

    The backbone has the weights that the network had at the first use or at the last `refresh`; the
    head always has the network's current weights.

    mean, std: float32 [C], of the training images, in units of full brightness.
    compute_dtype: the type that the backbone computes in.
    batch_size: images per step; a CPU takes `LARGEST_CPU_STEP` at most.
    compiled: run the backbone under torch.compile.
    tf32: whether a GPU may compute the backbone's float32 products in TF32.
    """

    network: SplitNetwork
    mean: Tensor
    std: Tensor
    compute_dtype: torch.dtype
    batch_size: int
    compiled: bool = False
    tf32: bool = False

    @property
    def device(self) -> torch.device:
        """The network's device; images on another device are copied to it in batches."""
        return self.mean.device

    @cached_property
    def _embedder(self) -> Embedder:
        size = self.step if self.compiled else None
        return Embedder(self.network, self.compute_dtype, compiled_size=size, tf32=self.tf32)

    @property
    def step(self) -> int:
        """How many images to embed at a time."""
        on_cpu = self.device.type == "cpu"
        return min(self.batch_size, LARGEST_CPU_STEP) if on_cpu else self.batch_size

    def refresh(self) -> None:
        """Copy the backbone's current weights and statistics."""
        self._embedder.refresh()

    def embed(self, images: Tensor, title: str) -> Tensor:
        """Embeddings, float32 [N, D] on the device, of images uint8 [N, C, S, S] on any device."""
        blocks = []
        for batch in tqdm(
            images.split(self.step), desc=title, leave=False, disable=None, unit="batch"
        ):
            blocks.append(self.embed_batch(batch))
            release(images)
        return torch.cat(blocks)

    @torch.inference_mode()
    def embed_batch(self, batch: Tensor, upright: bool = False) -> Tensor:
        """The same for a batch that fits on the device; at most `step` images if compiled.

        upright: do not average over rotations, even if the network does.
        """
        batch = batch.to(self.device).contiguous(memory_format=torch.channels_last)
        return self._embedder(normalise(batch, self.mean, self.std), upright)

    @torch.inference_mode()
    def logits(self, embeddings: Tensor) -> Tensor:
        """Logits [N, classes] of float32 embeddings [N, D], without dropout."""
        return self.network.head(embeddings)

    @torch.inference_mode()
    def probabilities(self, batch: Tensor, embeddings: Tensor, passes: Passes) -> Tensor:
        """Class probabilities of each of the T passes: float32 [T, B, classes].

        Args:
            batch: images uint8 [B, C, S, S]; used only if `passes` has views.
            embeddings: [B, D], their embeddings from `embed_batch`.
            passes: the query's, from `query_passes`.
        """
        batch = batch.to(self.device)
        logits = [self.network.monte_carlo_logits(embeddings, passes.masks)]
        for seed in passes.view_seeds:
            generator = torch.Generator(self.device).manual_seed(seed)
            view = passes.augmentation.view(batch, generator)
            normalised = (view - self.mean[:, None, None]) / self.std[:, None, None]
            embedded = self._embedder(normalised, upright=True)
            logits.append(self.logits(embedded).unsqueeze(0))
        return torch.cat(logits).softmax(2)

    @torch.inference_mode()
    def uncertainty(self, batch: Tensor, embeddings: Tensor, passes: Passes) -> Tensor:
        """Predictive entropy in nats, [B], of the mean of `probabilities` over the passes."""
        return predictive_entropy(self.probabilities(batch, embeddings, passes))
