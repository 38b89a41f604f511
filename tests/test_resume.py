"""Runs off the cluster that are killed and gone on with: they end as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import processes
from benchmarks.processes import read_rows
from reporting.run_folder import RunFolder
from tests.conftest import small_values

ROUNDS = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings whose checkpoints take a while to write and whose pool takes a while to score.

    Rounds are no multiple of the reports' period, so that a resumed run has to find its beat.
    """
    values = small_values(
        architecture="resnet18",
        rounds=ROUNDS,
        batches_per_round=5,
        reporting_period=2,
        candidate_pool_size=0,
        label_noise=0.2,
        label_noise_kind="confusion",
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
    """A copy of a finished run, to be spoilt."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def resume(run: Path) -> str:
    """Go on with `run` to its end; what was printed."""
    log = run.parent / "resumed.txt"
    log.unlink(missing_ok=True)
    status = processes.wait(processes.start(["--resume", run], log))
    assert status == 0, log.read_text()
    return log.read_text()


def metrics_row(run: Path, round_: int) -> dict[str, str]:
    """The round's row of metrics.csv, without what is yet to come."""
    rows = [row for row in read_rows(run / "metrics.csv") if row["round"] == str(round_)]
    return {name: value for row in rows for name, value in row.items() if value}


def queried(run: Path, round_: int) -> bool:
    return any(row["round"] == str(round_) for row in read_rows(run / "queries.csv"))


def listed(run: Path) -> list[dict[str, Any]]:
    """What checkpoints.json lists, oldest first."""
    try:
        return list(json.loads((run / "checkpoints.json").read_text()))
    except FileNotFoundError:
        return []


def half_written(run: Path) -> bool:
    """Whether a checkpoint is there that is neither listed nor finished with."""
    known = {entry["uuid"] for entry in listed(run)}
    return any(
        folder.name not in known and not (folder / "metadata.json").exists()
        for folder in run.glob("checkpoints/*")
        if (folder / "state_dict.pth").exists()
    )


def as_configured(run: Path) -> bool:
    return (run / "config.yaml").exists()


def training_first_round(run: Path) -> bool:
    return metrics_row(run, 0).get("steps") in ("2", "4")


def writing_first_checkpoint(run: Path) -> bool:
    return not listed(run) and half_written(run)


def scoring_second_round(run: Path) -> bool:
    return len(listed(run)) == 1 and not queried(run, 1)


def second_round_queried(run: Path) -> bool:
    return queried(run, 1) and "steps" not in metrics_row(run, 1)


def second_round_validated(run: Path) -> bool:
    return "val_loss" in metrics_row(run, 1) and len(listed(run)) == 1


def writing_second_checkpoint(run: Path) -> bool:
    return len(listed(run)) == 1 and half_written(run)


def training_last_round(run: Path) -> bool:
    return metrics_row(run, 2).get("steps") in ("12", "14")


# Each with the seconds that pass from its beginning to the kill.
MOMENTS: list[tuple[Callable[[Path], bool], float]] = [
    (as_configured, 0),
    (training_first_round, 0),
    (writing_first_checkpoint, 0),
    (scoring_second_round, 0.1),
    (second_round_queried, 0),
    (second_round_validated, 0),
    (writing_second_checkpoint, 0),
    (training_last_round, 0),
]


def kill_at(
    run: Path, arguments: list[str | Path], moment: Callable[[Path], bool], delay: float
) -> None:
    """Start a process for `run` and kill it when `moment` has come and `delay` seconds gone by."""
    log = run.parent / "log.txt"
    assert not moment(run), f"{moment.__name__} lies behind"
    process = processes.start(arguments, log)
    deadline = time.monotonic() + 120
    while not moment(run):
        assert process.is_alive(), f"{moment.__name__} never came\n{log.read_text()}"
        assert time.monotonic() < deadline, f"{moment.__name__} takes too long"
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    assert processes.wait(process) == -signal.SIGKILL
    assert moment(run), f"{moment.__name__} was over when the signal came"


def test_killed_at_every_kind_of_moment(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments: list[str | Path] = ["--config", config, "--output-dir", run]
    for moment, delay in MOMENTS:
        kill_at(run, arguments, moment, delay)
        arguments = ["--resume", run]
    resume(run)
    assert processes.differences(run, undisturbed) == []
    # Nothing is left over of what the kills cut off.
    written = {folder.name for folder in run.glob("checkpoints/*")}
    assert written == {entry["uuid"] for entry in listed(run)}
    assert not list(run.glob(".*.tmp"))


def learning_without_labels(run: Path) -> bool:
    return (run / "self_supervision.pth").exists() and not (run / "backbone.safetensors").exists()


def learnt_without_labels(run: Path) -> bool:
    return (run / "backbone.safetensors").exists() and not listed(run)


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
    arguments: list[str | Path] = ["--config", config, "--output-dir", undisturbed]
    assert processes.wait(processes.start(arguments, log)) == 0, log.read_text()
    arguments = ["--config", config, "--output-dir", run]
    for moment in (learning_without_labels, learnt_without_labels):
        kill_at(run, arguments, moment, 0)
        arguments = ["--resume", run]
    said = resume(run)
    assert "learning without labels" not in said  # that is done
    assert processes.differences(run, undisturbed) == []
    steps = [row["step"] for row in read_rows(run / "self_supervision.csv")]
    assert steps == [*map(str, range(3, 20, 3)), "20"]
    losses = [(one / "self_supervision.csv").read_bytes() for one in (run, undisturbed)]
    assert losses[0] == losses[1]
    assert not list(run.glob("self_supervision.pth"))


@pytest.mark.parametrize("name", ["state_dict.pth", "trial_state.pkl"])
def test_a_truncated_checkpoint_gives_way_to_the_one_before(
    finished: Path, undisturbed: Path, name: str
) -> None:
    before, last = listed(finished)[-2:]
    file = finished / "checkpoints" / last["uuid"] / name
    os.truncate(file, file.stat().st_size // 2)
    said = resume(finished)
    assert (
        f"checkpoint {last['uuid']} of round 2 is damaged ({name}); trying the one before" in said
    )
    assert f"newest whole checkpoint: {before['uuid']} of round 1" in said
    assert processes.differences(finished, undisturbed) == []
    assert not file.exists()


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
    assert "nothing left to do: the run is finished, 3 of 3 rounds" in said
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_the_last_two_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {"hyperparameters": {}})
    for round_, val_loss in enumerate([0.9, 0.5, 0.7, 0.8, 0.6]):
        written = folder.checkpoints / f"id-{round_}"
        written.mkdir()
        (written / "state_dict.pth").write_bytes(bytes([round_]))
        folder.record_checkpoint(written.name, round_, val_loss)
        assert folder.latest_checkpoint() == written.name
    assert {path.name for path in folder.checkpoints.iterdir()} == {"id-1", "id-3", "id-4"}
    assert [entry["round"] for entry in listed(folder.path)] == [1, 3, 4]
