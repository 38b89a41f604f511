"""Active learning on PathMNIST as a Determined trial. The only file that knows Determined.

On a cluster:   det experiment create config.yaml .
On a laptop:    python model_def.py --config configs/quick.yaml
Several CPUs or GPUs of one machine:
                torchrun --nproc-per-node 2 model_def.py --config configs/quick.yaml
Go on:          python model_def.py --resume runs/NAME
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import determined as det
import numpy as np
import safetensors.torch
import torch
from determined import core, pytorch
from determined.common import storage
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from active_learning import ActiveLearner, Query, SimulatedOracle
from data import ImageStore
from errors import DivergedError, UserError
from reporting.files import write_atomically
from reporting.measures import class_measures, confusion_counts
from reporting.round_pictures import RoundEnd, round_pictures
from run_folder.writer import RunFolder
from training.backbone_file import backbone_bytes
from training.compilation import check_compilation
from training.devices import check_devices
from training.experiment_config import load, override, sample
from training.hyperparameters import Hyperparameters
from training.loading import evaluated_part, load_data
from training.metrics import classification_metrics
from training.ranks import Ranks
from training.stopping import StopReason

logger = logging.getLogger("active_learning")

# Self-supervision before the first round: its state while it lasts, and what came of it.
UNFINISHED, BACKBONE = "self_supervision.pth", "backbone.safetensors"


class PathMNISTTrial(pytorch.PyTorchTrial):
    """One trial. A Determined epoch is a round: query, label, train, evaluate.

    The training loader hands out batch numbers only; `ActiveLearner` knows which images they mean.

    Args:
        context: Determined's.
        seed: the trial's.
        run_folder: where an off-cluster run keeps its files; None on a cluster and on all data
            parallel ranks but the first.
    """

    def __init__(
        self,
        context: pytorch.PyTorchTrialContext,
        seed: int | None = None,
        run_folder: RunFolder | None = None,
    ) -> None:
        self.context = context
        self.run_folder = run_folder
        trial_seed = context.get_trial_seed() if seed is None else seed
        self.ranks = Ranks(context.distributed.rank, context.distributed.size)
        self.hp = check_hyperparameters(context.get_hparams(), self.ranks.size)
        splits = load_data(self.hp)
        sizes = self.hp.query_sizes(len(splits.train))
        if self.hp.compile:
            check_compilation(context.device)
        self.seed = trial_seed if self.hp.seed == -1 else self.hp.seed
        train = splits.train.to(context.device)
        self.val = evaluated_part(splits.val, self.hp.evaluation_size).to(context.device)
        self.test = evaluated_part(splits.test, self.hp.evaluation_size).to(context.device)
        self.class_names = splits.class_names
        self.pool_images = splits.train.images
        oracle = SimulatedOracle.of_trial(self.hp, splits.train, self.seed)
        self.learner = ActiveLearner(self.hp, train, oracle, self.seed, self.ranks, _bar)
        if run_folder is not None:
            settings = dataclasses.asdict(self.hp)
            settings.pop("data_dir")  # data may move, as long as they stay the same
            run_folder.check_identity(
                {
                    "dataset": splits.name,
                    "seed": self.seed,
                    **{f"hyperparameters.{name}": value for name, value in settings.items()},
                    "data": splits.fingerprint(),
                },
                {
                    "class_names": list(splits.class_names),
                    "image_size": self.hp.image_size,
                    "channels": splits.channels,
                    "mean": self.learner.mean.tolist(),
                    "std": self.learner.std.tolist(),
                },
            )
        self.learner.train_network = context.wrap_model(self.learner.network)
        self.learner.optimizer = context.wrap_optimizer(self.learner.optimizer)
        self.training_metrics = context.wrap_reducer(
            _TrainingReducer(self.learner), for_validation=False
        )
        self.round_started = time.perf_counter()
        self.steps_bar: tqdm[Any] | None = None
        if self.ranks.rank == 0:
            logger.info(
                "%s: %d training images of %d classes, %d of %d validation images, "
                "%d of %d test images; %d rounds label %s; %s in %s on %s, seed %d",
                splits.name, len(splits.train), splits.num_classes, len(self.val),
                len(splits.val), len(self.test), len(splits.test),
                len(sizes), " + ".join(map(str, sizes)), self.hp.architecture,
                str(self.learner.compute_dtype).removeprefix("torch."), context.device, self.seed,
            )  # fmt: skip

    def build_training_data_loader(self) -> pytorch.DataLoader:
        """Numbers of the batches of one round, of which each rank gets its share."""
        return _numbers(self.hp.batches_per_round * self.ranks.size)

    def build_validation_data_loader(self) -> pytorch.DataLoader:
        """One item per rank: each shares in the one evaluation that there is."""
        return _numbers(self.ranks.size)

    def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
        """The one callback, through which the learner's state travels in checkpoints."""
        return {"active_learning": _Callback(self)}

    def train_batch(
        self, batch: pytorch.TorchData, epoch_idx: int, batch_idx: int
    ) -> dict[str, Any]:
        """The next step of the learner, after a query where a round begins.

        `epoch_idx` and `batch_idx` are not looked at: off the cluster they restart at 0 when a run
        is resumed. Metrics are summed on the device, and read when a report is due.
        """
        round_ = self.learner.round
        query = None
        if self.learner.query_due:
            self.round_started = time.perf_counter()
            query = self.learner.query()
        self.learner.train_step(self.context.backward, self.context.step_optimizer)
        if query is not None:
            # Only now: a trial that goes on from the last round's end reports this again, and of
            # what it had reported before, a master keeps no more than lies before that step.
            self.report_query(query)
        if self.steps_bar is None:
            self.steps_bar = _steps_bar(self.learner, self.ranks)
        self.steps_bar.update()
        # All figures come from the reducer, but over several ranks Determined fails at averaging
        # batches without any.
        return {"round": round_}

    def evaluate_batch(self, batch: pytorch.TorchData, batch_idx: int) -> dict[str, Any]:
        """Evaluate on the whole validation split, all ranks together, and report the test split."""
        if self.steps_bar is not None:
            self.steps_bar.close()
            self.steps_bar = None
        done = {
            "round": self.learner.pool.rounds - 1,
            "labeled_samples": len(self.learner.pool.labelled),
            "annotation_minutes": self.learner.annotation_minutes,
        }
        test_logits, logits = self.learner.predict(self.test), self.learner.predict(self.val)
        test = _prefixed("test", classification_metrics(test_logits, self.test.labels))
        found = classification_metrics(logits, self.val.labels)
        val = _prefixed("val", found)
        self.report("test", {**test, **done})
        classes = {
            **_class_metrics("val", logits, self.val),
            **_class_metrics("test", test_logits, self.test),
        }
        self.report("classes", {**classes, **done})
        if self.ranks.rank == 0:
            logger.info(
                "round %d (%d of %d): %d labels, val_loss %.4f, val_accuracy %.4f, val_auc %.4f, "
                "test_accuracy %.4f (%.0f s)",
                done["round"], done["round"] + 1, len(self.learner.query_sizes),
                done["labeled_samples"], val["val_loss"], val["val_accuracy"], val["val_auc"],
                test["test_accuracy"], time.perf_counter() - self.round_started,
            )  # fmt: skip
        if self.hp.tensorboard_pictures and self.ranks.rank == 0:
            self.draw(logits)
        reason = self.learner.end_round(found)
        if reason is not None:
            self.report_end(reason)
        return {**val, **done}

    def report_end(self, reason: StopReason) -> None:
        """Say why the run is over, and have the trainer stop where it would go on."""
        if self.ranks.rank == 0:
            logger.info("the run is over: %s", reason.text)
            train = self.context._core.train
            said = {"stopped_by": reason.rule, "stop_reason": reason.text}
            train.set_metadata({**(train.get_metadata() or {}), **said})
        if len(self.learner.results) < len(self.learner.query_sizes):
            self.context.set_stop_requested(True)

    def draw(self, logits: Tensor) -> None:
        """Send the round's pictures to TensorBoard; `logits` are of the validation images."""
        writer = self.context.get_tensorboard_writer()
        pool = self.learner.pool
        with self.learner.looked_at() as inference:
            end = RoundEnd(
                round=pool.rounds - 1,
                seed=self.seed,
                class_names=self.class_names,
                val_images=self.val.images,
                val_labels=self.val.labels,
                logits=logits,
                pool_images=self.pool_images,
                acquired_round=pool.acquired_round,
                labels=pool.labels,
                inference=inference,
            )
            for name, picture in round_pictures(end):
                with Image.open(io.BytesIO(picture)) as image:
                    pixels = np.asarray(image.convert("RGB"))
                writer.add_image(f"round/{name}", pixels, self.learner.step, dataformats="HWC")

    def report_query(self, query: Query) -> None:
        """Report what a round asked for, and draw it where there is a run folder."""
        labels = self.learner.pool.labels[self.learner.pool.labelled]
        self.report("active_learning", query.metrics(labels, self.class_names))
        if self.run_folder is not None:
            images = self.pool_images[query.indices]
            self.run_folder.record_query(
                query.round,
                query.indices,
                query.labels,
                query.true_labels,
                query.uncertainty,
                images,
                self.class_names,
            )

    def report_pretraining(self, metrics: Mapping[str, float]) -> None:
        """Tell of self-supervision, from the first rank; the axis is its own steps."""
        if self.ranks.rank != 0:
            return
        steps = self.hp.self_supervised_steps
        logger.info("learning without labels: step %d of %d, loss %.4f",
                    metrics["step"], steps, metrics["loss"])  # fmt: skip
        writer = self.context.get_tensorboard_writer()
        for name in ("loss", "learning_rate"):
            writer.add_scalar(f"self_supervision/{name}", metrics[name], metrics["step"])
        if self.run_folder is not None:
            self.run_folder.record_self_supervision(metrics)

    def report(self, group: str, metrics: Mapping[str, float]) -> None:
        """Send `metrics` to the WebUI and to TensorBoard, from the first rank."""
        if self.ranks.rank != 0:
            return
        # Determined has no public way from a PyTorchTrialContext to metric groups of one's own.
        self.context._core.train.report_metrics(group, self.learner.step, dict(metrics))
        writer = self.context.get_tensorboard_writer()
        for name, value in metrics.items():
            writer.add_scalar(f"{group}/{name}", value, self.learner.step)


