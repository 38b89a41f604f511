"""Learners that differ from the package's in one part, to measure what that part would gain."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from active_learning import ActiveLearner
from data import ImageStore
from query_strategies import get_strategy
from training.hyperparameters import Hyperparameters

MIXUP_ALPHA = 0.2  # of Zhang et al. 2018 for ImageNet
CUTMIX_ALPHA = 1.0  # of Yun et al. 2019


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


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha)."""
    first, second = torch._standard_gamma(torch.full((2,), alpha), generator=generator).tolist()
    return float(first / (first + second)) if first + second else 0.5
