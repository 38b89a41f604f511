"""Learners that differ from the package's in one part, to measure what that part would gain."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from active_learning import ActiveLearner
from data import ImageStore
from query_strategies import get_strategy
from training.hyperparameters import Hyperparameters
from training.optimisation import StepOptimizer
from training.seeds import make_generator

MIXUP_ALPHA = 0.2  # of Zhang et al. 2018 for ImageNet
CUTMIX_ALPHA = 1.0  # of Yun et al. 2019
GUESSED_IMAGES = 4000  # random unlabelled images, of which the surer half gets pseudo-labels


class HerdingFirst(ActiveLearner):
    """Chooses the first images by MaxHerding (Bae et al. 2024) instead of TypiClust."""

    def __init__(self, hyperparameters: Hyperparameters, train: ImageStore, seed: int) -> None:
        super().__init__(hyperparameters, train, seed)
        self._first_strategy_name = "max_herding"
        self._first_strategy = get_strategy("max_herding", self.hp.prefilter_factor)


class Mixing(ActiveLearner):
    """Trains on mixtures of two images of the batch; the loss is mixed in the same ratio."""

    _partners: Tensor  # int64 [B], positions of the other images of the last batch
    _share: float  # of the own images in the last mixtures

    def _augmented(self, indices: Tensor, generator: torch.Generator, part: slice) -> Tensor:
        images = super()._augmented(indices, generator, part)
        self._partners = torch.randperm(len(images), generator=generator, device=generator.device)
        return self._mixed(images, images[self._partners], generator)

    def _mixed(self, images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
        """Mixtures [B, C, S, S] of `images` and `others`; sets `_share`."""
        raise NotImplementedError

    def _loss(self, logits: Tensor, targets: Tensor, all_targets: Tensor) -> Tensor:
        own = super()._loss(logits, targets, all_targets)
        other = super()._loss(logits, targets[self._partners], all_targets)
        return self._share * own + (1 - self._share) * other


class Mixup(Mixing):
    """Weighted means of two images. Zhang et al. 2018, "mixup", arXiv 1710.09412."""

    def _mixed(self, images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
        self._share = _beta(MIXUP_ALPHA, generator)
        return self._share * images + (1 - self._share) * others


class CutMix(Mixing):
    """A rectangle of another image, pasted. Yun et al. 2019, "CutMix", arXiv 1905.04899."""

    def _mixed(self, images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
        size = images.shape[-1]
        side = size * math.sqrt(1 - _beta(CUTMIX_ALPHA, generator))
        centre = torch.rand(2, generator=generator, device=generator.device) * size
        top, left = (centre - side / 2).round().clamp(0, size).int().tolist()
        bottom, right = (centre + side / 2).round().clamp(0, size).int().tolist()
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        self._share = 1 - (bottom - top) * (right - left) / size**2
        return mixed


class PseudoLabels(ActiveLearner):
    """Trains on its own guesses late in the run. Lee 2013, "Pseudo-Label".

    From the middle of the last round on, half of each batch are unlabelled images, labelled as the
    network classified them at that moment. They are the half of `GUESSED_IMAGES` whose most
    probable class has the highest probability.
    """

    def _train_step(
        self, backward: Callable[[Tensor], None], step_optimizer: StepOptimizer
    ) -> None:
        round_, batch = divmod(self.step, self.hp.batches_per_round)
        if round_ == len(self.query_sizes) - 1 and batch == self.hp.batches_per_round // 2:
            self._replace_half_of_batches(batch)
        super()._train_step(backward, step_optimizer)

    def _replace_half_of_batches(self, first: int) -> None:
        """Replace half of each batch of the round, from batch `first` on."""
        generator = make_generator(self.seed, "pseudo-labels")
        unlabelled = self.pool.unlabelled
        order = torch.randperm(len(unlabelled), generator=generator)
        images = unlabelled[order[:GUESSED_IMAGES]]
        probability, guesses = self.probabilities_of(images).max(1)
        surest = probability.argsort(descending=True, stable=True)[: len(images) // 2]
        self._targets = self._targets.clone()  # of the pool, which must not learn the guesses
        self._targets[images[surest]] = guesses[surest]
        replaced = self._batches[first:, ::2]
        drawn = torch.randint(len(surest), replaced.shape, generator=generator)
        replaced.copy_(images[surest][drawn])


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha)."""
    first, second = torch._standard_gamma(torch.full((2,), alpha), generator=generator).tolist()
    return float(first / (first + second)) if first + second else 0.5