class _TrainingReducer(pytorch.MetricReducer):
    """Loss and accuracy since the last report, over all ranks; one host transfer a report."""

    def __init__(self, learner: ActiveLearner) -> None:
        self.learner = learner

    def reset(self) -> None:
        self.learner.meter.take()

    def per_slot_reduce(self) -> tuple[float, float, float]:
        return self.learner.meter.take()

    def cross_slot_reduce(self, per_slot_metrics: list[Any]) -> dict[str, float]:
        loss, correct, images = (sum(values) for values in zip(*per_slot_metrics, strict=True))
        return {
            "loss": loss / images,
            "accuracy": correct / images,
            "learning_rate": self.learner.optimizer.param_groups[0]["lr"],
            "round": self.learner.pool.rounds - 1,
        }


class _Callback(pytorch.PyTorchCallback):
    """Carries the learner's state in checkpoints, and keeps the run folder's books."""

    def __init__(self, trial: PathMNISTTrial) -> None:
        self.trial = trial
        self.warm_start = False
        self.last_checkpoint = "none yet"
        self.val_loss = float("inf")

    def on_trial_startup(self, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
        # On a cluster, a checkpoint without steps done is another trial's: its weights are a
        # start, its pool is not ours. Off the cluster the number is always 0.
        self.last_checkpoint = checkpoint_uuid or self.last_checkpoint
        self.warm_start = trial_on_cluster() is not None and first_batch_idx == 0

    def state_dict(self) -> dict[str, Any]:
        return self.trial.learner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self.warm_start:
            self.trial.learner.load_state_dict(state_dict)

    def on_training_start(self) -> None:
        reason = self.trial.learner.stop_reason
        if reason is None:
            return
        # Killed after the last checkpoint and before anybody heard that it was the last.
        if self.trial.ranks.rank == 0:
            logger.info("nothing left to do: the run is finished (%s)", reason.text)
        self._record_end()
        raise _AlreadyFinishedError

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        # Determined saves numpy's random state as an array, which torch.load(weights_only=True),
        # the way that torch loads from 2.6 on, refuses. It takes plain numbers in any version.
        name, keys, *rest = checkpoint["rng_state"]["np_rng_state"]
        checkpoint["rng_state"]["np_rng_state"] = (name, keys.tolist(), *rest)

    def on_training_workload_end(
        self, avg_metrics: dict[str, Any], batch_metrics: dict[str, Any]
    ) -> None:
        # Before the checkpoint, so that a diverged network never replaces a good one.
        if not np.isfinite(avg_metrics["loss"]):
            learner = self.trial.learner
            raise DivergedError(
                f"the training loss is {avg_metrics['loss']} in round {learner.pool.rounds - 1}, "
                f"by step {learner.step}; lower hyperparameters.learning_rate: "
                f"{learner.hp.learning_rate} (the last good checkpoint: {self.last_checkpoint})"
            )

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        self.val_loss = float(metrics["val_loss"])

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        self.last_checkpoint = uuid
        if self.trial.run_folder is not None:
            round_ = self.trial.learner.pool.rounds - 1
            self.trial.run_folder.record_checkpoint(uuid, round_, self.val_loss)
            self._record_end()

    def _record_end(self) -> None:
        """Have the run folder say that its last checkpoint is the end, if it is."""
        folder, learner = self.trial.run_folder, self.trial.learner
        if folder is not None and learner.stop_reason is not None:
            labels = len(learner.pool.labelled)
            folder.record_end(
                self.last_checkpoint, learner.stop_reason, len(learner.results), labels
            )


class _AlreadyFinishedError(Exception):
    """Leaves the trainer before its first step: the checkpoint is the end of its run."""


def trial_on_cluster() -> det.ClusterInfo | None:
    """What the cluster says of the trial that this process runs.

    None off a cluster, and in a cluster's notebooks and shells, where runs are local ones.
    """
    info = det.get_cluster_info()
    return info if info is not None and info.task_type == "TRIAL" else None


def check_hyperparameters(values: Mapping[str, Any], ranks: int) -> Hyperparameters:
    """Validated hyperparameters, or UserError for those that make no trial."""
    hyperparameters = Hyperparameters.from_mapping(values)
    for name in ("batch_size", "self_supervised_batch_size"):
        size = getattr(hyperparameters, name)
        if size % ranks:
            raise UserError(
                f"hyperparameters.{name}: {size} cannot be shared by {ranks} processes; "
                f"make it a multiple of {ranks}"
            )
    return hyperparameters


@contextlib.contextmanager
def _refused_as_invalid_hp() -> Iterator[None]:
    """Let a search go on without a trial whose hyperparameters make none, or make it diverge.

    Started again it would only end the same way, having gone on exactly.
    """
    try:
        yield
    except (UserError, DivergedError) as error:
        logger.error("%s", error)
        raise det.InvalidHP(str(error)) from error


def pretrain(trial: PathMNISTTrial, checkpoint: str | None) -> tuple[bool, str | None]:
    """Learn without labels, where that is asked for and does not lie behind `checkpoint`.

    Returns:
        Whether to go on, which is False where a cluster asks for a pause, and the checkpoint that
        the trainer goes on from.
    """
    learner, core_context = trial.learner, trial.context._core
    work = learner.pretraining
    if work is None:
        return True, checkpoint
    saved = trial.context.distributed.broadcast(
        _saved_pretraining(trial, checkpoint) if trial.ranks.rank == 0 else None
    )
    if saved is None and checkpoint is not None:
        return True, checkpoint  # a round's, or another trial's
    name, content = saved or ("", b"")
    if name == BACKBONE:
        learner.start_from(safetensors.torch.load(content))
        return True, None
    if name == UNFINISHED:
        work.load(content)
    period = trial.hp.reporting_period
    saved_at = work.step
    with tqdm(
        total=trial.hp.self_supervised_steps, initial=work.step, desc="learning without labels",
        unit="step", leave=False, disable=True if trial.ranks.rank else None,
    ) as bar:  # fmt: skip
        while not work.finished:
            work.train_step()
            bar.update()
            if work.step % period and not work.finished:
                continue
            metrics = work.report()
            trial.report_pretraining(metrics)
            if not np.isfinite(metrics["loss"]):
                raise DivergedError(
                    f"the self-supervised loss is {metrics['loss']} by step {work.step}; lower "
                    "hyperparameters.self_supervised_learning_rate: "
                    f"{trial.hp.self_supervised_learning_rate}"
                )
            if core_context.preempt.should_preempt():
                _save_pretraining(trial, UNFINISHED, work.save())
                return False, None
            # A cluster gives notice of a pause, and keeps whatever it is given to the end.
            if trial.run_folder and work.step - saved_at >= trial.hp.batches_per_round:
                _save_pretraining(trial, UNFINISHED, work.save())
                saved_at = work.step
    learner.adopt_pretraining()
    if trial.ranks.rank == 0:
        # Before the checkpoint, which a run that goes on takes for a sign that this is done with.
        core_context.train.report_metrics("self_supervision", 0, metrics)
    weights = learner.network.backbone.state_dict()
    _save_pretraining(trial, BACKBONE, backbone_bytes(weights, trial.hp, trial.seed))
    return True, None


def _saved_pretraining(trial: PathMNISTTrial, checkpoint: str | None) -> tuple[str, bytes] | None:
    """What `_save_pretraining` was given last, in `checkpoint` or in the run folder, if it was."""
    if checkpoint is not None:
        # Something is always asked for: a storage that finds nothing takes it for an error.
        wanted = ("metadata.json", UNFINISHED, BACKBONE)
        with trial.context._core.checkpoint.restore_path(
            checkpoint, core.DownloadMode.NoSharedDownload, selector=lambda name: name in wanted
        ) as folder:
            return _pretraining_in(folder)
    return _pretraining_in(trial.run_folder.path) if trial.run_folder is not None else None


def _pretraining_in(folder: Path) -> tuple[str, bytes] | None:
    for name in (BACKBONE, UNFINISHED):
        if (folder / name).exists():
            return name, (folder / name).read_bytes()
    return None


def _save_pretraining(trial: PathMNISTTrial, name: str, content: bytes) -> None:
    """Keep `content` as `name`, in a checkpoint of no steps or in the run folder."""
    if trial.ranks.rank != 0:
        return
    if trial.run_folder is None:
        done = {"steps_completed": 0}  # of the trainer's, which begins with the first round
        with trial.context._core.checkpoint.store_path(done) as (folder, _):
            (folder / name).write_bytes(content)
        return
    write_atomically(trial.run_folder.path / name, content)
    if name == BACKBONE:
        (trial.run_folder.path / UNFINISHED).unlink(missing_ok=True)


def fit(trial: PathMNISTTrial, checkpoint: str | None) -> None:
    """Hand `trial` to Determined's trainer, from `checkpoint` on if there is one."""
    go_on, checkpoint = pretrain(trial, checkpoint)
    if not go_on:
        return
    rounds, batches = len(trial.learner.query_sizes), trial.hp.batches_per_round
    # Counted from each round's beginning, not the trial's: off the cluster Determined starts to
    # count anew on a resume, and a report would sum up other batches than without one.
    reports = {
        step for step in range(1, rounds * batches + 1)
        if step % batches % trial.hp.reporting_period == 0
    }  # fmt: skip
    with contextlib.suppress(_AlreadyFinishedError):
        pytorch.Trainer(trial, trial.context).fit(
            max_length=pytorch.Epoch(rounds),
            validation_period=pytorch.Epoch(1),
            checkpoint_period=pytorch.Epoch(1),
            checkpoint_policy="none",
            reporting_period=pytorch.Batch(reports),
            latest_checkpoint=checkpoint,
        )


def run_on_cluster(info: det.ClusterInfo) -> None:
    """The entrypoint of a task on a Determined cluster."""
    check_devices(os.environ, len(info.gpu_uuids), _processes_here())
    # Determined has no public name for the experiment's configuration before a context is there.
    slots = int(info.trial._config["resources"].get("slots_per_trial", 1))
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > max(slots, 1):
        raise UserError(
            f"resources.slots_per_trial: {slots}, and {ranks} processes were started; raise it, "
            "or leave their number to determined.launch.torch_distributed"
        )
    with pytorch.init(hparams=info.trial.hparams) as context, _refused_as_invalid_hp():
        fit(PathMNISTTrial(context), info.latest_checkpoint)


# --- off the cluster --------------------------------------------------------------------------


class _RunFolderMetrics(core.DummyTrainContext):
    """Takes the master's place as the receiver of metrics: they go into the run folder."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.path / "tensorboard")
        self.folder = folder

    def set_status(self, status: str) -> None:
        pass

    def report_progress(self, progress: float) -> None:
        pass

    def get_metadata(self) -> None:
        pass

    def set_metadata(self, metadata: dict[str, Any]) -> None:
        pass  # The run folder says why the run is over when its last checkpoint is written.

    def upload_tensorboard_files(self, *args: Any, **kwargs: Any) -> None:
        pass

    def report_training_metrics(
        self, steps_completed: int, metrics: dict[str, Any], batch_metrics: Any = None
    ) -> None:
        shown = {"train_loss": metrics["loss"], "train_accuracy": metrics["accuracy"]}
        row = {**shown, "learning_rate": metrics["learning_rate"], "steps": steps_completed}
        self.folder.record_metrics(int(metrics["round"]), row)

    def report_validation_metrics(self, steps_completed: int, metrics: dict[str, Any]) -> None:
        values = {k: v for k, v in metrics.items() if k not in ("batches", "epochs", "round")}
        self.folder.record_metrics(
            int(metrics["round"]), {name: float(value) for name, value in values.items()}
        )
        self.folder.draw_learning_curve()

    def report_metrics(self, group: str, steps_completed: int, metrics: dict[str, Any]) -> None:
        if "round" in metrics:  # self-supervision has none, and a file of its own
            self.folder.record_metrics(int(metrics["round"]), metrics)


class _RunFolderCheckpoints(core.DummyCheckpointContext):
    """Writes checkpoints into the run folder; a failure to says what to do."""

    def __init__(self, distributed: core.DistributedContext, folder: Path) -> None:
        super().__init__(distributed, storage.SharedFSStorageManager(str(folder / "checkpoints")))
        self.folder = folder

    @contextlib.contextmanager
    def store_path(
        self, metadata: dict[str, Any] | None = None, *, shard: bool = False
    ) -> Iterator[tuple[Path, str]]:
        try:
            with super().store_path(metadata, shard=shard) as (path, storage_id):
                yield path, storage_id
        except (OSError, RuntimeError) as error:  # the latter: what torch.save makes of the former
            raise _not_written("a checkpoint", self.folder, error) from error


def _not_written(what: str, folder: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
    return UserError(
        f"{folder}: {what} cannot be written ({reason}); free some space, then go on with: "
        f"python model_def.py --resume {folder}"
    )


def run_locally(arguments: argparse.Namespace) -> None:
    """Run, or go on with, an experiment on this machine."""
    check_devices(os.environ, 0, _processes_here())
    distributed = _join_process_group()
    chief = distributed is None or distributed.rank == 0
    resumed: RunFolder | None = None
    if arguments.resume is not None:
        resumed, config = RunFolder.open(arguments.resume)
    else:
        config = override(load(arguments.config), arguments.set)
        if arguments.data_dir is not None:
            config["hyperparameters"]["data_dir"] = str(arguments.data_dir)
        config = _drawn(config, chief)
    hp = check_hyperparameters(config["hyperparameters"], distributed.size if distributed else 1)
    folder: RunFolder | None = None
    checkpoint: str | None = None
    done = 0
    reason: str | None = None
    if chief:
        folder = resumed or RunFolder.create(_new_folder(arguments), config)
        checkpoint = folder.latest_checkpoint()
        done = _rounds_done(folder, checkpoint)
        reason = folder.reason_of_end(checkpoint)
        logger.info("run folder: %s", folder.path)
    # The first rank alone looks after the folder; the others hear from it.
    start = (folder.path, checkpoint, done, reason) if folder else None
    if distributed is not None:
        start = distributed.broadcast(start)
    assert start is not None
    path, checkpoint, done, reason = start
    if reason is not None:
        if chief:
            rounds = len(hp.query_sizes(hp.label_budget))
            logger.info(
                "nothing left to do: the run is finished, %d of %d rounds (%s)",
                done, rounds, reason,
            )  # fmt: skip
        return
    seed = config["reproducibility"]["experiment_seed"]
    with (
        _as_wanted_off_the_cluster(),
        pytorch.init(
            hparams=config["hyperparameters"], exp_conf=config, distributed=distributed
        ) as context,
    ):
        # Off the cluster Determined has no public setting for where these two go.
        context._core.checkpoint = _RunFolderCheckpoints(context.distributed, path)
        if folder is not None:
            context._core.train = _RunFolderMetrics(folder)
        try:
            trial = PathMNISTTrial(context, seed, folder)
            if folder is not None:
                folder.rewind(done)
            fit(trial, checkpoint)
        except KeyboardInterrupt:
            if chief:
                logger.info("stopped; go on with: python model_def.py --resume %s", path)
            raise
        except OSError as error:
            raise _not_written(str(error.filename or "a file"), path, error) from error
        except UserError:
            if folder is not None and resumed is None:
                folder.discard_unless_begun()
            raise
    if chief:
        logger.info("done: %s", path)


def _new_folder(arguments: argparse.Namespace) -> Path:
    """Where a new run keeps its files: as asked for, or named by configuration and time."""
    name = f"{arguments.config.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(arguments.output_dir or Path("runs") / name)


def _rounds_done(folder: RunFolder, checkpoint: str | None) -> int:
    """How many rounds are behind `checkpoint`: off the cluster, it is written at a round's end."""
    entries = [entry for entry in folder.checkpoint_entries if entry["uuid"] == checkpoint]
    return int(entries[0]["round"]) + 1 if entries else 0


def _drawn(config: dict[str, Any], chief: bool) -> dict[str, Any]:
    """`config` with one value for each hyperparameter that a search would choose."""
    seed = (config.get("reproducibility") or {}).get("experiment_seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise UserError(
            f"reproducibility.experiment_seed: {seed!r} is no whole number from 0 to 2**31 - 1; "
            "give one, such as 0"
        )
    values, drawn = sample(config["hyperparameters"], seed)
    if drawn and chief:
        text = ", ".join(f"{name}: {values[name]}" for name in drawn)
        logger.info("one sample of the search space, drawn with seed %d: %s", seed, text)
    return {**config, "hyperparameters": values}


def _join_process_group() -> core.DistributedContext | None:
    """The process group that torchrun has laid out in the environment, if it has."""
    if "RANK" not in os.environ:
        return None
    os.environ["USE_TORCH_DISTRIBUTED"] = "1"
    gpus = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if gpus else "gloo")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    rank, size, local_rank, local_size, cross_rank = (int(os.environ[name]) for name in names)
    # Determined's own ports are the same for every job: two on one machine would meet in them.
    ports = [_two_free_ports() if rank == 0 else (0, 0)]
    device = torch.device("cuda", local_rank) if gpus else None
    torch.distributed.broadcast_object_list(ports, src=0, device=device)
    return core.DistributedContext(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        cross_rank=cross_rank,
        cross_size=int(os.environ["GROUP_WORLD_SIZE"]),
        chief_ip=os.environ["MASTER_ADDR"],
        pub_port=ports[0][0],
        pull_port=ports[0][1],
    )


