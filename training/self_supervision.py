"""Pre-trains the backbone on all images of the pool, without labels.

Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): the network sees two views of every image. It
learns to make each component of its projected embedding agree between the two views, and different
components uncorrelated. It needs neither negative pairs nor a second network, so small batches and
small machines suffice.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from errors import DivergedError, UserError
from resnet_custom import SplitNetwork
from training.host_images import batches_on
from training.hyperparameters import Hyperparameters
from training.optimisation import learning_rate, make_optimizer, step_and_zero
from training.precision import float32_products, gradient_scaler
from training.ranks import ALONE, Ranks
from training.scoring import Progress
from training.seeds import make_generator
from training.views import Views

PROJECTION = 512  # width of the projector; the paper's 8192 is for batches of 1024, 300 epochs
REDUNDANCY = 1 / 128  # weight of the correlations between different components

# The hyperparameters that the steps depend on.
SETTINGS = (
    *("dataset", "image_size", "split_seed", "validation_fraction", "test_fraction", "group_by"),
    *("architecture", "pretrained", "pretrained_backbone", "flips_and_rotations"),
    *("weight_decay", "warmup_fraction", "self_supervised_steps"),
    *("self_supervised_batch_size", "self_supervised_learning_rate"),
)


class SelfSupervision:
    """Trains a copy of a network's backbone on unlabelled images for `hp.self_supervised_steps`.

    All random draws are functions of `seed` and the step, so `save` holds enough to continue
    exactly. Data-parallel ranks share each batch; the loss is that of the whole batch.

    Args:
        hyperparameters: of the trial.
        network: its backbone is copied.
        images: the pool, uint8 [N, C, S, S], on the network's device, or on the host if they do
            not fit there.
        mean, std: float32 [C], which normalise the images.
        dtype: the type that the networks compute in; the loss is float32.
        seed: the trial's.
        ranks: which data-parallel process this is.

    Raises:
        UserError: a batch is larger than the pool.
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
        # A copy, because the network may be frozen, or in a wrapper that watches its gradients.
        self._network = copy.deepcopy(network)
        self._projector = _projector(network.embedding_size, seed).to(self._device)
        self._trained = nn.ModuleList([self._network.backbone, self._projector])
        self._trained.requires_grad_(True).train()
        self._optimizer = make_optimizer(self._trained, hp.weight_decay)
        self._scaler = gradient_scaler(dtype, self._device)
        self._views = Views(hp.flips_and_rotations)
        self._feed: Iterator[Tensor] | None = None  # the images of the steps that are left
        self._loss = torch.zeros((), device=self._device)  # sum since the last `report`
        self._reported = 0

    @property
    def finished(self) -> bool:
        """Whether all steps have been taken."""
        return self.step >= self.hp.self_supervised_steps

    @property
    def backbone(self) -> dict[str, Tensor]:
        """A copy of the backbone's weights and BatchNorm statistics."""
        return {name: value.clone() for name, value in self._network.backbone.state_dict().items()}

    @property
    def learning_rate(self) -> float:
        """The rate of the next step: one warm-up and one cosine over all steps."""
        hp = self.hp
        return learning_rate(
            self.step,
            hp.self_supervised_steps,
            hp.self_supervised_learning_rate,
            hp.warmup_fraction,
        )

    def train(self, report: Callable[[dict[str, float]], bool], progress: Progress) -> bool:
        """Take the remaining steps.

        Args:
            report: receives the metrics of `self.report` every `reporting_period` steps and after
                the last step; it interrupts the training by returning False.
            progress: shows the progress.

        Returns:
            False if `report` has interrupted the training.

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
        """Take one optimizer step on the next batch of images."""
        with float32_products(self.hp.tf32):
            self._train_step()

    def _train_step(self) -> None:
        if self._feed is None:
            self._feed = batches_on(self._device, self._images, self._index_batches())
        gathered, count = next(self._feed), self.hp.self_supervised_batch_size
        generator = make_generator(self._seed, "self_supervision", self.step, device=self._device)
        part = slice(self._ranks.rank, None, self._ranks.size)
        views = [self._views.gathered(gathered, count, generator, part) for _ in range(2)]
        images = (torch.cat(views) - self._mean) / self._std
        loss = self._batch_loss(images.contiguous(memory_format=torch.channels_last))
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._scaler.scale(loss).backward()
        # Every rank has the loss of the whole batch, but only the gradient of its own images.
        self._ranks.add_gradients(self._trained.parameters())
        step_and_zero(self._optimizer, self._scaler)
        self._scaler.update()
        self._loss += loss.detach()
        self.step += 1
        if self.finished:
            for buffer in self._network.backbone.buffers():
                self._ranks.agree(buffer)  # BatchNorm statistics differ between ranks

    def _batch_loss(self, images: Tensor) -> Tensor:
        """The loss of all ranks' images; `images` [2B, C, S, S] are this rank's two views."""
        enabled = self._dtype != torch.float32
        with torch.autocast(images.device.type, self._dtype, enabled=enabled):
            projected = self._projector(self._network.embed(images)).float()
        one, other = (self._ranks.gather_with_gradient(view) for view in projected.chunk(2))
        return barlow_twins_loss(one, other)

    def _index_batches(self) -> Iterator[Tensor]:
        """This rank's dataset indices of each step that is left, int64 on the images' device.

        Every pass over the images is in a random order of its own.
        """
        size = self.hp.self_supervised_batch_size
        batches = len(self._images) // size
        order, order_of = torch.empty(0), -1
        for step in range(self.step, self.hp.self_supervised_steps):
            pass_, batch = divmod(step, batches)
            if order_of != pass_:
                generator = make_generator(self._seed, "self_supervision_order", pass_)
                order = torch.randperm(len(self._images), generator=generator)
                order, order_of = order.to(self._images.device), pass_
            whole = order[batch * size : (batch + 1) * size]
            yield whole[self._ranks.rank :: self._ranks.size]

    def report(self) -> dict[str, float]:
        """The step, its learning rate, and the mean loss since the last call."""
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
        """All state as a file for `load`, except the sums that the next `report` would return."""
        state = {
            "settings": self._settings,
            "step": self.step,
            "trained": self._trained.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        content = io.BytesIO()
        torch.save(state, content)
        return content.getvalue()

    def load(self, content: bytes) -> None:
        """Continue from the state that `save` returned.

        Raises:
            UserError: the state belongs to a run with other settings.
        """
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location=self._device, weights_only=True
        )
        for name, value in self._settings.items():
            before = state["settings"][name]
            if value != before:
                raise UserError(
                    f"hyperparameters.{name}: {value}, but self-supervision began with {before}; "
                    "set it back, or start a new run"
                )
        self._trained.load_state_dict(state["trained"])
        self._optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
        self.step = self._reported = state["step"]
        self._feed = None


def _projector(size: int, seed: int) -> nn.Module:
    """A network from embeddings [B, size] to the projections [B, PROJECTION] of the loss."""
    with torch.random.fork_rng(devices=[]):  # layers draw weights from the global generator
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
    """Squared distance between the two views' cross-correlation and the identity: a scalar.

    The cross-correlation matrix [D, D] of the batch has ones on its diagonal if the views agree,
    and zeros elsewhere if different components are uncorrelated. Entries off the diagonal count
    `REDUNDANCY` times.

    one, other: float32 [B, D]; row i of both belongs to the same image.
    """
    correlation = _standardised(one).T @ _standardised(other) / len(one)
    squares = (correlation - torch.eye(len(correlation), device=one.device)).square()
    agreement = squares.diagonal().sum()
    return agreement + REDUNDANCY * (squares.sum() - agreement)


def _standardised(values: Tensor) -> Tensor:
    """`values` with mean 0 and deviation 1 in each column."""
    centred = values - values.mean(0)
    return centred / (centred.square().mean(0) + 1e-5).sqrt()
