"""The trial: Determined's Trainer calls it, and it calls the learner. An epoch is a round.

The training loader hands out batch numbers only; the learner knows which images they mean.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from determined import core, pytorch
from PIL import Image
from torch import Tensor

from active_learning import ActiveLearner, Observer, label_round
from cluster.checkpoints import KeptCheckpoints
from cluster.master import Master
from cluster.questions import AwaitingLabelsError, Questions
from data import ImageStore, Splits
from reporting.metric_groups import training_metrics, validation_metrics
from reporting.reporter import Reporter
from run_folder.checkpoint import write_checkpoint
from run_folder.description import RunDescription
from training.loading import evaluated_part
from training.oracle import Oracle, Proposal
from training.ranks import Ranks
from training.stopping import StopReason
from training.threads import adapt_to_other_runs, choose_threads

logger = logging.getLogger("active_learning")


def core_of(context: pytorch.PyTorchTrialContext) -> core.Context:
    """The core context behind a trial's context.

    Determined has no public name for it. Groups of metrics, metadata and checkpoints outside the
    Trainer need it; all get it here.
    """
    found: core.Context = context._core
    return found


class ActiveLearningTrial(pytorch.PyTorchTrial):
    """One trial of an experiment.

    Args:
        context: Determined's.
        learner: of the trial; the context wraps its network and optimizer.
        splits: its data.
        description: written into every checkpoint.
        master: knows whether the searcher has stopped the trial.
        origin: names experiment and trial, in every checkpoint.
        ranks: which data-parallel process this is.
        oracle: answers the trial's queries.
        val: the validation images to evaluate, with their labels.
        truth: true labels of the pool, int64 [N], where they are known.
        questions: asks people, where they are the oracle.
    """

    def __init__(
        self,
        context: pytorch.PyTorchTrialContext,
        learner: ActiveLearner,
        splits: Splits,
        description: RunDescription,
        master: Master,
        origin: Mapping[str, int],
        ranks: Ranks,
        oracle: Oracle,
        val: ImageStore,
        truth: Tensor | None,
        questions: Questions | None = None,
    ) -> None:
        self.context = context
        self.core = core_of(context)
        self.learner = learner
        self.description = description
        self.master = master
        self.origin = origin
        self.ranks = ranks
        self.kept_checkpoints = KeptCheckpoints(
            self.core.checkpoint, master, learner.hp.between_rounds == "keep"
        )
        self.latest_checkpoint: str | None = None  # from which the trial can continue
        self.stored_at = time.monotonic()  # when self-supervision was last stored, or could begin
        self.val = val.to(context.device)
        self.test = evaluated_part(splits.test, learner.hp.evaluation_size).to(context.device)
        self.oracle = oracle
        self.questions = questions
        self.reporter = Reporter(
            learner,
            splits,
            self.val,
            self.test,
            truth,
            self.report,
            self.draw if learner.hp.tensorboard_pictures else None,
        )
        learner.train_network = context.wrap_model(learner.network)
        learner.optimizer = context.wrap_optimizer(learner.optimizer)
        self.training_metrics = context.wrap_reducer(
            _TrainingReducer(learner), for_validation=False
        )

    # --- what the Trainer asks for ---------------------------------------------------------

    def build_training_data_loader(self) -> pytorch.DataLoader:
        """Numbers of the batches of one round, of which each rank gets its share."""
        return _numbers(self.learner.hp.batches_per_round * self.ranks.size)

    def build_validation_data_loader(self) -> pytorch.DataLoader:
        """One item per rank: all ranks share in one evaluation."""
        return _numbers(self.ranks.size)

    def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
        """The one callback, which writes checkpoints and watches for the end."""
        return {"active_learning": _Callback(self)}

    def train_batch(
        self, batch: pytorch.TorchData, epoch_idx: int, batch_idx: int
    ) -> dict[str, Any]:
        """The learner's next step, after a query where a round begins."""
        queries = _Queries()
        if not label_round(self.learner, self.oracle, queries):
            raise AwaitingLabelsError
        self.learner.train_step(
            self.context.backward,
            lambda optimizer, scaler: self.context.step_optimizer(optimizer, scaler=scaler),
        )
        # Only now. A trial that resumes from the last round's end reports its query again, and of
        # what it had reported before the master keeps only what lies at or before that step.
        if self.ranks.rank == 0:
            for proposal in queries.answered:
                self.reporter.labelled(proposal)
        # All figures come from the reducer, but over several ranks Determined fails at averaging
        # batches without any.
        return {"learning_rate": self.learner.optimizer.param_groups[0]["lr"]}

    def evaluate_batch(self, batch: pytorch.TorchData, batch_idx: int) -> dict[str, Any]:
        """Evaluate the whole splits, all ranks together, and report the round."""
        choose_threads()  # other trials may have come or gone
        evaluation = self.learner.evaluate(self.val, self.test)
        if self.ranks.rank == 0:
            self.reporter.evaluated(evaluation)
        reason = self.learner.stop_reason
        if reason is not None:
            self.end(reason)
        return validation_metrics(evaluation)

    def end(self, reason: StopReason) -> None:
        """Say why the run is over, and have the Trainer stop where it would continue."""
        if self.ranks.rank == 0:
            logger.info("the run is over: %s", reason.text)
            why = {"stopped_by": reason.rule, "stop_reason": reason.text}
            train = self.core.train
            train.set_metadata({**(train.get_metadata() or {}), **why})
        if len(self.learner.results) < len(self.learner.query_sizes):
            self.context.set_stop_requested(True)

    # --- where reports go ------------------------------------------------------------------

    def report(self, group: str, metrics: Mapping[str, float]) -> None:
        """Send a metric group to the master and to TensorBoard."""
        self.core.train.report_metrics(group, self.learner.step, dict(metrics))
        writer = self.context.get_tensorboard_writer()
        for name, value in metrics.items():
            writer.add_scalar(f"{group}/{name}", value, self.learner.step)

    def draw(self, name: str, png: bytes) -> None:
        """Send a picture to TensorBoard."""
        with Image.open(io.BytesIO(png)) as image:
            pixels = np.asarray(image.convert("RGB"))
        writer = self.context.get_tensorboard_writer()
        writer.add_image(name, pixels, self.learner.step, dataformats="HWC")


