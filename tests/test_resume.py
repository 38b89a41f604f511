"""Local runs that are killed and resumed end exactly like a run that was never killed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from active_learning import ActiveLearner
from data import Splits
from run_folder.description import Goal, RunDescription
from run_folder.names import OPTIMIZER
from run_folder.tables import MetricsTable
from run_folder.writer import RunFolder
from tests.conftest import ask, small_values
from tests.kill_points import KillPoint
from tests.reliability import processes

ROUNDS = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rounds are no multiple of the reporting period; resumed runs report at the same steps."""
    values = small_values(
        rounds=ROUNDS,
        batches_per_round=5,
        reporting_period=2,
        candidate_pool_size=0,
        label_noise=0.2,
        label_noise_kind="confusion",
        between_rounds="shrink_and_perturb",
    )
    content = {"hyperparameters": values, "reproducibility": {"experiment_seed": 7}}
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that was never killed."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    process = processes.start(["--config", config, "--output-dir", run], run.parent / "log.txt")
    assert processes.wait(process) == 0, (run.parent / "log.txt").read_text()
    return run


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, for a test to damage."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def resume(run: Path) -> str:
    """Resume `run` to its end; returns what it printed."""
    log = run.parent / "resumed.txt"
    log.unlink(missing_ok=True)
    status = processes.wait(processes.start(["--resume", run], log))
    assert status == 0, log.read_text()
    return log.read_text()


def listed(run: Path) -> list[dict[str, Any]]:
    """What checkpoints.json lists, oldest first."""
    try:
        return list(json.loads((run / "checkpoints.json").read_text()))
    except FileNotFoundError:
        return []


TRAINED = "training.metrics:TrainingMeter.update"  # at each step's end
SCORED = "resnet_custom:SplitNetwork.monte_carlo_logits"  # for each block of candidates
LABELLED = "training.pool:Pool.answer"
SAVED = "run_folder.checkpoint:_save"  # one of a checkpoint's three safetensors files
RENAMED = "os:replace"  # a file written under a temporary name gets its own

# In order: rounds with a checkpoint by then, and where the resumed process is killed. When a
# checkpoint is first removed, and so how many there are then, depends on which round was the best.
KILLS: list[tuple[int | None, KillPoint]] = [
    (0, KillPoint("run_folder.writer:_move_to_free_name")),
    (0, KillPoint("run_folder.writer:_move_to_free_name", where="after")),
    (0, KillPoint(RENAMED, file="run.json")),
    (0, KillPoint(LABELLED)),
    (0, KillPoint(TRAINED, call=2)),
    (0, KillPoint(RENAMED, file="queries.csv")),
    (0, KillPoint(RENAMED, call=2, file="metrics.csv")),  # the first report of training
    (0, KillPoint("active_learning:ActiveLearner.predict", call=2)),
    (0, KillPoint("run_folder.writer:RunFolder.draw_learning_curve", where="after")),
    (0, KillPoint(SAVED)),
    (0, KillPoint(SAVED, call=2)),
    (0, KillPoint("run_folder.writer:folder_digests")),
    (0, KillPoint(RENAMED, file="checkpoints.json")),
    (1, KillPoint("run_folder.writer:RunFolder.save_checkpoint", where="after")),
    (1, KillPoint(SCORED, call=5)),
    (1, KillPoint("active_learning:shrink_and_perturb", where="after")),
    (1, KillPoint(TRAINED)),
    (1, KillPoint(RENAMED, file="queries.csv")),
    (1, KillPoint(TRAINED, call=5, where="after")),
    (1, KillPoint("run_folder.writer:RunFolder.draw_learning_curve", where="after")),
    (1, KillPoint(SAVED, call=2)),
    (1, KillPoint(RENAMED, file="checkpoints.json")),
    (3, KillPoint(TRAINED, call=14)),  # two rounds on
    (None, KillPoint("shutil:rmtree", where="within")),  # of a checkpoint no longer needed
    (None, KillPoint(SAVED, where="after")),
    (None, KillPoint("run_folder.writer:RunFolder.save_checkpoint", where="after")),
]


