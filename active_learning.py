"""The active-learning loop: propose -> label -> train -> evaluate, round after round.

Plain PyTorch. `run`, at the end, is the whole algorithm, and a local run is this loop. On a cluster
Determined's Trainer owns the batches and calls the same methods of `ActiveLearner` in the same
order.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import ImageStore, channel_statistics, release
from errors import DivergedError, UserError
from query_strategies import PoolScores, get_strategy, predictive_entropy
from resnet_custom import SplitNetwork, dropout_masks
from training.augmentation import Augmentation
from training.backbone_cache import train_once
from training.backbone_file import read_backbone
from training.balance import class_weights, weighted_cross_entropy
from training.batches import round_batches
from training.calibration import fit_temperature
from training.host_images import batches_on, is_elsewhere
from training.hyperparameters import Hyperparameters
from training.inference import Inference, query_passes
from training.metrics import TrainingMeter, classification_metrics
from training.optimisation import (
    StepOptimizer,
    learning_rate,
    make_optimizer,
    shrink_and_perturb,
    step_and_zero,
)
from training.oracle import Oracle, Proposal
from training.pool import Added, Answers, Pool
from training.precision import compute_dtype, float32_products, gradient_scaler
from training.ranks import ALONE, Ranks
from training.scoring import PoolScorer, Progress
from training.seeds import make_generator
from training.self_supervision import SelfSupervision
from training.stopping import RoundResult, StopReason, reason_to_stop


@dataclass(frozen=True)
class Evaluation:
    """What a round's network is worth.

    round: the round that has ended.
    labels: how many labels the network was trained on.
    annotation_minutes: what those of the pool cost the annotators.
    val, test: `classification_metrics` of each split; `test` is empty where it has no labels.
    val_logits, test_logits: float32 [N, classes], on the device.
    temperature: divides logits to calibrate them; fitted on validation.
    """

    round: int
    labels: int
    annotation_minutes: float
    val: dict[str, float]
    test: dict[str, float]
    val_logits: Tensor
    test_logits: Tensor
    temperature: float


class ActiveLearner:
    """One trial: a network, a pool whose labelled part grows, and the steps that improve both.

    Everything random comes from `seed` and the number of the step or round. So `state`, the
    network's weights and the optimizer's state are enough to continue exactly.

    Args:
        hyperparameters: of the trial.
        train: the pool's images, on the device to train on. Its labels are never read.
        seed: the trial's.
        ranks: which data-parallel process this is; all else is the same on every one of them.
        progress: shows how far a sweep over images is.
        backbones: folder where self-supervision, once it is finished, is kept for equal trials;
            None: it is not.

    Attributes:
        pool: the state of every training image.
        query_sizes: how many labels each round asks for.
        step: optimizer steps so far, over all rounds.
        results: of all rounds that have ended.
        mean, std: float32 [C], the pool's, by which all images are normalised.
        scaler: of the loss, which float16 needs; otherwise it does nothing.
        train_network: what `train_step` calls; data parallelism puts its wrapper here.
        pretraining: the self-supervision that the first round waits for; None once it is over.

    Raises:
        UserError: `pretrained_backbone`, the budget or a batch size does not fit the data.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        train: ImageStore,
        seed: int,
        ranks: Ranks = ALONE,
        progress: Progress = lambda iterable, title: iterable,
        backbones: Path | None = None,
    ) -> None:
        hp = hyperparameters
        self.hp = hp
        self.seed = seed
        self.train_store = train
        self.pool = Pool(len(train))
        self.query_sizes = hp.query_sizes(len(train))
        self.step = 0
        self.results: list[RoundResult] = []
        self.device = train.labels.device
        self.compute_dtype = compute_dtype(hp.precision, self.device)
        self.mean, self.std = (
            statistic.to(self.device) for statistic in channel_statistics(train.images)
        )
        self.meter = TrainingMeter(self.device)
        self._ranks = ranks
        self._progress = progress
        self._backbones = backbones
        self._augmentation = Augmentation.of_trial(hp)
        self._strategy = get_strategy(hp.query_strategy, hp.prefilter_factor)
        # Without a label, one typical image of each cluster: TypiClust, Hacohen et al. 2022.
        self._first_strategy_name = "random" if hp.initial_pool == "random" else "typiclust"
        self._first_strategy = get_strategy(self._first_strategy_name, hp.prefilter_factor)
        # Batches, targets and class weights of one round; planned when its first step is due.
        self._planned_round = -1
        self._batches = torch.empty(0, dtype=torch.int64)
        self._feed: Iterator[Tensor] = iter(())  # of images that do not fit on the device
        self._targets = torch.empty(0, dtype=torch.int64)
        self._class_weights = torch.empty(0)
        # What the round's steps gather from: the pool's images, and those from outside of it.
        self._added: Added | None = None
        self._images = train.images
        # Pre-trained weights, which every fresh network starts from.
        self._backbone: dict[str, Tensor] | None = None
        # Scores of the next query and the seconds they took, where a stopping rule needed them.
        self._scores_ahead: tuple[PoolScores, float] | None = None

        self.network = self._fresh_network(0)
        if hp.pretrained_backbone != "none":
            self.start_from(read_backbone(Path(hp.pretrained_backbone), self.network))
        if hp.compile:
            # In place, so that weights keep their names. Batches are always of one size.
            self.network.compile(dynamic=False)
        self.train_network: nn.Module = self.network
        self.optimizer = make_optimizer(self.network, hp.weight_decay)
        self.scaler = gradient_scaler(self.compute_dtype, self.device)
        self._inference = Inference(
            self.network,
            self.mean,
            self.std,
            self.compute_dtype,
            hp.scoring_batch_size,
            hp.compile,
            hp.tf32,
        )
        self._scorer = PoolScorer(self.network, self._inference, ranks, progress)
        self.pretraining: SelfSupervision | None = None
        if hp.self_supervised_steps:
            self.pretraining = SelfSupervision(
                hp,
                self._fresh_network(0, hp.self_supervised_seed),
                train.images,
                self.mean,
                self.std,
                self.compute_dtype,
                ranks,
            )

    @property
    def round(self) -> int:
        """The round that the next step belongs to, from 0."""
        return self.step // self.hp.batches_per_round

    @property
    def labels_due(self) -> bool:
        """Whether the round's labels have still to be proposed or answered."""
        return self.pool.rounds <= self.round

    @property
    def finished(self) -> bool:
        """Whether rounds, budget or pool are used up, or a stopping rule holds."""
        return self.round >= len(self.query_sizes) or self.stop_reason is not None

    @property
    def stop_reason(self) -> StopReason | None:
        """Why no further round begins; None where one does, or where the last has yet to end."""
        pool, rounds = self.pool, len(self.results)
        exhausted = pool.rounds == rounds and not len(pool.unlabelled) and not len(pool.asked)
        return reason_to_stop(self.hp, self.query_sizes, self.results, exhausted)

    @property
    def annotation_minutes(self) -> float:
        """Annotators' time for all labels of the pool so far."""
        return self.pool.minutes(self.hp.seconds_per_label)

    # --- learn without labels --------------------------------------------------------------

    def pretrain(
        self,
        report: Callable[[dict[str, float]], bool] = lambda metrics: True,
        go_on: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Finish self-supervision, and start from its backbone.

        Args:
            report: receives the metrics of every `reporting_period`-th step and of the last one; it
                interrupts the pre-training by returning False.
            go_on: asked now and then while another process trains the same backbone; it interrupts
                the wait by returning False.

        Returns:
            False if `report` or `go_on` has interrupted it.
        """
        work = self.pretraining
        if work is None:
            return True
        if self._backbones is None:
            finished = work.train(report, self._progress)
        else:
            finished = train_once(work, self._backbones, self._ranks, report, go_on, self._progress)
        if finished:
            self.start_from(work.backbone)
        return finished

    def start_from(self, backbone: Mapping[str, Tensor]) -> None:
        """Give this backbone to the network, and to all fresh ones; pre-training is over then."""
        self._backbone = {name: value.to(self.device) for name, value in backbone.items()}
        self.network.backbone.load_state_dict(self._backbone)
        self.pretraining = None

    # --- propose and accept ----------------------------------------------------------------

    def propose(self) -> Proposal:
        """Choose the images that this round asks to have labelled.

        Where an oracle has skipped images, a further proposal replaces them.

        Raises:
            ValueError: an earlier proposal still waits for answers.
        """
        if len(self.pool.asked):
            raise ValueError(f"{len(self.pool.asked)} images wait for an answer; accept it first")
        started = time.perf_counter()
        round_ = self.round
        scores, seconds_ahead = self._scores_ahead or (self._score(round_), 0.0)
        self._scores_ahead = None
        missing = self.query_sizes[round_] - self.pool.labels_of(round_)
        # The first round has no network that has seen a label.
        strategy = self._strategy if round_ > 0 else self._first_strategy
        asked_before = len(self.pool.query_of(round_))
        numbers = (round_, asked_before) if asked_before else (round_,)
        generator = make_generator(self.seed, "query", *numbers, device=scores.candidates.device)
        chosen = strategy.select(scores, missing, generator)
        indices = self._ranks.agree(chosen.to(self.device)).cpu()

        uncertainty = mean = None
        if scores.probabilities is not None:
            entropy = predictive_entropy(scores.probabilities)
            positions = torch.searchsorted(scores.candidates, indices.to(self.device))
            uncertainty, mean = entropy[positions].cpu(), float(entropy.mean())
        self.pool.ask(indices, round_, uncertainty)
        return Proposal(
            round=round_,
            strategy=self.hp.query_strategy if round_ > 0 else self._first_strategy_name,
            indices=indices,
            uncertainty=uncertainty,
            candidates_uncertainty=mean,
            seconds=time.perf_counter() - started + seconds_ahead,
        )

    @property
    def open_proposal(self) -> Proposal | None:
        """The proposal that waits for answers, rebuilt from the pool; None if none does."""
        indices = self.pool.asked
        if not len(indices):
            return None
        uncertainty = self.pool.uncertainty[indices]
        return Proposal(
            round=self.round,
            strategy=self.hp.query_strategy if self.round > 0 else self._first_strategy_name,
            indices=indices,
            uncertainty=None if bool(uncertainty.isnan().any()) else uncertainty,
            candidates_uncertainty=None,
            seconds=0.0,
        )

    def accept(self, answers: Answers) -> None:
        """Take the oracle's answers, and its corrections of earlier ones, into the pool.

        The round's labels are complete when as many have come as the round asks for, or when no
        image is left to ask for.

        Raises:
            ValueError: an answer names an image that was not asked for.
            UserError: every image of the pool was skipped, so that nothing can be trained on.
        """
        round_ = self.round
        self.pool.answer(answers)
        self.pool.correct(answers.corrections)
        self.train_also_on(answers.added)
        if len(self.pool.asked):
            return
        complete = self.pool.labels_of(round_) >= self.query_sizes[round_]
        if complete or not len(self.pool.unlabelled):
            if not len(self.pool.labelled):
                raise UserError(
                    f"round {round_}: all {len(self.pool.skipped)} images were skipped, so there "
                    "is nothing to train on; label some of them, or check the class list"
                )
            self.pool.rounds = round_ + 1

    def train_also_on(self, added: Added | None) -> None:
        """Train the round on these images from outside of the pool, too."""
        self._added = added

    @property
    def corrected_uploads(self) -> int:
        """How many images from outside of the pool the round trains on."""
        return 0 if self._added is None else len(self._added.labels)

    def _candidates(self, round_: int) -> Tensor:
        """Dataset indices to choose among, ascending: all unlabelled, or a random part of them."""
        unlabelled = self.pool.unlabelled
        limit = self.hp.candidate_pool_size if round_ > 0 else 0
        if 0 < limit < len(unlabelled):
            generator = make_generator(self.seed, "candidates", round_)
            positions = torch.randperm(len(unlabelled), generator=generator)[:limit]
            unlabelled = unlabelled[positions].sort().values
        return unlabelled.to(self.device)

    def _score(self, round_: int) -> PoolScores:
        """What the strategy and the stopping rules read about the round's candidates, no more."""
        candidates, images = self._candidates(round_), self.train_store.images
        title = f"scoring for round {round_}"
        if round_ == 0:
            if self.hp.initial_pool == "pixels":
                # Where they lie, which may be the host; the strategy takes a block at a time.
                pixels, candidates = images.flatten(1), candidates.to(images.device)
                if len(candidates) < len(pixels):
                    pixels = pixels[candidates]
                return PoolScores(candidates, None, pixels, None)
            embeddings = None
            if self.hp.initial_pool == "network_embeddings":
                embeddings = self._scorer.embeddings(images, candidates, title)
            return PoolScores(candidates, None, embeddings, None)
        strategy = self._strategy
        if not (
            strategy.probabilities or strategy.embeddings or self.hp.stop_below_uncertainty > 0
        ):
            return PoolScores(candidates, None, None, None)
        passes = query_passes(self.hp, self.network, self.seed, round_)
        labelled = self.pool.labelled.to(self.device)
        scores = self._scorer.score(images, candidates, labelled, strategy, passes, title)
        temperature = self.results[-1].temperature if self.results else 1.0
        return replace(scores, temperature=temperature)

    # --- train -----------------------------------------------------------------------------

    def train(self, after_step: Callable[[], None] = lambda: None) -> None:
        """Take the steps that are left of this round."""
        round_ = self.round
        while self.round == round_:
            self.train_step()
            after_step()

    def train_step(
        self,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
        step_optimizer: StepOptimizer = step_and_zero,
    ) -> None:
        """Take one optimizer step on this round's next batch of labelled images.

        `backward` and `step_optimizer` let a trainer put its own in place of PyTorch's. In float16
        the scaler skips a step whose gradients are not finite; it counts as taken all the same.
        """
        with float32_products(self.hp.tf32):
            self._train_step(backward, step_optimizer)

    def _train_step(
        self, backward: Callable[[Tensor], None], step_optimizer: StepOptimizer
    ) -> None:
        hp = self.hp
        round_, batch = divmod(self.step, hp.batches_per_round)
        if batch == 0 and round_ > 0:
            self._carry_weights_over(round_)
        if self._planned_round != round_:
            self._plan_round(round_)
        indices = self._batches[batch]
        part = slice(self._ranks.rank, None, self._ranks.size)
        generator = make_generator(self.seed, "train", self.step, device=self.device)
        images = self._augmented(indices, generator, part)
        masks = None
        if hp.dropout:
            size = self.network.embedding_size
            masks = dropout_masks(len(indices), size, hp.dropout, generator)[part]
        with self._autocast():
            images = (images - self.mean[:, None, None]) / self.std[:, None, None]
            logits = self.train_network(images, masks).float()
        all_targets = self._targets[indices]
        targets = all_targets[part]
        loss = self._loss(logits, targets, all_targets)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        backward(self.scaler.scale(loss))
        step_optimizer(self.optimizer, self.scaler)
        self.scaler.update()
        self.meter.update(loss, logits, targets)
        self.step += 1

    def _loss(self, logits: Tensor, targets: Tensor, all_targets: Tensor) -> Tensor:
        """Mean loss of this rank's part of the batch; all_targets: those of all ranks."""
        smoothing = self.hp.label_smoothing
        if self.hp.class_weighted_loss:
            weights, ranks = self._class_weights, self._ranks.size
            return weighted_cross_entropy(logits, targets, weights, all_targets, ranks, smoothing)
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step. It starts anew each round, because the data have changed."""
        hp = self.hp
        return learning_rate(
            self.step % hp.batches_per_round,
            hp.batches_per_round,
            hp.learning_rate,
            hp.warmup_fraction,
        )

    def check_training_loss(self, loss: float) -> None:
        """Raise DivergedError where the mean training `loss` is not finite."""
        if not math.isfinite(loss):
            raise DivergedError(
                f"the training loss is {loss} in round {self.pool.rounds - 1}, by step "
                f"{self.step}; lower hyperparameters.learning_rate: {self.hp.learning_rate}"
            )

    def _carry_weights_over(self, round_: int) -> None:
        """Keep of the last round's weights what `between_rounds` says."""
        if self.hp.between_rounds == "keep":
            return
        fresh = self._fresh_network(round_)
        if self.hp.between_rounds == "reset":
            self.network.load_state_dict(fresh.state_dict())
        else:
            shrink_and_perturb(self.network, fresh, self.hp.shrink_factor, self.hp.perturb_scale)
        self.optimizer.state.clear()  # its moments belong to weights that are gone

    def _augmented(self, indices: Tensor, generator: torch.Generator, part: slice) -> Tensor:
        """This rank's images of the step, augmented: float32 [b, C, S, S] on the device."""
        if is_elsewhere(self.train_store.images, self.device):
            return self._augmentation.gathered(next(self._feed), len(indices), generator, part)
        images = self._augmentation.batch(self._images, indices, generator, part)
        release(self.train_store.images)
        return images

    def _plan_round(self, round_: int) -> None:
        labelled = self.pool.labelled
        labels = self.pool.labels[labelled]
        self._images, targets = self.train_store.images, self.pool.labels
        if self._added is not None:
            # After the pool's, as images N, N + 1 and so on of N.
            count, added = len(self.pool), self._added
            self._images = torch.cat([self._images, added.images.to(self._images.device)])
            targets = torch.cat([targets, added.labels])
            labelled = torch.cat([labelled, torch.arange(count, len(targets))])
            labels = targets[labelled]
        batches = round_batches(self.hp, labelled, labels, self.seed, round_)
        self._batches = batches.to(self.device)
        if is_elsewhere(self.train_store.images, self.device):
            left = batches[self.step % self.hp.batches_per_round :]
            mine = left[:, self._ranks.rank :: self._ranks.size]
            self._feed = batches_on(self.device, self._images, mine)
        self._targets = targets.to(self.device)
        self._class_weights = class_weights(labels, self.train_store.num_classes).to(self.device)
        self._planned_round = round_

    # --- evaluate --------------------------------------------------------------------------

    def evaluate(self, val: ImageStore, test: ImageStore) -> Evaluation:
        """Measure the network at the end of a round, and note the result for the stopping rules.

        Validation decides which round is best and when to stop. The test split is only reported.

        Raises:
            DivergedError: the validation loss is not finite.
        """
        round_ = self.pool.rounds - 1
        test_logits, val_logits = self.predict(test), self.predict(val)
        val_metrics = _metrics_of_labelled(val_logits, val.labels)
        if not math.isfinite(val_metrics["loss"]):
            raise DivergedError(
                f"the validation loss is {val_metrics['loss']} after round {round_}; lower "
                f"hyperparameters.learning_rate: {self.hp.learning_rate}"
            )
        known = val.labels >= 0
        temperature = fit_temperature(val_logits[known], val.labels[known])
        self._end_round(round_, val_metrics, temperature)
        return Evaluation(
            round=round_,
            labels=len(self.pool.labelled) + self.corrected_uploads,
            annotation_minutes=self.annotation_minutes,
            val=val_metrics,
            test=_metrics_of_labelled(test_logits, test.labels),
            val_logits=val_logits,
            test_logits=test_logits,
            temperature=temperature,
        )

    def predict(self, store: ImageStore) -> Tensor:
        """Logits float32 [N, C] of the network as it is, for a store on the device."""
        return self._scorer.logits(store, "evaluating")

    def probabilities_of(self, indices: Tensor) -> Tensor:
        """Class probabilities of pool images by the network as it is: float32 [k, C], on the CPU.

        All ranks compute them together. indices: int64 [k], dataset indices.
        """
        return self.predict(self.train_store.subset(indices)).softmax(1).cpu()

    @contextlib.contextmanager
    def inspected(self) -> Iterator[Inference]:
        """The network in eval mode, for one rank to look at: no state of the trial changes."""
        self._inference.refresh()
        self.network.eval()
        try:
            yield self._inference
        finally:
            self.network.train()

    def _end_round(self, round_: int, val: Mapping[str, float], temperature: float = 1.0) -> None:
        # All ranks have to stop together, so they must not differ in the last digit.
        loss, accuracy, temperature = self._agreed(val["loss"], val["accuracy"], temperature)
        # A round that is evaluated again, after an interruption, replaces its own result.
        result = RoundResult(loss, accuracy, None, temperature, self.annotation_minutes)
        self.results[round_:] = [result]
        if self.hp.stop_below_uncertainty and round_ + 1 < len(self.query_sizes):
            started = time.perf_counter()
            scores = self._score(round_ + 1)
            assert scores.probabilities is not None
            mean = float(predictive_entropy(scores.probabilities).mean())
            self._scores_ahead = (scores, time.perf_counter() - started)
            (mean,) = self._agreed(mean)
            self.results[round_] = replace(result, pool_uncertainty=mean)

    def _agreed(self, *values: float) -> list[float]:
        """The first rank's values, on all ranks."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self._ranks.agree(tensor).tolist()

    # --- state -----------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All state but the network's weights and the optimizer's: tensors, and plain values.

        A pre-trained backbone is part of it where later rounds start from it.
        """
        tensors = {f"pool.{name}": value for name, value in self.pool.tensors().items()}
        if self._backbone is not None and self.hp.between_rounds != "keep":
            tensors |= {f"backbone.{name}": value for name, value in self._backbone.items()}
        values = {
            "step": self.step,
            "results": [list(astuple(result)) for result in self.results],
            "pool": self.pool.values(),
            "scaler": self.scaler.state_dict(),
        }
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; weights and optimizer are restored elsewhere.

        Raises:
            ValueError: the state belongs to a pool of another size.
        """
        self.pool.load(_with_prefix(tensors, "pool."), values["pool"])
        self.step = int(values["step"])
        self.results = [RoundResult(*result) for result in values["results"]]
        self._planned_round = -1
        if values.get("scaler"):  # empty where the run did not compute in float16
            self.scaler.load_state_dict(values["scaler"])
        backbone = _with_prefix(tensors, "backbone.")
        if backbone:
            self._backbone = {name: value.to(self.device) for name, value in backbone.items()}
        self.pretraining = None  # every such state was taken after it
        self._scores_ahead = None

    def _fresh_network(self, round_: int, seed: int | None = None) -> SplitNetwork:
        generator = make_generator(self.seed if seed is None else seed, "weights", round_)
        network = SplitNetwork(
            self.hp.architecture,
            self.train_store.num_classes,
            self.train_store.channels,
            generator,
            self.hp.pretrained,
            self.hp.freeze_backbone,
            self.hp.averages_rotations,
        )
        if self._backbone is not None:
            network.backbone.load_state_dict(self._backbone)
        return network.to(self.device).to(memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        enabled = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, self.compute_dtype, enabled=enabled)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _metrics_of_labelled(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """`classification_metrics` of the images that have a label; empty where none has."""
    known = labels >= 0
    return classification_metrics(logits[known], labels[known]) if bool(known.any()) else {}


# --- the algorithm ---------------------------------------------------------------------------


class Observer:
    """What a runtime does between the loop's steps; this one does nothing."""

    def pretrained(self, metrics: dict[str, float]) -> bool:
        """Self-supervision has taken a few more steps; False interrupts it."""
        return True

    def proposed(self, proposal: Proposal) -> None:
        """Images were chosen; the oracle is asked next."""

    def labelled(self, proposal: Proposal) -> None:
        """The answers are in the pool."""

    def stepped(self) -> None:
        """One optimizer step was taken."""


def run(
    learner: ActiveLearner,
    oracle: Oracle,
    val: ImageStore,
    test: ImageStore,
    observer: Observer | None = None,
) -> Iterator[Evaluation]:
    """Run `learner`, and yield the evaluation of each round.

    It ends when `learner.finished`, or earlier where it has to wait: for the oracle's answers, or
    because `observer` has interrupted the pre-training.
    """
    observer = observer or Observer()
    if not learner.pretrain(observer.pretrained):
        return
    while not learner.finished:
        if not label_round(learner, oracle, observer):
            return
        learner.train(observer.stepped)
        yield learner.evaluate(val, test)


def label_round(learner: ActiveLearner, oracle: Oracle, observer: Observer | None = None) -> bool:
    """Propose and accept until the round has its labels; False where answers have yet to come."""
    observer = observer or Observer()
    while learner.labels_due:
        proposal = learner.open_proposal
        if proposal is None:
            proposal = learner.propose()
            observer.proposed(proposal)
        answers = oracle.answer(proposal)
        if answers is None:
            return False
        learner.accept(answers)
        observer.labelled(proposal)
    return True