def _two_free_ports() -> tuple[int, int]:
    """TCP ports that nothing on this machine listened to a moment ago."""
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
        return int(one.getsockname()[1]), int(other.getsockname()[1])


@contextlib.contextmanager
def _as_wanted_off_the_cluster() -> Iterator[None]:
    """Two things that Determined has no setting for.

    It would copy the working folder, data and runs too, into each checkpoint. And it would count
    the GPUs that nvidia-smi lists, some of which torch cannot use or is not meant to.
    """
    gpus = [str(number) for number in range(torch.cuda.device_count())]
    with (
        mock.patch("determined.util.write_user_code"),
        mock.patch("determined.gpu.get_gpu_uuids", return_value=gpus),
    ):
        yield


def _processes_here() -> int:
    """How many data-parallel processes torchrun or the cluster's launcher runs on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _numbers(count: int) -> pytorch.DataLoader:
    """A loader of 0, 1, ..., count - 1, one at a time, of which each rank gets its share."""
    return pytorch.DataLoader(torch.utils.data.TensorDataset(torch.arange(count)), batch_size=1)


def _bar(iterable: Any, title: str) -> Any:
    return tqdm(iterable, desc=title, leave=False, disable=None)


def _steps_bar(learner: ActiveLearner, ranks: Ranks) -> tqdm[Any]:
    title = f"round {learner.round} ({learner.round + 1} of {len(learner.query_sizes)})"
    hidden = True if ranks.rank else None
    return tqdm(
        total=learner.hp.batches_per_round, desc=title, unit="step", leave=False, disable=hidden
    )


def _class_metrics(split: str, logits: Tensor, store: ImageStore) -> dict[str, float]:
    """Precision and recall of each class that has images in `store`."""
    predicted, labels = logits.argmax(1).cpu(), store.labels.cpu()
    found = class_measures(confusion_counts(predicted, labels, store.num_classes))
    return {
        f"{split}_{measure}_{name}": value
        for measure in ("precision", "recall")
        for name, value in zip(store.class_names, found[measure].tolist(), strict=True)
        if value == value
    }


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in metrics.items()}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, as the README describes it."""
    parser = argparse.ArgumentParser(description="Active learning for image classification.")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--config", type=Path, default=Path("configs/quick.yaml"), metavar="YAML")
    start.add_argument("--resume", type=Path, metavar="RUN", help="go on with this run folder")
    parser.add_argument("--data-dir", type=Path, help="in place of hyperparameters.data_dir")
    parser.add_argument("--output-dir", type=Path, help="run folder to make; default runs/...")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE")
    parser.add_argument("--traceback", action="store_true", help="show tracebacks of errors")
    parsed = parser.parse_args(arguments)
    if parsed.resume and (parsed.set or parsed.data_dir or parsed.output_dir):
        parser.error("--resume goes on with the run's own settings; leave the others out")
    return parsed


def _print_error(error: Exception) -> None:
    """One line on stderr; where all ranks have met the same mistake, one for all of them.

    torchrun ends every rank as soon as one is gone, so none leaves before the line is out.
    """
    together = isinstance(error, UserError) and (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    )
    if not together or torch.distributed.get_rank() == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
    if together:
        torch.distributed.barrier()


def main(argv: Sequence[str] | None = None) -> int:
    """Run on the cluster that the environment names, or on this machine; the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = parse_arguments(argv)
    info = trial_on_cluster()
    try:
        if info is not None:
            run_on_cluster(info)
        else:
            logging.getLogger("determined").setLevel(logging.WARNING)
            run_locally(arguments)
    except UserError as error:
        if arguments.traceback:
            raise
        _print_error(error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
