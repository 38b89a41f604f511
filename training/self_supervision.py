"""Learning from images without labels: pre-training of the backbone on the whole pool.

Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): the network sees two views of every image,
and learns to make each number of its projected embedding agree between the two, and different
numbers independent of each other. There are no negatives to compare with and no second network,
so small batches and small machines do.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from data import release
from errors import DivergedError, UserError
from resnet_custom import SplitNetwork
from training.hyperparameters import Hyperparameters
from training.optimisation import learning_rate, make_optimizer
from training.ranks import ALONE, Ranks
from training.scoring import Progress
from training.seeds import make_generator
from training.views import Views

PROJECTION = 512  # width of the projector; the paper has 8192, for batches of 1024 and 300 epochs
REDUNDANCY = 1 / 128  # weight of the correlations between different numbers

# What the course of the steps depends on, besides the images themselves.
SETTINGS = (
    *("dataset", "image_size", "split_seed", "validation_fraction", "test_fraction"),
    *("architecture", "pretrained", "pretrained_backbone", "flips_and_rotations"),
    *("weight_decay", "warmup_fraction", "self_supervised_steps"),
    *("self_supervised_batch_size", "self_supervised_learning_rate"),
)


class SelfSupervision:
    """Trains a copy of a network's backbone on images alone; `hp.self_supervised_steps` in all.

    All draws are functions of `seed` and the step, so that `state_dict` is enough to go on
    exactly. Data-parallel ranks share each batch; the loss is that of the whole batch.

    Args:
        images: the pool, uint8 [N, C, S, S], on the network's device or, if too many, the host.
        mean, std: float32 [C], what images are normalised by.
        dtype: what the networks compute in; the loss is float32.

    Raises:
        UserError: a batch of more images than there are.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        network: SplitNetwork,
        images: Tensor,
        mean: Tensor,
        std: Tensor,
        dtype: torch.dtype,
        seed: int,
        ranks: Ranks = ALONE,
    ) -> None:
        hp = hyperparameters
        if hp.self_supervised_batch_size > len(images):
            raise UserError(
                f"hyperparameters.self_supervised_batch_size: {hp.self_supervised_batch_size} is "
                f"more than the {len(images)} training images of {hp.dataset}; lower it"
            )
        self.hp = hp
        self.step = 0
        self._images = images
        self._mean, self._std = mean[:, None, None], std[:, None, None]
        self._dtype = dtype
        self._device = mean.device
        self._seed = seed
        self._ranks = ranks
        # A copy, as the network itself may be frozen, or in a wrapper that looks at gradients.
        self._network = copy.deepcopy(network)
        self._projector = _projector(network.embedding_size, seed).to(self._device)
        self._trained = nn.ModuleList([self._network.backbone, self._projector])
        self._trained.requires_grad_(True).train()
        self._optimizer = make_optimizer(self._trained, hp.weight_decay)
        self._views = Views(hp.flips_and_rotations)
        self._order: tuple[int, Tensor] | None = None  # which pass over the images, and in what
        self._loss = torch.zeros((), device=self._device)  # summed since the last `report`
        self._reported = 0

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.hp.self_supervised_steps

    @property
    def backbone(self) -> dict[str, Tensor]:
        """What has been learnt: weights and BatchNorm's statistics, copied."""
        return {name: value.clone() for name, value in self._network.backbone.state_dict().items()}

    @property
    def learning_rate(self) -> float:
        """The rate of the next step: warm-up and cosine over all steps, as in a round."""
        hp = self.hp
        return learning_rate(
            self.step,
            hp.self_supervised_steps,
            hp.self_supervised_learning_rate,
            hp.warmup_fraction,
        )

    def train(self, report: Callable[[dict[str, float]], bool], progress: Progress) -> bool:
        """Take the steps that are left.

        Args:
            report: gets `report`'s metrics after every `reporting_period` steps and after the last
                one; a False from it interrupts the training.
            progress: shows how far it is.

        Returns:
            False where `report` has interrupted it.

        Raises:
            DivergedError: the loss is not finite.
        """
        steps = range(self.step, self.hp.self_supervised_steps)
        for _ in progress(steps, "learning without labels"):
            self.train_step()
            if self.step % self.hp.reporting_period and not self.finished:
                continue
            metrics = self.report()
            if not math.isfinite(metrics["loss"]):
                raise DivergedError(
                    f"the self-supervised loss is {metrics['loss']} by step {self.step}; lower "
                    "hyperparameters.self_supervised_learning_rate: "
                    f"{self.hp.self_supervised_learning_rate}"
                )
            if not report(metrics) and not self.finished:
                return False
        return True

    def train_step(self) -> None:
        """One step of the optimizer on the next batch of images."""
        indices = self._batch()
        generator = make_generator(self._seed, "self_supervision", self.step, device=self._device)
        part = slice(self._ranks.rank, None, self._ranks.size)
        views = [self._views.batch(self._images, indices, generator, part) for _ in range(2)]
        release(self._images)
        images = (torch.cat(views) - self._mean) / self._std
        loss = self._whole_loss(images.contiguous(memory_format=torch.channels_last))
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        loss.backward()
        # Each rank has the loss of the whole batch and the gradient through its own images.
        self._ranks.add_gradients(self._trained.parameters())
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._loss += loss.detach()
        self.step += 1
        if self.finished:
            for buffer in self._network.backbone.buffers():
                self._ranks.agree(buffer)  # BatchNorm's statistics, which each rank has of its own

    def _whole_loss(self, images: Tensor) -> Tensor:
        """The loss of all ranks' images, of which these [2B, C, S, S] are this rank's."""
        enabled = self._dtype != torch.float32
        with torch.autocast(images.device.type, self._dtype, enabled=enabled):
            projected = self._projector(self._network.embed(images)).float()
        one, other = (self._ranks.gather_around(view) for view in projected.chunk(2))
        return barlow_twins_loss(one, other)

    def _batch(self) -> Tensor:
        """Dataset indices of this step, int64: the next part of a random order of all images."""
        size = self.hp.self_supervised_batch_size
        pass_, batch = divmod(self.step, len(self._images) // size)
        if self._order is None or self._order[0] != pass_:
            generator = make_generator(self._seed, "self_supervision_order", pass_)
            order = torch.randperm(len(self._images), generator=generator)
            self._order = (pass_, order.to(self._device))
        return self._order[1][batch * size : (batch + 1) * size]

    def report(self) -> dict[str, float]:
        """Step, its learning rate, and the mean loss since the last call."""
        steps = max(1, self.step - self._reported)
        loss = float(self._loss) / steps
        self._loss.zero_()
        self._reported = self.step
        rate = self._optimizer.param_groups[0]["lr"]
        return {"step": self.step, "loss": loss, "learning_rate": rate}

    @property
    def _settings(self) -> dict[str, Any]:
        return {**{name: getattr(self.hp, name) for name in SETTINGS}, "seed": self._seed}

    def save(self) -> bytes:
        """All state as a file for `load`; take a `report` before, whose sums are not in it."""
        state = {
            "settings": self._settings,
            "step": self.step,
            "trained": self._trained.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        content = io.BytesIO()
        torch.save(state, content)
        return content.getvalue()

    def load(self, content: bytes) -> None:
        """Go on where `save` was called.

        Raises:
            UserError: it was called in a run of other settings.
        """
        device = self._images.device
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location=device, weights_only=True
        )
        for name, value in self._settings.items():
            before = state["settings"][name]
            if value != before:
                raise UserError(
                    f"hyperparameters.{name}: was {before} where self-supervision began and is "
                    f"{value} now; set it back, or begin anew without what was kept"
                )
        self._trained.load_state_dict(state["trained"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = self._reported = state["step"]


def _projector(size: int, seed: int) -> nn.Module:
    """From embeddings [B, size] to what the loss compares, [B, `PROJECTION`]."""
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
        projector = nn.Sequential(
            nn.Linear(size, PROJECTION, bias=False),
            nn.BatchNorm1d(PROJECTION),
            nn.ReLU(),
            nn.Linear(PROJECTION, PROJECTION, bias=False),
        )
    generator = make_generator(seed, "projector")
    for layer in projector:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    return projector


def barlow_twins_loss(one: Tensor, other: Tensor) -> Tensor:
    """How far the correlations between two views are from the identity; a scalar.

    one, other: float32 [B, D], row i of both being of the same image. The cross-correlation matrix
    [D, D] of the batch is 1 on its diagonal where the views agree, and 0 beside it where different
    numbers say different things; the latter counts `REDUNDANCY` times.
    """
    correlation = _standardised(one).T @ _standardised(other) / len(one)
    squares = (correlation - torch.eye(len(correlation), device=one.device)).square()
    agreement = squares.diagonal().sum()
    return agreement + REDUNDANCY * (squares.sum() - agreement)


def _standardised(values: Tensor) -> Tensor:
    """Each column less its mean, over its deviation."""
    centred = values - values.mean(0)
    return centred / (centred.square().mean(0) + 1e-5).sqrt()
