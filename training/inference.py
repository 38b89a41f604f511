"""Runs a network over many images, without training it: for queries, evaluations and predictions.

Networks are used in eval mode, in the run's precision. Images are taken as they are, but for the
further views of test-time augmentation.
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
    """The T ways in which a query looks at every image, drawn once for all of them.

    A pass is one function of an image, the same for the whole pool, so that the passes' opinions
    of two images can be compared (BALD for batches rests on it), and neither batches nor ranks
    make a difference.

    masks: float32 [M, D], dropout masks of the head on the image as it is; one of ones for none.
    view_seeds: of T - M further looks, each at another view of the image.
    augmentation: makes the views.
    """

    masks: Tensor
    view_seeds: tuple[int, ...]
    augmentation: Augmentation


def query_passes(hp: Hyperparameters, network: SplitNetwork, seed: int, round_: int) -> Passes:
    """The passes of the query that opens `round_`, on the network's device.

    - `softmax`: the network once, as it is.
    - `mc_dropout`: sampled heads; all of them share one pass of the backbone. Gal & Ghahramani
      2016, "Dropout as a Bayesian Approximation".
    - `test_time_augmentation`: the image, and views of it by the augmentation that the network was
      trained with; each of the T costs a pass of the backbone. Ayhan & Berens 2018, "Test-time Data
      Augmentation for Estimation of Heteroscedastic Aleatoric Uncertainty in Deep Neural Networks";
      Wang et al. 2019, doi 10.1016/j.neucom.2019.01.103.
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
    """A network in eval mode and what its images are normalised by.

    The backbone is run as the network is when first needed, or at the last `refresh`; the head as
    it is at any time.

    mean, std: float32 [C], of the training images, in units of full brightness.
    compiled: run the backbone under torch.compile.
    """

    network: SplitNetwork
    mean: Tensor
    std: Tensor
    compute_dtype: torch.dtype
    batch_size: int
    compiled: bool = False

    @property
    def device(self) -> torch.device:
        """Where the network is; images may be elsewhere, and are brought there in batches."""
        return self.mean.device

    @cached_property
    def _embedder(self) -> Embedder:
        size = self.step if self.compiled else None
        return Embedder(self.network, self.compute_dtype, compiled_size=size)

    @property
    def step(self) -> int:
        """How many images to embed at a time: `batch_size`, or what a CPU does best."""
        on_cpu = self.device.type == "cpu"
        return min(self.batch_size, LARGEST_CPU_STEP) if on_cpu else self.batch_size

    def refresh(self) -> None:
        """Take over the backbone's weights and statistics as they are now."""
        self._embedder.refresh()

    def embed(self, images: Tensor, title: str) -> Tensor:
        """Images uint8 [N, C, S, S] to float32 embeddings [N, D] on the network's device."""
        blocks = []
        for batch in tqdm(
            images.split(self.step), desc=title, leave=False, disable=None, unit="batch"
        ):
            blocks.append(self.embed_batch(batch))
            release(images)
        return torch.cat(blocks)

    @torch.inference_mode()
    def embed_batch(self, batch: Tensor) -> Tensor:
        """The same for images that fit on the device together; where compiled, `step` at most."""
        batch = batch.to(self.device).contiguous(memory_format=torch.channels_last)
        return self._embedder(normalise(batch, self.mean, self.std))

    @torch.inference_mode()
    def logits(self, embeddings: Tensor) -> Tensor:
        """Float32 embeddings [N, D] to logits [N, classes], with dropout off."""
        return self.network.head(embeddings)

    @torch.inference_mode()
    def probabilities(self, batch: Tensor, embeddings: Tensor, passes: Passes) -> Tensor:
        """What each of T passes says: float32 [T, B, classes].

        Args:
            batch: images uint8 [B, C, S, S]; looked at where there are further views only.
            embeddings: [B, D], theirs, as of `embed_batch`.
        """
        batch = batch.to(self.device)
        logits = [self.network.monte_carlo_logits(embeddings, passes.masks)]
        for seed in passes.view_seeds:
            generator = torch.Generator(self.device).manual_seed(seed)
            view = passes.augmentation.view(batch, generator)
            normalised = (view - self.mean[:, None, None]) / self.std[:, None, None]
            logits.append(self.logits(self._embedder(normalised)).unsqueeze(0))
        return torch.cat(logits).softmax(2)

    @torch.inference_mode()
    def uncertainty(self, batch: Tensor, embeddings: Tensor, passes: Passes) -> Tensor:
        """Predictive entropy [B], nats, of the mean over `probabilities`."""
        return predictive_entropy(self.probabilities(batch, embeddings, passes))