def test_killed_at_many_points(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log.txt"
    arguments: list[str | Path] = ["--config", config, "--output-dir", run]
    for rounds, point in KILLS:
        process = processes.start(arguments, log, prepare=point.arm)
        assert processes.wait(process) == -signal.SIGKILL, f"{point}\n{log.read_text()}"
        found = max((entry["round"] + 1 for entry in listed(run)), default=0)
        assert rounds in (found, None), str(point)
        if (run / "config.yaml").exists():
            arguments = ["--resume", run]
    resume(run)
    assert processes.differences(run, undisturbed) == []
    # Nothing is left over of what the kills cut off.
    written = {folder.name for folder in run.glob("checkpoints/*")}
    assert written == {entry["uuid"] for entry in listed(run)}
    assert not list(run.glob(".*.tmp"))


def test_killed_before_the_first_round_is_done(tmp_path: Path) -> None:
    values = small_values(
        rounds=2,
        batches_per_round=6,
        reporting_period=3,
        between_rounds="reset",
        self_supervised_steps=20,
        self_supervised_batch_size=64,
    )
    config = tmp_path / "small.yaml"
    content = {"hyperparameters": values, "reproducibility": {"experiment_seed": 7}}
    config.write_text(yaml.safe_dump(content))
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    log = tmp_path / "log.txt"
    # Each with a data folder of its own, because equal runs share their backbone there.
    arguments: list[str | Path] = ["--config", config, "--output-dir", undisturbed]
    arguments += ["--data-dir", tmp_path / "data" / "one"]
    assert processes.wait(processes.start(arguments, log)) == 0, log.read_text()
    arguments = ["--config", config, "--output-dir", run]
    arguments += ["--data-dir", tmp_path / "data" / "other"]
    for point in (
        KillPoint(RENAMED, call=2, where="after", file="self_supervision.pth"),  # not done yet
        KillPoint(TRAINED),  # done, and no checkpoint yet
    ):
        process = processes.start(arguments, log, prepare=point.arm)
        assert processes.wait(process) == -signal.SIGKILL, f"{point}\n{log.read_text()}"
        arguments = ["--resume", run]
    said = resume(run)
    assert "learning without labels" not in said  # that is done
    assert processes.differences(run, undisturbed) == []
    steps = [row["step"] for row in processes.read_rows(run / "self_supervision.csv")]
    assert steps == [*map(str, range(3, 20, 3)), "20"]
    losses = [(one / "self_supervision.csv").read_bytes() for one in (run, undisturbed)]
    assert losses[0] == losses[1]
    assert not list(run.glob("self_supervision.pth"))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def remove_all(file: Path) -> None:
    shutil.rmtree(file.parent)


DAMAGE = (truncate, empty, flip_a_bit, lengthen, Path.unlink, remove_all)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["weights.safetensors", "state.safetensors", "run.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    finished: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    before, last = listed(finished)[-2:]
    damage(finished / "checkpoints" / last["uuid"] / name)
    folder, _ = RunFolder.open(finished)
    with caplog.at_level("INFO"):
        latest = folder.latest_checkpoint()
    assert latest == finished / "checkpoints" / before["uuid"]
    assert f"checkpoint {last['uuid']} of round {ROUNDS - 1} is damaged (" in caplog.text
    assert name in caplog.text
    assert "trying the one before" in caplog.text


def test_a_run_goes_on_from_the_checkpoint_before(finished: Path, undisturbed: Path) -> None:
    before, last = listed(finished)[-2:]
    file = finished / "checkpoints" / last["uuid"] / "weights.safetensors"
    flip_a_bit(file)
    said = resume(finished)
    assert (
        f"checkpoint {last['uuid']} of round {ROUNDS - 1} is damaged (weights.safetensors)" in said
    )
    assert f"newest whole checkpoint: {before['uuid']} of round {ROUNDS - 2}" in said
    assert processes.differences(finished, undisturbed) == []
    assert not file.exists()


def fill_the_disk() -> None:
    """Let no file of this process grow beyond what pictures and weights take: a real error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


def test_a_full_disk_is_told_and_gone_on_from(finished: Path, undisturbed: Path) -> None:
    last = listed(finished)[-1]
    shutil.rmtree(finished / "checkpoints" / last["uuid"])  # so that there is a round to run
    entries = listed(finished)[:-1]
    (finished / "checkpoints.json").write_text(json.dumps(entries))
    log = finished.parent / "full.txt"
    process = processes.start(["--resume", finished], log, prepare=fill_the_disk)
    assert processes.wait(process) == 2, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"error: {finished}: ")
    assert " cannot be written (" in said.splitlines()[-1]
    assert said.endswith(f"resume with: python model_def.py --resume {finished}\n")
    assert listed(finished) == entries
    folder, _ = RunFolder.open(finished)
    assert folder.latest_checkpoint() == finished / "checkpoints" / entries[-1]["uuid"]
    resume(finished)
    assert processes.differences(finished, undisturbed) == []


def test_without_a_whole_checkpoint_there_is_no_going_on(finished: Path) -> None:
    for entry in listed(finished):
        shutil.rmtree(finished / "checkpoints" / entry["uuid"])
    log = finished.parent / "log.txt"
    assert processes.wait(processes.start(["--resume", finished], log)) == 2
    complaint = f"error: --resume {finished}: its checkpoints are missing or damaged"
    assert log.read_text().splitlines()[-1].startswith(complaint)


def test_a_finished_run_has_nothing_left_to_do(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    said = resume(finished)
    assert "nothing left to do: the run is finished after 5 rounds" in said
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_the_last_two_checkpoints_and_the_best_are_kept(
    make_learner: Callable[..., ActiveLearner], digits: Splits, tmp_path: Path
) -> None:
    learner = make_learner(rounds=5)
    description = RunDescription.of_trial(learner, digits, Goal())
    folder = RunFolder.create(tmp_path / "run", {"hyperparameters": {}}, description, False)
    metrics = MetricsTable()
    for round_, val_loss in enumerate([0.9, 0.5, 0.7, 0.8, 0.6]):
        ask(learner)
        learner.train()
        learner._end_round(round_, {"loss": val_loss, "accuracy": 0.5})
        metrics.add(round_, {"val_loss": val_loss})
        folder.save_checkpoint(learner, metrics, "")
        latest = folder.latest_checkpoint()
        assert latest is not None
        assert latest.name == listed(folder.path)[-1]["uuid"]
    entries = listed(folder.path)
    assert [entry["round"] for entry in entries] == [1, 3, 4]
    assert {path.name for path in folder.checkpoints.iterdir()} == {e["uuid"] for e in entries}
    # Nobody continues from the best one, so it has no optimizer's state.
    held = [(folder.checkpoints / e["uuid"] / OPTIMIZER).exists() for e in entries]
    assert held == [False, True, True]


def test_the_best_is_by_the_metric_that_the_run_optimises() -> None:
    entries = [{"val_accuracy": 0.5, "val_loss": 0.1}, {"val_accuracy": 0.9, "val_loss": 0.2}]
    assert Goal("val_accuracy", smaller_is_better=False).best(entries) is entries[1]
    assert Goal().best(entries) is entries[0]
    assert Goal().best([{"val_loss": None}, entries[1]]) is entries[1]
