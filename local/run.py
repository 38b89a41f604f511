"""Runs, or resumes, a trial on this machine. `active_learning.run` is the loop."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from active_learning import ActiveLearner, run
from data import ImageStore, Splits
from errors import AWAITING_LABELS, OK, UserError
from labelling.oracle import PeopleOracle
from local import process_group
from local.observer import LocalObserver
from reporting.run_progress import progress_bar
from reporting.start import log_start
from run_folder.checkpoint import restore_checkpoint
from run_folder.description import Goal, RunDescription
from run_folder.names import BACKBONE, UNFINISHED_BACKBONE
from run_folder.writer import RunFolder, default_path
from training.backbone_cache import backbone_folder
from training.backbone_file import read_backbone
from training.compilation import check_compilation
from training.devices import check_devices
from training.experiment_config import drawn_config, load, override
from training.hyperparameters import Hyperparameters
from training.loading import evaluated_part, load_data
from training.oracle import Oracle, SimulatedOracle
from training.ranks import Ranks
from training.search_rules import check_search
from training.threads import adapt_to_other_runs, choose_threads

logger = logging.getLogger("active_learning")


@dataclass(frozen=True)
class Request:
    """What the command line asks for: a new run of `config`, or to resume the run at `resume`.

    data_dir: in place of hyperparameters.data_dir.
    output_dir: the run folder to make.
    settings: NAME=VALUE texts that change the configuration.
    wait: with oracle: people, stay until a round is labelled instead of ending.
    """

    config: Path
    resume: Path | None = None
    data_dir: Path | None = None
    output_dir: Path | None = None
    settings: tuple[str, ...] = ()
    wait: bool = False


def run_locally(request: Request) -> int:
    """Do what `request` asks for; the exit status, `AWAITING_LABELS` where people have to label.

    Raises:
        UserError: a mistake of the user, before any training, or one that ends the training.
    """
    check_devices(os.environ, 0, process_group.processes_on_this_machine())
    choose_threads()
    ranks, device = process_group.join()
    try:
        with contextlib.ExitStack() as cleanup:
            status = _run(request, ranks, device, cleanup)
    except UserError as error:
        if ranks.size > 1:
            process_group.fail_together(error, ranks)
        raise
    process_group.leave()
    return status


def _run(
    request: Request, ranks: Ranks, device: torch.device, cleanup: contextlib.ExitStack
) -> int:
    first = ranks.rank == 0
    folder: RunFolder | None = None
    checkpoint: Path | None = None
    if request.resume is not None:
        folder, config = RunFolder.open(request.resume)
        checkpoint = folder.latest_checkpoint(log=first)
        if _has_ended(folder, first):
            return OK
        if first:
            cleanup.enter_context(folder.locked())
    else:
        config = _new_config(request, first)
    hp = Hyperparameters.from_mapping(config["hyperparameters"])
    hp.check_ranks(ranks.size)
    if hp.compile:
        check_compilation(device)
    if hp.oracle == "people" and request.wait and ranks.size > 1:
        raise UserError(
            f"--wait: {ranks.size} processes cannot wait for people; leave it out, and resume "
            "when the round is labelled"
        )

    splits = load_data(hp, request.data_dir)
    learner = make_learner(hp, splits, config, ranks, device)
    description = RunDescription.of_trial(learner, splits, Goal.of_config(config))
    if folder is not None:
        _check_same_run(folder, description)
    elif first:
        path = request.output_dir or default_path(request.config)
        folder = RunFolder.create(path, config, description, request.output_dir is None)
        cleanup.enter_context(folder.locked())
    # The first rank alone looks after the folder; the others hear from it.
    path = process_group.from_first_rank(folder.path if folder else Path(), ranks)

    val, test = (evaluated_part(split, hp.evaluation_size) for split in (splits.val, splits.test))
    oracle: Oracle
    truth: Tensor | None
    if hp.oracle == "people":
        share = functools.partial(process_group.from_first_rank, ranks=ranks)
        oracle = PeopleOracle(path, learner, splits, first, share, request.wait)
        labelled_val = oracle.labelled_validation(val)
        if labelled_val is None:
            return _awaiting_labels(path, first)
        val, truth = labelled_val, oracle.truth
    else:
        oracle = SimulatedOracle.of_trial(learner, splits.train)
        truth = oracle.truth(torch.arange(len(splits.train)))
    val, test = val.to(device), test.to(device)
    observer = LocalObserver(learner, splits, val, test, truth, folder if first else None, ranks)
    cleanup.callback(observer.close)
    checkpoint = process_group.from_first_rank(checkpoint, ranks)
    if checkpoint is not None:
        observer.resume_with(restore_checkpoint(checkpoint, learner))
    else:
        _restore_pretraining(learner, path)
    if first:
        assert folder is not None
        folder.restart()
        log_start(learner, splits, len(val), len(test))
        logger.info("run folder: %s", path)
    learner.train_network = process_group.parallel(learner.network, ranks, device)
    adapt_to_other_runs()  # those that were started at the same time
    return _train(learner, oracle, val, test, observer, path, first)


def _train(
    learner: ActiveLearner,
    oracle: Oracle,
    val: ImageStore,
    test: ImageStore,
    observer: LocalObserver,
    path: Path,
    first: bool,
) -> int:
    """Run the loop as far as it goes; the exit status."""
    reason = learner.stop_reason
    if reason is not None:
        # Killed after the last checkpoint, before run.json said that it was the last.
        observer.finished(reason)
        if first:
            logger.info("nothing left to do: the run is finished (%s)", reason.text)
        return OK
    if isinstance(oracle, PeopleOracle):
        oracle.reopen()
    try:
        for evaluation in run(learner, oracle, val, test, observer):
            observer.evaluated(evaluation)
    except KeyboardInterrupt:
        if first:
            logger.info("stopped; resume with: python model_def.py --resume %s", path)
        raise
    if not learner.finished:
        return _awaiting_labels(path, first)
    if first:
        logger.info("finished: %s", path)
    return OK


def _new_config(request: Request, first: bool) -> dict[str, Any]:
    """The configuration of a new run, with one value for everything that a search would vary."""
    config = load(request.config)
    # Before --set: one sample of a search may well be shorter than the search.
    check_search(config)
    config = drawn_config(override(config, request.settings), log=first)
    if request.data_dir is not None:
        config["hyperparameters"]["data_dir"] = str(request.data_dir)
    if request.output_dir is not None:
        RunFolder.check_new(request.output_dir)
    return config


def _has_ended(folder: RunFolder, first: bool) -> bool:
    end = folder.end()
    if end is not None and first:
        logger.info(
            "nothing left to do: the run is finished after %d rounds (%s)",
            end["rounds"], end["reason"],
        )  # fmt: skip
    return end is not None


def _check_same_run(folder: RunFolder, description: RunDescription) -> None:
    difference = folder.description.difference(description)
    if difference is not None:
        raise UserError(
            f"--resume {folder.path}: {difference}; resume with what the run was started with"
        )


def _awaiting_labels(path: Path, first: bool) -> int:
    if first:
        logger.info(
            "waiting for labels: python -m tools.label %s; then: python model_def.py --resume %s",
            path, path,
        )  # fmt: skip
    return AWAITING_LABELS


def make_learner(
    hp: Hyperparameters,
    splits: Splits,
    config: Mapping[str, Any],
    ranks: Ranks,
    device: torch.device,
) -> ActiveLearner:
    """The learner of a trial; its seed is `hp.seed`, or the experiment's where that is -1."""
    seed = config["reproducibility"]["experiment_seed"] if hp.seed == -1 else hp.seed
    return ActiveLearner(
        hp,
        splits.train.to(device),
        int(seed),
        ranks,
        progress_bar(ranks),
        backbone_folder(hp),
    )


def _restore_pretraining(learner: ActiveLearner, path: Path) -> None:
    """Continue self-supervision from what the run folder holds of it, if it holds any."""
    if learner.pretraining is None:
        return
    if (path / BACKBONE).exists():
        learner.start_from(read_backbone(path / BACKBONE, learner.network))
    elif (path / UNFINISHED_BACKBONE).exists():
        learner.pretraining.load((path / UNFINISHED_BACKBONE).read_bytes())
