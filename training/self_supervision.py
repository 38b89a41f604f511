"""Pre-trains the backbone on all images of the pool, without labels.

SimCLR (Chen et al. 2020, arXiv 2002.05709): the network sees two views of every image of a batch.
It learns to tell, by their projected embeddings, which two views belong to one image.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import release
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

HIDDEN = 512  # width of the projector's hidden layer
PROJECTION = 128  # components of a projection, as in the paper
TEMPERATURE = 0.2  # of the similarities in the loss
METHOD = "SimCLR 1"  # its number rises with every change of code that changes the result

# The hyperparameters that the steps depend on, beside the images and the initial weights.
STEPPED = (
    *("flips_and_rotations", "weight_decay", "warmup_fraction", "self_supervised_seed"),
    *("self_supervised_steps", "self_supervised_batch_size", "self_supervised_learning_rate"),
)
# Those that choose the images and the initial weights.
STARTED = (
    *("dataset", "image_size", "split_seed", "validation_fraction", "test_fraction", "group_by"),
    *("architecture", "pretrained", "pretrained_backbone"),
)
DIGEST_ROWS = 1024  # images that are copied to the host at a time
DIGEST_LENGTH = 16  # hexadecimal digits


class SelfSupervision:
    """Trains a copy of a network's backbone on unlabelled images for `hp.self_supervised_steps`.

    All random draws are functions of `hp.self_supervised_seed` and the step, so `save` holds enough
    to continue exactly. Data-parallel ranks share each batch; the loss is that of the whole batch.

    Args:
        hyperparameters: of the trial.
        network: its backbone is copied, with the weights to begin with.
        images: the pool, uint8 [N, C, S, S], on the network's device, or on the host if they do
            not fit there.
        mean, std: float32 [C], which normalise the images.
        dtype: the type that the networks compute in; the loss is float32.
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
        self.device = mean.device
        self._seed = hp.self_supervised_seed
        self._ranks = ranks
        # A copy, because the network may be frozen, or in a wrapper that watches its gradients.
        self._network = copy.deepcopy(network)
        self._begin = hashlib.sha256()  # of the weights that it begins with
        for name, value in network.backbone.state_dict().items():
            self._begin.update(name.encode())
            self._begin.update(value.cpu().contiguous().numpy().data)
        self._projector = _projector(network.embedding_size, self._seed).to(self.device)
        self._trained = nn.ModuleList([self._network.backbone, self._projector])
        self._trained.requires_grad_(True).train()
        self._optimizer = make_optimizer(self._trained, hp.weight_decay)
        self._scaler = gradient_scaler(dtype, self.device)
        self._views = Views(hp.flips_and_rotations)
        self._feed: Iterator[Tensor] | None = None  # the images of the steps that are left
        self._loss = torch.zeros((), device=self.device)  # sum since the last `report`
        self._reported = 0
        self._last_loss = math.nan

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
            self._feed = batches_on(self.device, self._images, self._index_batches())
        gathered, count = next(self._feed), self.hp.self_supervised_batch_size
        generator = make_generator(self._seed, "self_supervision", self.step, device=self.device)
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
        return contrastive_loss(one, other)

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
        loss = self._last_loss = float(self._loss) / steps
        self._loss.zero_()
        self._reported = self.step
        rate = self._optimizer.param_groups[0]["lr"]
        return {"step": self.step, "loss": loss, "learning_rate": rate}

    @property
    def network(self) -> SplitNetwork:
        """The copy whose backbone is trained."""
        return self._network

    @property
    def last_loss(self) -> float:
        """The loss of the last report; NaN before the first."""
        return self._last_loss

    def digest(self) -> str:
        """Hexadecimal digest of all that the finished backbone depends on.

        That is the images, the weights before the first step, the settings of the steps, the number
        type, the number of ranks (BatchNorm normalises over the images of one rank) and `METHOD`.
        """
        settings = {name: getattr(self.hp, name) for name in STEPPED}
        computing = [str(self._dtype), self.hp.tf32, self._ranks.size]
        facts = [METHOD, settings, computing, list(self._images.shape)]
        digest = self._begin.copy()
        digest.update(json.dumps(facts).encode())
        for part in self._images.split(DIGEST_ROWS):
            digest.update(part.cpu().contiguous().numpy().data)
            release(self._images)
        return digest.hexdigest()[:DIGEST_LENGTH]

    def finish_with(self, backbone: Mapping[str, Tensor], loss: float) -> None:
        """Take the finished backbone of an equal self-supervision, and the last loss it had."""
        self._network.backbone.load_state_dict(backbone)
        self.step = self._reported = self.hp.self_supervised_steps - 1
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.step += 1
        self._loss.fill_(loss)

    @property
    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self.hp, name) for name in (*STARTED, *STEPPED)}

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
            io.BytesIO(content), map_location=self.device, weights_only=True
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
            nn.Linear(size, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, PROJECTION, bias=False),
            nn.BatchNorm1d(PROJECTION, affine=False),
        )
    generator = make_generator(seed, "projector")
    for layer in projector:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    return projector


def contrastive_loss(one: Tensor, other: Tensor) -> Tensor:
    """SimCLR's loss, NT-Xent: a scalar.

    For each view it is the cross-entropy of finding the other view of its image among all views of
    the batch, by cosine similarity divided by `TEMPERATURE`.

    one, other: float32 [B, D]; row i of both belongs to the same image.
    """
    views = F.normalize(torch.cat([one, other]), dim=1)
    similarity = views @ views.T / TEMPERATURE
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    partners = torch.arange(len(views), device=views.device).roll(len(one))
    return F.cross_entropy(similarity.masked_fill(itself, -torch.inf), partners)
