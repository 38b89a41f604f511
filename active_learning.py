"""The active-learning loop: query -> label -> train -> evaluate, round after round.

Plain PyTorch. `run`, at the end, is the whole algorithm; Determined's trainer (model_def.py) calls
the same methods of `ActiveLearner` - `query`, `train_step`, `evaluate`, `end_round` - in the same
order.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import ImageStore, channel_statistics, release
from query_strategies import PoolScores, get_strategy, predictive_entropy
from resnet_custom import SplitNetwork, dropout_masks
from training.augmentation import Augmentation
from training.backbone_file import read_backbone
from training.balance import balanced_order, class_weights, weighted_cross_entropy
from training.hyperparameters import Hyperparameters
from training.inference import Inference, query_passes
from training.label_noise import noisy_labels
from training.metrics import TrainingMeter, classification_metrics
from training.optimisation import learning_rate, make_optimizer, shrink_and_perturb
from training.precision import compute_dtype
from training.ranks import ALONE, Ranks
from training.seeds import make_generator
from training.self_supervision import SelfSupervision
from training.stopping import RoundResult, StopReason, reason_to_stop

UNLABELLED = -1
Bar = Callable[[Iterable[Any], str], Iterable[Any]]


class LabeledPool:
    """Which training images are labelled, since which round, and with what label.

    Two int64 tensors of one entry per training image are the whole state of active learning:
    `acquired_round` (-1: unlabelled) and `labels` (-1: unlabelled). Indices are always dataset
    indices, positions in those tensors.
    """

    def __init__(self, size: int) -> None:
        self.acquired_round = torch.full((size,), UNLABELLED)
        self.labels = torch.full((size,), UNLABELLED)

    def add(self, indices: Tensor, labels: Tensor, round_: int) -> None:
        """Record that `indices` (int64 [k]) were given `labels` (int64 [k]) in `round_`.

        Raises:
            ValueError: an index twice, out of range or labelled already.
        """
        if len(indices) != len(labels):
            raise ValueError(f"{len(indices)} indices came with {len(labels)} labels")
        if len(indices.unique()) != len(indices):
            raise ValueError(f"round {round_} labels an image twice")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.labels):
            raise ValueError(f"round {round_} labels an image outside the pool")
        if (self.acquired_round[indices] != UNLABELLED).any():
            raise ValueError(f"round {round_} labels an image that has a label")
        self.acquired_round[indices] = round_
        self.labels[indices] = labels

    @property
    def labelled(self) -> Tensor:
        """Dataset indices of labelled images, ascending: int64 [m]."""
        return (self.acquired_round != UNLABELLED).nonzero().squeeze(1)

    @property
    def unlabelled(self) -> Tensor:
        """Dataset indices of unlabelled images, ascending: int64 [N - m]."""
        return (self.acquired_round == UNLABELLED).nonzero().squeeze(1)

    @property
    def rounds(self) -> int:
        """How many rounds have been queried so far."""
        return int(self.acquired_round.max()) + 1

    def state_dict(self) -> dict[str, Tensor]:
        """Both tensors, copied."""
        return {"acquired_round": self.acquired_round.clone(), "labels": self.labels.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is of a pool of another size.
        """
        if state["labels"].shape != self.labels.shape:
            raise ValueError(
                f"the checkpoint's pool has {len(state['labels'])} images, this one "
                f"{len(self.labels)}; resume on the same data set"
            )
        self.acquired_round = state["acquired_round"].clone()
        self.labels = state["labels"].clone()


