"""The entry point of a trial's container on a Determined cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import determined as det
import torch
from determined import core, pytorch

from active_learning import ActiveLearner
from cluster.master import Master
from cluster.questions import AwaitingLabelsError, Questions
from cluster.trial import ActiveLearningTrial, core_of
from data import ImageStore
from errors import OK, USER_ERROR, DivergedError, UserError
from labelling.oracle import PeopleOracle
from reporting.run_progress import progress_bar
from reporting.start import log_start
from run_folder import names
from run_folder.checkpoint import read_tensors, restore_checkpoint
from run_folder.description import Goal, RunDescription, read_description
from training.backbone_cache import backbone_folder
from training.backbone_file import backbone_bytes, read_backbone
from training.compilation import check_compilation
from training.devices import check_devices
from training.hyperparameters import Hyperparameters
from training.loading import evaluated_part, load_data
from training.oracle import Oracle, SimulatedOracle
from training.ranks import Ranks
from training.search_rules import check_search
from training.threads import choose_threads

# The launcher ends all ranks when one fails; the first one reports to the master before that.
SECONDS_FOR_FIRST_RANK = 30
# A continued experiment may go further than it was first meant to.
MAY_CHANGE = (
    "data_dir",
    "rounds",
    "label_budget",
    "minutes_budget",
    "stop_at_val_accuracy",
    "stop_after_rounds_without_gain",
    "stop_below_uncertainty",
)
# The files of a checkpoint that the learner is restored from.
RESTORED = (
    names.DESCRIPTION,
    names.METRICS,
    names.WEIGHTS,
    names.STATE,
    names.OPTIMIZER,
    names.BACKBONE,
    names.UNFINISHED_BACKBONE,
    "metadata.json",  # a storage that finds none of the files takes it for an error
)

logger = logging.getLogger("active_learning")

# What a kill costs self-supervision at most. Each time stores weights and moments, 280 MB for a
# ResNet-50, which Determined deletes when the experiment ends.
STORED_EVERY_SECONDS = 600


def run_on_cluster() -> int:
    """Run the trial that the container was started for; the exit status."""
    # The master reads the level out of this format, and adds the time itself.
    logging.basicConfig(level=logging.INFO, format=det.LOG_FORMAT, force=True)
    # Determined logs every metric report with all its digits.
    logging.getLogger("determined").setLevel(logging.WARNING)
    # It warns wherever only some of a checkpoint's files are asked for, as `_restore` does.
    logging.getLogger("determined.common.storage").setLevel(logging.ERROR)
    info = det.get_cluster_info()
    assert info is not None
    master = Master(info)
    with _mistakes_end_the_experiment(master):
        check_devices(os.environ, len(info.gpu_uuids), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        _check_slots(info)
        with (
            pytorch.init(hparams=info.trial.hparams) as context,
            _bad_draws_reported(context),
            tempfile.TemporaryDirectory() as scratch,
        ):
            _run(context, info, master, Path(scratch))
    return OK


def _run(
    context: pytorch.PyTorchTrialContext, info: det.ClusterInfo, master: Master, scratch: Path
) -> None:
    config = context.get_experiment_config()
    check_search(config)
    choose_threads()
    ranks = Ranks(context.distributed.rank, context.distributed.size)
    hp = Hyperparameters.from_mapping(context.get_hparams())
    hp.check_ranks(ranks.size)
    if hp.compile:
        check_compilation(context.device)
    splits = load_data(hp)
    seed = context.get_trial_seed() if hp.seed == -1 else hp.seed
    learner = ActiveLearner(
        hp,
        splits.train.to(context.device),
        seed,
        ranks,
        progress_bar(ranks),
        backbone_folder(hp),
    )
    description = RunDescription.of_trial(learner, splits, Goal.of_config(config))
    origin = {"experiment_id": info.trial.experiment_id, "trial_id": info.trial.trial_id}
    checkpoint = info.latest_checkpoint
    val: ImageStore | None = evaluated_part(splits.val, hp.evaluation_size)
    assert val is not None
    oracle: Oracle
    questions = None
    if hp.oracle == "people":
        questions = Questions(core_of(context), master, scratch, origin)
        checkpoint = questions.restore(checkpoint)
        oracle = questions.oracle(learner, splits)
        val, truth = oracle.labelled_validation(val), oracle.truth
        if val is None:
            questions.ask(checkpoint, 0, {})
            return
    else:
        oracle = SimulatedOracle.of_trial(learner, splits.train)
        truth = oracle.truth(torch.arange(len(splits.train)))
    trial = ActiveLearningTrial(
        context, learner, splits, description, master, origin, ranks, oracle, val, truth, questions
    )
    if ranks.rank == 0:
        log_start(learner, splits, len(trial.val), len(trial.test))
    trial.latest_checkpoint = checkpoint
    resumed = _restore(trial, checkpoint)
    if not learner.pretrain(
        report=lambda metrics: _report_pretraining(trial, metrics),
        go_on=lambda: not trial.core.preempt.should_preempt(),
    ):
        return  # paused
    reason = learner.stop_reason
    if reason is not None:
        # Killed after the last checkpoint, before the master heard that it was the last.
        logger.info("nothing left to do: the run is finished (%s)", reason.text)
        return
    rounds, batches = len(learner.query_sizes), hp.batches_per_round
    # Counted from the beginning of each round, as in a local run.
    reports = {
        step for step in range(1, rounds * batches) if step % batches % hp.reporting_period == 0
    }
    if isinstance(oracle, PeopleOracle):
        oracle.reopen()
    try:
        pytorch.Trainer(trial, context).fit(
            max_length=pytorch.Epoch(rounds),
            validation_period=pytorch.Epoch(1),
            checkpoint_period=pytorch.Epoch(1),
            checkpoint_policy="none",
            reporting_period=pytorch.Batch(reports),
            latest_checkpoint=resumed,
        )
    except AwaitingLabelsError:
        assert questions is not None
        tables = {
            names.METRICS: trial.reporter.metrics.to_csv(),
            names.DESCRIPTION: description.to_json(),
        }
        questions.ask(trial.latest_checkpoint, learner.step, tables)


# --- where a trial starts from ---------------------------------------------------------------


def _restore(trial: ActiveLearningTrial, checkpoint: str | None) -> str | None:
    """Put the learner where `checkpoint` has it.

    A checkpoint of another trial is a warm start. It gives its backbone and nothing else: its
    labels belong to another trial's pool and budget, and its optimizer to other settings.

    Returns:
        The checkpoint that the Trainer continues from; None where training begins.
    """
    if checkpoint is None:
        return None
    learner = trial.learner
    with trial.core.checkpoint.restore_path(
        checkpoint, core.DownloadMode.LocalWorkersShareDownload, selector=RESTORED.__contains__
    ) as folder:
        if (folder / names.BACKBONE).exists():
            learner.start_from(read_backbone(folder / names.BACKBONE, learner.network))
            return None
        if (folder / names.UNFINISHED_BACKBONE).exists():
            if learner.pretraining is not None:
                learner.pretraining.load((folder / names.UNFINISHED_BACKBONE).read_bytes())
            return None
        before, content = read_description(folder)
        if content["origin"] != trial.origin:
            _start_warm(trial, folder, content)
            return None
        difference = before.difference(trial.description, MAY_CHANGE)
        if difference is not None:
            raise UserError(f"checkpoint {checkpoint}: {difference}; continue with the same")
        trial.reporter.metrics = restore_checkpoint(folder, learner)
    if trial.ranks.rank == 0:
        logger.info("resuming from checkpoint %s, step %d", checkpoint, learner.step)
    return checkpoint


def _start_warm(trial: ActiveLearningTrial, folder: Path, content: Mapping[str, Any]) -> None:
    prefix = "backbone."
    weights = {
        name.removeprefix(prefix): value
        for name, value in read_tensors(folder / names.WEIGHTS).items()
        if name.startswith(prefix)
    }
    try:
        trial.learner.start_from(weights)
    except RuntimeError as error:
        raise UserError(
            f"searcher.source_checkpoint_uuid: its network is not a "
            f"{trial.learner.hp.architecture} for such images; name a checkpoint of one, or none"
        ) from error
    if trial.ranks.rank == 0:
        logger.warning(
            "warm start: the backbone comes from trial %s and has seen %s labels there; this "
            "trial begins with none, so its learning curve does not compare with others",
            content["origin"].get("trial_id", "of a local run"),
            content["progress"]["labeled_samples"],
        )


def _report_pretraining(trial: ActiveLearningTrial, metrics: dict[str, float]) -> bool:
    """Report self-supervision, and store its state now and then; False if a pause is asked for."""
    learner, pretraining = trial.learner, trial.learner.pretraining
    assert pretraining is not None
    if trial.ranks.rank == 0:
        logger.info(
            "learning without labels: step %d of %d, loss %.4f",
            metrics["step"], learner.hp.self_supervised_steps, metrics["loss"],
        )  # fmt: skip
        writer = trial.context.get_tensorboard_writer()
        for name in ("loss", "learning_rate"):
            writer.add_scalar(f"self_supervision/{name}", metrics[name], int(metrics["step"]))
    if pretraining.finished:
        if trial.ranks.rank == 0:
            # Before the checkpoint, after which a restart takes pre-training for finished.
            trial.core.train.report_metrics("self_supervision", 0, metrics)
        content = backbone_bytes(pretraining.backbone, learner.hp, metrics["loss"])
        _store(trial, names.BACKBONE, content)
        return True
    if trial.core.preempt.should_preempt():
        _store(trial, names.UNFINISHED_BACKBONE, pretraining.save())
        return False
    if trial.ranks.rank == 0 and time.monotonic() >= trial.stored_at + STORED_EVERY_SECONDS:
        _store(trial, names.UNFINISHED_BACKBONE, pretraining.save())
    return True


def _store(trial: ActiveLearningTrial, name: str, content: bytes) -> None:
    """Keep `content` as the only file of a checkpoint that lies before the first round."""
    if trial.ranks.rank == 0:
        with trial.core.checkpoint.store_path({"steps_completed": 0}) as (folder, identifier):
            (folder / name).write_bytes(content)
            if trial.questions is not None:
                trial.questions.store(folder)
        trial.latest_checkpoint = identifier
        trial.stored_at = time.monotonic()


# --- mistakes --------------------------------------------------------------------------------


def _check_slots(info: det.ClusterInfo) -> None:
    slots, ranks = sum(info.container_slot_counts), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > max(slots, 1):
        raise UserError(
            f"resources.slots_per_trial: {slots}, and {ranks} processes were started; raise it, "
            "or leave their number to determined.launch.torch_distributed"
        )


@contextlib.contextmanager
def _mistakes_end_the_experiment(master: Master) -> Iterator[None]:
    """For a mistake of the user, log one line, end the whole experiment and exit."""
    try:
        yield
    except UserError as error:
        if _rank() > 0:
            time.sleep(SECONDS_FOR_FIRST_RANK)
        else:
            logger.error("%s", error)
            master.end_experiment(str(error))
        raise SystemExit(USER_ERROR) from error


@contextlib.contextmanager
def _bad_draws_reported(context: pytorch.PyTorchTrialContext) -> Iterator[None]:
    """Let a bad draw of a search end its trial alone."""
    try:
        yield
    except UserError as error:
        if _rank() > 0:
            time.sleep(SECONDS_FOR_FIRST_RANK)
        elif _is_bad_draw(error, context.get_experiment_config()):
            logger.error("%s", error)
            raise det.InvalidHP(str(error)) from error
        raise


def _rank() -> int:
    """This process's number among all of the trial; the launcher sets it for each."""
    return int(os.environ.get("RANK", 0))


def _is_bad_draw(error: UserError, config: Mapping[str, Any]) -> bool:
    """Whether another trial of the search would not meet `error`."""
    searched = {
        name
        for name, value in config["hyperparameters"].items()
        if isinstance(value, dict) and value.get("type", "const") != "const"
    }
    if isinstance(error, DivergedError):
        return bool(searched)
    named = re.match(r"hyperparameters\.(\w+)", str(error))
    return named is not None and named[1] in searched