class _Queries(Observer):
    """Remembers the proposals of a round until they can be reported."""

    def __init__(self) -> None:
        self.answered: list[Proposal] = []

    def labelled(self, proposal: Proposal) -> None:
        self.answered.append(proposal)


class _TrainingReducer(pytorch.MetricReducer):
    """Loss and accuracy since the last report, over all ranks; one host transfer a report."""

    def __init__(self, learner: ActiveLearner) -> None:
        self.learner = learner

    def reset(self) -> None:
        self.learner.meter.take()

    def per_slot_reduce(self) -> list[float]:
        return self.learner.meter.take().tolist()

    def cross_slot_reduce(self, per_slot_metrics: list[Any]) -> dict[str, float]:
        loss_sum, correct, images = (sum(values) for values in zip(*per_slot_metrics, strict=True))
        rate = self.learner.optimizer.param_groups[0]["lr"]
        return training_metrics(loss_sum, correct, images, rate)


class _Callback(pytorch.PyTorchCallback):
    """Writes self-explaining checkpoints, watches the loss, and asks whether to stop."""

    def __init__(self, trial: ActiveLearningTrial) -> None:
        self.trial = trial

    def state_dict(self) -> dict[str, Any]:
        return self.trial.kept_checkpoints.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trial.kept_checkpoints.load_state(state_dict)

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        # The files written at `on_checkpoint_write_end` hold these.
        checkpoint["models_state_dict"] = []
        checkpoint["optimizers_state_dict"] = []
        # Determined saves numpy's random state as an array, which torch.load(weights_only=True),
        # the default from torch 2.6 on, refuses. It takes plain numbers in any version.
        name, keys, *rest = checkpoint["rng_state"]["np_rng_state"]
        checkpoint["rng_state"]["np_rng_state"] = (name, keys.tolist(), *rest)

    def on_checkpoint_write_end(self, checkpoint_dir: str) -> None:
        trial = self.trial
        write_checkpoint(
            Path(checkpoint_dir),
            trial.description,
            trial.learner,
            trial.reporter.metrics,
            trial.reporter.queries_csv(),
            trial.origin,
        )
        if trial.questions is not None:
            trial.questions.store(Path(checkpoint_dir))

    def on_checkpoint_load_start(self, checkpoint: dict[str, Any]) -> None:
        # The learner was restored before the Trainer began, so the Trainer loads what is there.
        context = self.trial.context
        checkpoint["models_state_dict"] = [model.state_dict() for model in context.models]
        checkpoint["optimizers_state_dict"] = [one.state_dict() for one in context.optimizers]

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        trial = self.trial
        trial.latest_checkpoint = uuid
        if trial.ranks.rank == 0:
            goal = trial.description.goal
            latest = trial.reporter.metrics.latest(goal.metric)
            trial.kept_checkpoints.written(uuid, goal.cost(latest))

    def on_training_workload_end(
        self, avg_metrics: dict[str, Any], batch_metrics: dict[str, Any]
    ) -> None:
        trial = self.trial
        adapt_to_other_runs()
        # Before the checkpoint, so that a diverged network never replaces a good one.
        trial.learner.check_training_loss(avg_metrics["loss"])
        if trial.ranks.rank == 0:
            rate = trial.learner.optimizer.param_groups[0]["lr"]
            trial.reporter.trained(avg_metrics["loss"], avg_metrics["accuracy"], rate)
        asked = trial.master.wants_trial_to_stop() if trial.ranks.rank == 0 else None
        if trial.context.distributed.broadcast(asked):
            logger.info("the search has stopped this trial")
            trial.context.set_stop_requested(True)


def _numbers(count: int) -> pytorch.DataLoader:
    """A loader of 0, 1, ..., count - 1, one at a time, of which each rank gets its share."""
    return pytorch.DataLoader(torch.utils.data.TensorDataset(torch.arange(count)), batch_size=1)