class SimulatedOracle:
    """Stands in for the annotator: the only one who sees hidden labels.

    Args:
        labels: the true ones, int64 [N].
        answers: what it says of each image, right or wrong, int64 [N]; None: the truth.
    """

    def __init__(self, labels: Tensor, answers: Tensor | None = None) -> None:
        self._labels = labels.cpu()
        self._answers = self._labels if answers is None else answers.cpu()

    @classmethod
    def of_trial(cls, hp: Hyperparameters, train: ImageStore, seed: int) -> SimulatedOracle:
        """The annotator of a trial, as often wrong as its hyperparameters say."""
        answers = None
        if hp.label_noise:
            answers = noisy_labels(train, hp.label_noise, hp.label_noise_kind, seed)
        return cls(train.labels, answers)

    def __call__(self, indices: Tensor) -> Tensor:
        """Labels int64 [k], as given, of the images at dataset `indices`; always the same."""
        return self._answers[indices]

    def truth(self, indices: Tensor) -> Tensor:
        """The true labels, int64 [k], for reports only: nothing may be trained or chosen by it."""
        return self._labels[indices]


@dataclass(frozen=True)
class Query:
    """What one round asked the oracle, and what came of it."""

    round: int
    indices: Tensor  # int64 [k], dataset indices, as the strategy ordered them
    labels: Tensor  # int64 [k], the oracle's answers
    true_labels: Tensor  # int64 [k]; other than the answers where the oracle was wrong
    uncertainty: Tensor | None  # float32 [k], predictive entropy in nats; None: nothing was scored
    candidates_uncertainty: float | None  # mean over all candidates, nats
    seconds: float
    wrong_labels: int  # among all labels given so far, this query's included
    annotation_minutes: float  # the annotator's, for all of them

    def metrics(self, labelled: Tensor, class_names: tuple[str, ...]) -> dict[str, float]:
        """Numbers for the report; `labelled` holds all labels given so far, int64 [m].

        `class_imbalance` is the largest class among them over the smallest, counting an absent
        class as one image.
        """
        totals = torch.bincount(labelled, minlength=len(class_names))
        metrics: dict[str, float] = {
            "round": self.round,
            "query_size": len(self.indices),
            "labeled_samples": len(labelled),
            "wrong_labels": self.wrong_labels,
            "annotation_minutes": self.annotation_minutes,
            "query_seconds": self.seconds,
            "class_imbalance": float(totals.max() / totals.min().clamp(min=1)),
        }
        if self.uncertainty is not None and self.candidates_uncertainty is not None:
            metrics["uncertainty_queried"] = float(self.uncertainty.mean())
            metrics["uncertainty_candidates"] = self.candidates_uncertainty
        queried = torch.bincount(self.labels, minlength=len(class_names))
        for name, count in zip(class_names, queried.tolist(), strict=True):
            metrics[f"queried_{name}"] = count
        return metrics


