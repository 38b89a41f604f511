"""The run folder: made whole, held by one process, and not confused by stray files."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from active_learning import ActiveLearner
from data import Splits
from errors import UserError
from run_folder.checkpoint import restore_checkpoint
from run_folder.description import Goal, RunDescription, read_description
from run_folder.names import OPTIMIZER, WEIGHTS
from run_folder.tables import MetricsTable, queries_csv
from run_folder.writer import RunFolder
from tests.conftest import ask
from tests.reliability.processes import read_rows, same
from training.oracle import SimulatedOracle
from training.pool import Answers, ImageState

Build = Callable[..., ActiveLearner]
CONFIG = {"hyperparameters": {"rounds": 3}}


@pytest.fixture
def description(make_learner: Build, digits: Splits) -> RunDescription:
    return RunDescription.of_trial(make_learner(), digits, Goal())


def test_two_runs_of_one_second_get_two_folders(
    description: RunDescription, tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "quick-20260101-120000"
    folders = [RunFolder.create(path, CONFIG, description, numbered=True) for _ in range(3)]
    names = [folder.path.name.removeprefix(path.name) for folder in folders]
    assert names == ["", "-2", "-3"]
    assert {one.name for one in path.parent.iterdir()} == {one.path.name for one in folders}
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder.create(path, CONFIG, description, numbered=False)


def test_an_empty_folder_that_is_there_is_used(description: RunDescription, tmp_path: Path) -> None:
    RunFolder.check_new(tmp_path)
    folder = RunFolder.create(tmp_path, CONFIG, description, numbered=False)
    assert read_description(folder.path)[0] == description
    with pytest.raises(UserError, match="exists and is not empty"):
        RunFolder.check_new(tmp_path)


def hold(path: str, held: multiprocessing.Queue[bool]) -> None:
    """Lock the run folder at `path`, say so, and wait to be killed."""
    folder, _ = RunFolder.open(Path(path))
    with folder.locked():
        held.put(True)
        multiprocessing.Event().wait()


def test_one_process_works_on_a_run(description: RunDescription, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG, description, numbered=False)
    context = multiprocessing.get_context("spawn")
    held = context.Queue()
    process = context.Process(target=hold, args=(str(folder.path), held))
    process.start()
    assert held.get(timeout=120)
    complaint = rf"--resume .*run: process {process.pid} on .* works on this run; wait"
    with pytest.raises(UserError, match=complaint), folder.locked():
        pass
    process.kill()
    process.join()
    with folder.locked():  # the lock of a process that has died is free
        assert f"process {os.getpid()} on" in (folder.path / ".lock").read_text()


def test_stray_files_among_checkpoints_are_left_alone(
    make_learner: Build, description: RunDescription, tmp_path: Path
) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG, description, numbered=False)
    (folder.checkpoints / ".DS_Store").write_text("x")
    (folder.checkpoints / "mine").mkdir()
    learner = make_learner()
    ask(learner)
    learner.train()
    learner._end_round(0, {"loss": 0.5, "accuracy": 0.5})
    folder.save_checkpoint(learner, MetricsTable(), "")
    folder.restart()
    assert folder.latest_checkpoint() is not None
    assert {".DS_Store", "mine"} <= {one.name for one in folder.checkpoints.iterdir()}


@pytest.mark.parametrize("between_rounds", ["keep", "reset"])
def test_a_checkpoint_restores_everything(
    between_rounds: str,
    make_learner: Build,
    description: RunDescription,
    digits: Splits,
    tmp_path: Path,
) -> None:
    """Also where the oracle has yet to answer: the images asked for and their order stay."""
    folder = RunFolder.create(tmp_path / "run", CONFIG, description, numbered=False)
    learner = make_learner(between_rounds=between_rounds)
    ask(learner)
    learner.train()
    metrics = MetricsTable()
    metrics.add(0, {"val_loss": 0.25, "labeled_samples": 10, "temperature": 1.5})
    learner._end_round(0, {"loss": 0.25, "accuracy": 0.5})
    proposal = learner.propose()
    folder.save_checkpoint(learner, metrics, "round\n")
    checkpoint = folder.latest_checkpoint()
    assert checkpoint is not None
    assert (checkpoint / OPTIMIZER).exists() == (between_rounds == "keep")
    assert os.stat(checkpoint / WEIGHTS).st_mode & 0o044  # others may read it

    restored = make_learner(between_rounds=between_rounds)
    assert restore_checkpoint(checkpoint, restored).rows == metrics.rows
    assert restored.open_proposal is not None
    assert torch.equal(restored.open_proposal.indices, proposal.indices)
    for one in (learner, restored):
        labels = digits.train.labels[proposal.indices]
        one.accept(Answers.all_labelled(proposal.indices, labels, "anna"))
        one.train()
    assert same(restored.network.state_dict(), learner.network.state_dict())
    assert same(restored.state(), learner.state())
    content = json.loads((checkpoint / "run.json").read_text())
    assert content["progress"] == {
        "round": 0, "labeled_samples": 10, "temperature": 1.5, "goal_value": 0.25, "val_loss": 0.25,
    }  # fmt: skip


def test_queries_are_a_table_of_answers(make_learner: Build, tmp_path: Path) -> None:
    learner = make_learner()
    proposal = learner.propose()
    labels = learner.train_store.labels[proposal.indices].clone()
    states = torch.full_like(labels, ImageState.LABELLED)
    labels[1], states[1] = -1, ImageState.SKIPPED_UNUSABLE
    learner.accept(Answers(proposal.indices, labels, states, ("anna",) * len(labels)))
    truth = SimulatedOracle(learner.train_store.labels).truth(torch.arange(120))
    store = learner.train_store
    file = tmp_path / "queries.csv"
    names = tuple("abcdefghij")
    file.write_text(queries_csv(learner.pool, names, store.sources, truth))
    rows = read_rows(file)
    assert [int(row["index"]) for row in rows] == proposal.indices.tolist()
    assert [row["source"] for row in rows] == [store.sources[int(row["index"])] for row in rows]
    assert (rows[1]["label"], rows[1]["class"], rows[1]["skipped"]) == ("", "", "unusable")
    assert {row["annotator"] for row in rows} == {"anna"}
    for row in (rows[0], *rows[2:]):
        assert row["label"] == row["true_label"]
        assert row["class"] == names[int(row["label"])]
    learner.propose()  # replaces the skipped one; what waits for an answer is not in the table
    file.write_text(queries_csv(learner.pool, names, store.sources, None))
    assert len(read_rows(file)) == 10
    assert {row["true_label"] for row in read_rows(file)} == {""}