class ActiveLearner:
    """One trial: a network, a pool that grows, and the steps that make both better.

    Everything random comes from `seed` and the number of the step or round, so that `state_dict`,
    the weights and the optimizer's state are enough to go on exactly.

    Args:
        hyperparameters: of the trial.
        train: the pool's images, on the device to train on. Its labels are not looked at.
        oracle: gives labels for dataset indices.
        seed: the trial's.
        ranks: which data-parallel process this is; all else is the same on every one of them.
        progress: wraps an iterable of scoring batches in a progress bar with a title.

    `mean` and `std`, float32 [C], are the pool's, by which all images are normalised.
    `pretraining` is the self-supervision that the first round waits for, or None: `pretrain` sees
    to it, or whoever takes its steps and then calls `adopt_pretraining`.

    Raises:
        UserError: `pretrained_backbone` or a batch size that does not fit.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        train: ImageStore,
        oracle: SimulatedOracle,
        seed: int,
        ranks: Ranks = ALONE,
        progress: Bar = lambda iterable, title: iterable,
    ) -> None:
        hp = hyperparameters
        self.hp = hp
        self.pool = LabeledPool(len(train))
        self.query_sizes = hp.query_sizes(len(train))
        self.step = 0  # optimizer steps so far, over all rounds
        self.results: list[RoundResult] = []  # of all rounds that have ended
        self.device = train.labels.device
        self.meter = TrainingMeter(self.device)
        self._train = train
        self._oracle = oracle
        self._seed = seed
        self._ranks = ranks
        self._progress = progress
        self._strategy = get_strategy(hp.query_strategy, hp.prefilter_factor)
        # Without a label, one typical image of each cluster: TypiClust, Hacohen et al. 2022.
        first = "random" if hp.initial_pool == "random" else "typiclust"
        self._initial_strategy = get_strategy(first, hp.prefilter_factor)
        self._augmentation = Augmentation.of_trial(hp)
        statistics = channel_statistics(train.images)
        self.mean, self.std = (value.to(self.device) for value in statistics)
        self.compute_dtype = compute_dtype(hp.precision, self.device)
        self._planned_round = -1  # the round that `_batches` and `_targets` are for
        self._backbone: dict[str, Tensor] | None = None  # pre-trained, for every fresh network
        # Scores of the next query, and the seconds they took, where a rule had to see them first.
        self._ahead: tuple[PoolScores, float] | None = None

        self.network = self._fresh_network(0)
        if hp.pretrained_backbone != "none":
            self.start_from(read_backbone(Path(hp.pretrained_backbone), self.network))
        if hp.compile:
            # In place, so that weights keep their names. Batches are always of one size.
            self.network.compile(dynamic=False)
        self.train_network: nn.Module = self.network  # data parallelism puts its wrapper here
        self.optimizer = make_optimizer(self.network, hp.weight_decay)
        # The network, for images that are not trained on.
        self._inference = Inference(
            self.network,
            self.mean,
            self.std,
            self.compute_dtype,
            hp.scoring_batch_size,
            hp.compile,
        )
        self.pretraining: SelfSupervision | None = None
        if hp.self_supervised_steps:
            self.pretraining = SelfSupervision(
                hp,
                self.network,
                train.images,
                self.mean,
                self.std,
                self.compute_dtype,
                seed,
                ranks,
            )

    @property
    def round(self) -> int:
        """The round that the next step belongs to, from 0."""
        return self.step // self.hp.batches_per_round

    @property
    def query_due(self) -> bool:
        """Whether the round's images have still to be chosen."""
        return self.pool.rounds <= self.round

    @property
    def finished(self) -> bool:
        """Whether rounds or budget are used up, or another rule has ended the run."""
        return self.round >= len(self.query_sizes) or self.stop_reason is not None

    @property
    def stop_reason(self) -> StopReason | None:
        """Why no further round begins; None where one does, or where the last has yet to end."""
        return reason_to_stop(self.hp, self.query_sizes, self.results)

    @property
    def annotation_minutes(self) -> float:
        """The annotator's time for all labels of the pool so far; validation labels not counted."""
        return len(self.pool.labelled) * self.hp.seconds_per_label / 60

    # --- learn without labels --------------------------------------------------------------

    def pretrain(self) -> None:
        """Take all steps of self-supervision that are left, if any, and start from its backbone."""
        if self.pretraining is not None:
            left = range(self.pretraining.step, self.hp.self_supervised_steps)
            for _ in self._progress(left, "learning without labels"):
                self.pretraining.train_step()
            self.adopt_pretraining()

    def adopt_pretraining(self) -> None:
        """Start from the backbone that self-supervision has trained, and be done with it."""
        assert self.pretraining is not None
        self.start_from(self.pretraining.backbone)

    def start_from(self, backbone: Mapping[str, Tensor]) -> None:
        """Give this backbone to the network, and to those that take its place between rounds."""
        self._backbone = {name: value.to(self.device) for name, value in backbone.items()}
        self.network.backbone.load_state_dict(self._backbone)
        self.pretraining = None

    # --- query and label -------------------------------------------------------------------

    def query(self) -> Query:
        """Choose this round's images, have them labelled, and ready the network to learn them."""
        started = time.perf_counter()
        round_ = self.round
        scores, spent = self._ahead or (self._score(round_), 0.0)
        self._ahead = None
        generator = self._generator("query", round_)
        # The first round has no network that knows a label.
        strategy = self._strategy if round_ > 0 else self._initial_strategy
        chosen = strategy.select(scores, self.query_sizes[round_], generator)
        indices = self._ranks.agree(chosen).cpu()
        labels = self._oracle(indices)
        self.pool.add(indices, labels, round_)
        if round_ > 0:
            self._carry_weights_over(round_)

        uncertainty = mean = None
        if scores.probabilities is not None:
            entropy = predictive_entropy(scores.probabilities)
            positions = torch.searchsorted(scores.candidates, indices.to(self.device))
            uncertainty, mean = entropy[positions].cpu(), float(entropy.mean())
        seconds = time.perf_counter() - started + spent
        labelled = self.pool.labelled
        wrong = self.pool.labels[labelled] != self._oracle.truth(labelled)
        return Query(
            round=round_,
            indices=indices,
            labels=labels,
            true_labels=self._oracle.truth(indices),
            uncertainty=uncertainty,
            candidates_uncertainty=mean,
            seconds=seconds,
            wrong_labels=int(wrong.sum()),
            annotation_minutes=self.annotation_minutes,
        )

    def _candidates(self, round_: int) -> Tensor:
        """Dataset indices to choose among, ascending: all unlabelled, or a random part of them."""
        unlabelled = self.pool.unlabelled
        limit = self.hp.candidate_pool_size if round_ > 0 else 0
        if 0 < limit < len(unlabelled):
            generator = make_generator(self._seed, "candidates", round_)
            positions = torch.randperm(len(unlabelled), generator=generator)[:limit]
            unlabelled = unlabelled[positions].sort().values
        return unlabelled.to(self.device)

    @torch.inference_mode()
    def _score(self, round_: int) -> PoolScores:
        """One sweep over the candidates: what strategy and stopping rules ask for, no more."""
        candidates = self._candidates(round_)
        strategy = self._strategy
        if round_ == 0:
            return PoolScores(candidates, None, self._first_embeddings(candidates), None)
        asked = strategy.probabilities or strategy.embeddings or self.hp.stop_below_uncertainty
        if not asked:
            return PoolScores(candidates, None, None, None)
        passes = query_passes(self.hp, self.network, self._seed, round_)
        embeddings, probabilities = [], []
        for batch in self._sweep(self._train.images, candidates, f"scoring for round {round_}"):
            block = self._inference.embed_batch(batch)
            probabilities.append(self._inference.probabilities(batch, block, passes))
            if strategy.embeddings:
                embeddings.append(block.half())
        passes_last = torch.cat(probabilities, dim=1).transpose(0, 1)
        labelled = None
        if strategy.labelled_embeddings:
            indices = self.pool.labelled.to(self.device)
            blocks = [
                self._inference.embed_batch(batch).half()
                for batch in self._sweep(self._train.images, indices, "scoring labelled")
            ]
            labelled = self._ranks.gather(torch.cat(blocks), len(indices))
        return PoolScores(
            candidates=candidates,
            probabilities=self._ranks.gather(passes_last, len(candidates)).transpose(0, 1),
            embeddings=self._ranks.gather(torch.cat(embeddings), len(candidates))
            if strategy.embeddings
            else None,
            labelled_embeddings=labelled,
        )

    def _first_embeddings(self, candidates: Tensor) -> Tensor | None:
        """What the first round's images are clustered by, [n, D]; None where chance decides.

        Those of the network as it is, be it pre-trained or untrained; or the pixels, which lie in
        memory already: the strategy turns a block of them at a time into float32.
        """
        if self.hp.initial_pool == "random":
            return None
        if self.hp.initial_pool == "pixels":
            return self._train.images.flatten(1)  # all of them, as none is labelled yet
        blocks = [
            self._inference.embed_batch(batch).half()
            for batch in self._sweep(self._train.images, candidates, "scoring for round 0")
        ]
        return self._ranks.gather(torch.cat(blocks), len(candidates))

    def _sweep(self, images: Tensor, indices: Tensor, title: str) -> Iterator[Tensor]:
        """This rank's share of the images at `indices`, uint8, batch by batch.

        They are for `_inference`, which knows the network as it is now.
        """
        share = indices[self._ranks.share(len(indices))]
        for buffer in self.network.buffers():
            # Each rank's last batch moved BatchNorm's statistics in a way of its own.
            self._ranks.agree(buffer)
        self._inference.refresh()
        for block in self._progress(share.split(self._inference.step), title):
            yield images[block.to(images.device)].to(self.device)
            release(images)

    def _carry_weights_over(self, round_: int) -> None:
        """What the network keeps of the last round, by `between_rounds`."""
        if self.hp.between_rounds == "keep":
            return
        fresh = self._fresh_network(round_)
        if self.hp.between_rounds == "reset":
            self.network.load_state_dict(fresh.state_dict())
        else:
            shrink_and_perturb(self.network, fresh, self.hp.shrink_factor, self.hp.perturb_scale)
        self.optimizer.state.clear()  # its moments are those of weights that are gone

    # --- train -----------------------------------------------------------------------------

    def train_step(
        self,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
        step_optimizer: Callable[[torch.optim.Optimizer], None] | None = None,
    ) -> None:
        """One optimizer step on this round's next batch of labelled images.

        `backward` and `step_optimizer` let a trainer put its own in place of PyTorch's.
        """
        hp = self.hp
        round_, batch = divmod(self.step, hp.batches_per_round)
        if self._planned_round != round_:
            self._plan_round(round_)
        indices = self._batches[batch]
        part = slice(self._ranks.rank, None, self._ranks.size)
        generator = self._generator("train", self.step)
        images = self._augmentation.batch(self._train.images, indices, generator, part)
        release(self._train.images)
        masks = None
        if hp.dropout:
            size = self.network.embedding_size
            masks = dropout_masks(len(indices), size, hp.dropout, generator)[part]
        with self._autocast():
            images = (images - self.mean[:, None, None]) / self.std[:, None, None]
            logits = self.train_network(images, masks).float()
        all_targets = self._targets[indices]
        targets = all_targets[part]
        if hp.class_weighted_loss:
            loss = weighted_cross_entropy(
                logits,
                targets,
                self._class_weights,
                all_targets,
                self._ranks.size,
                hp.label_smoothing,
            )
        else:
            loss = F.cross_entropy(logits, targets, label_smoothing=hp.label_smoothing)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        backward(loss)
        if step_optimizer is None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            step_optimizer(self.optimizer)
        self.meter.update(loss, logits, targets)
        self.step += 1

    @property
    def learning_rate(self) -> float:
        """The rate of the next step; it starts anew each round, since the data are others."""
        hp = self.hp
        return learning_rate(
            self.step % hp.batches_per_round,
            hp.batches_per_round,
            hp.learning_rate,
            hp.warmup_fraction,
        )

    def _plan_round(self, round_: int) -> None:
        """Lay out all batches of a round.

        They are permutations of the labelled set, one after another; or, class-balanced, turns of
        its classes.
        """
        labelled = self.pool.labelled
        labels = self.pool.labels[labelled]
        images = self.hp.batches_per_round * self.hp.batch_size
        if self.hp.class_balanced_batches:
            generator = make_generator(self._seed, "balanced order", round_)
            order = labelled[balanced_order(labels, images, generator)]
        else:
            passes = -(-images // len(labelled))
            seeds = [(self._seed, "order", round_, number) for number in range(passes)]
            orders = [
                torch.randperm(len(labelled), generator=make_generator(*seed)) for seed in seeds
            ]
            order = labelled[torch.cat(orders)[:images]]
        self._batches = order.view(-1, self.hp.batch_size).to(self.device)
        self._targets = self.pool.labels.to(self.device)
        self._class_weights = class_weights(labels, self._train.num_classes).to(self.device)
        self._planned_round = round_

    # --- evaluate --------------------------------------------------------------------------

    def evaluate(self, store: ImageStore) -> dict[str, float]:
        """`loss`, `accuracy` and `auc` of the network as it is, on a store on the device."""
        return classification_metrics(self.predict(store), store.labels)

    @torch.inference_mode()
    def predict(self, store: ImageStore) -> Tensor:
        """Logits float32 [N, C] of the network as it is, for a store on the device."""
        everything = torch.arange(len(store), device=self.device)
        batches = self._sweep(store.images, everything, "evaluating")
        logits = torch.cat(
            [self._inference.logits(self._inference.embed_batch(batch)) for batch in batches]
        )
        return self._ranks.gather(logits, len(store))

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[Inference]:
        """The network in eval mode, for one rank to look at: no state of the trial changes."""
        self._inference.refresh()
        self.network.eval()
        try:
            yield self._inference
        finally:
            self.network.train()

    def end_round(self, val: Mapping[str, float]) -> StopReason | None:
        """Note what the round left behind; why the run is over now, or None.

        Args:
            val: what `evaluate` found on the validation split.
        """
        round_ = self.pool.rounds - 1
        found = [val["loss"], val["accuracy"]]
        if self.hp.stop_below_uncertainty and round_ + 1 < len(self.query_sizes):
            started = time.perf_counter()
            scores = self._score(round_ + 1)
            assert scores.probabilities is not None
            found.append(float(predictive_entropy(scores.probabilities).mean()))
            self._ahead = (scores, time.perf_counter() - started)
        # All ranks have to stop together, so none may be a last digit off.
        values = torch.tensor(found, dtype=torch.float64, device=self.device)
        loss, accuracy, *uncertainty = self._ranks.agree(values).tolist()
        # A round that is evaluated again, after an interruption, takes its own place.
        self.results[round_:] = [RoundResult(loss, accuracy, *(uncertainty or [None]))]
        return self.stop_reason

    # --- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All state but the weights and the optimizer's: tensors and plain numbers.

        A pre-trained backbone is in it where rounds still to come begin from it.
        """
        results = [list(astuple(result)) for result in self.results]
        state = {"step": self.step, "results": results, **self.pool.state_dict()}
        if self._backbone is not None and self.hp.between_rounds != "keep":
            state["backbone"] = self._backbone
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; weights and optimizer are restored elsewhere."""
        self.pool.load_state_dict(state)
        self.step = state["step"]
        self.results = [RoundResult(*result) for result in state["results"]]
        self._planned_round = -1
        if "backbone" in state:
            self._backbone = {
                name: value.to(self.device) for name, value in state["backbone"].items()
            }
        self.pretraining = None  # it lies behind every such state
        self._ahead = None

    def _fresh_network(self, round_: int) -> SplitNetwork:
        generator = make_generator(self._seed, "weights", round_)
        network = SplitNetwork(
            self.hp.architecture,
            self._train.num_classes,
            self._train.channels,
            generator,
            self.hp.pretrained,
            self.hp.freeze_backbone,
        )
        if self._backbone is not None:
            network.backbone.load_state_dict(self._backbone)
        return network.to(self.device).to(memory_format=torch.channels_last)

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return make_generator(self._seed, purpose, number, device=self.device)

    def _autocast(self) -> torch.autocast:
        enabled = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, self.compute_dtype, enabled=enabled)


def run(
    learner: ActiveLearner, val: ImageStore, test: ImageStore
) -> Iterator[tuple[Query, dict[str, float], dict[str, float]]]:
    """Run `learner` to its end; yields each round's query, validation and test metrics."""
    learner.pretrain()
    while not learner.finished:
        query = learner.query()
        for _ in range(learner.hp.batches_per_round):
            learner.train_step()
        val_metrics = learner.evaluate(val)
        learner.end_round(val_metrics)
        yield query, val_metrics, learner.evaluate(test)
