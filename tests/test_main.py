"""`python model_def.py` and the main job off the cluster, end to end on the bundled digits."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import model_def
from reporting import round_pictures
from tests.conftest import ROOT, SHARED_DATA, SMALL
from training.hyperparameters import Hyperparameters
from training.loading import load_data

SETTINGS = [f"hyperparameters.{name}={value}" for name, value in SMALL.items()]
DIGITS = ["--config", str(ROOT / "configs" / "digits.yaml"), "--set", *SETTINGS]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole run as a user starts it, from another folder; its run folder and its log."""
    run = tmp_path_factory.mktemp("run") / "out"
    done = subprocess.run(
        [sys.executable, ROOT / "model_def.py", *DIGITS, "--output-dir", run],
        cwd=run.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return run, done.stderr


class TestRunFolder:
    def test_metrics_of_every_round(self, finished: tuple[Path, str]) -> None:
        rows = read(finished[0] / "metrics.csv")
        assert [row["round"] for row in rows] == ["0", "1", "2"]
        assert [float(row["labeled_samples"]) for row in rows] == [10, 16, 22]
        assert [row["query_size"] for row in rows] == ["10", "6", "6"]
        assert [row["steps"] for row in rows] == ["3", "6", "9"]
        for row in rows:
            for name in ("train_loss", "val_loss", "test_loss"):
                assert 0 < float(row[name]) < 20
            for name in ("train_accuracy", "val_accuracy", "val_auc", "test_accuracy", "test_auc"):
                assert 0 <= float(row[name]) <= 1
            assert float(row["learning_rate"]) < 1e-3
            queried = sum(int(v) for k, v in row.items() if k.startswith("queried_"))
            assert queried == int(row["query_size"])

    def test_queries_name_images_and_their_true_labels(self, finished: tuple[Path, str]) -> None:
        rows = read(finished[0] / "queries.csv")
        assert [row["round"] for row in rows] == ["0"] * 10 + ["1"] * 6 + ["2"] * 6
        assert len({row["index"] for row in rows}) == 22
        config = yaml.safe_load((finished[0] / "config.yaml").read_text(encoding="utf-8"))
        hp = Hyperparameters.from_mapping(config["hyperparameters"])
        train = load_data(hp).train
        for row in rows:
            assert int(row["label"]) == train.labels[int(row["index"])]
            assert row["class"] == train.class_names[int(row["label"])]
            assert (row["uncertainty"] == "") == (row["round"] == "0")

    @pytest.mark.parametrize(
        "name", ["learning_curve.png", *(f"queried_round_0{r}.png" for r in range(3))]
    )
    def test_pictures_show_something(self, name: str, finished: tuple[Path, str]) -> None:
        pixels = np.asarray(Image.open(finished[0] / name).convert("L"))
        assert min(pixels.shape) > 150
        assert pixels.std() > 10

    def test_checkpoints_are_last_and_best(self, finished: tuple[Path, str]) -> None:
        entries = json.loads((finished[0] / "checkpoints.json").read_text(encoding="utf-8"))
        on_disk = {path.name for path in (finished[0] / "checkpoints").iterdir()}
        assert on_disk == {entry["uuid"] for entry in entries}
        losses = [float(row["val_loss"]) for row in read(finished[0] / "metrics.csv")]
        best, last = int(np.argmin(losses)), len(losses) - 1
        assert {best, last} <= {entry["round"] for entry in entries}
        assert len(entries) <= 3

    def test_checkpoint_reads_without_running_code(self, finished: tuple[Path, str]) -> None:
        entry = json.loads((finished[0] / "checkpoints.json").read_text(encoding="utf-8"))[-1]
        folder = finished[0] / "checkpoints" / entry["uuid"]
        assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json", ".csv"}
        state = load_file(folder / "state.safetensors")
        indices = {int(row["index"]) for row in read(finished[0] / "queries.csv")}
        assert set((state["pool.labels"] >= 0).nonzero().flatten().tolist()) == indices

    def test_tensorboard_has_all_groups(self, finished: tuple[Path, str]) -> None:
        events = EventAccumulator(str(finished[0] / "tensorboard"))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert {"test/test_accuracy", "active_learning/labeled_samples"} <= tags
        assert {"validation/val_loss", "training/loss", "learning_curve/aubc"} <= tags
        assert len(list((finished[0] / "tensorboard").iterdir())) == 1

    def test_log_tells_the_rounds_and_the_folder(self, finished: tuple[Path, str]) -> None:
        run, log = finished
        assert f"run folder: {run}" in log
        for line in ("round 0 (1 of 3): 10 labels", "round 2 (3 of 3): 22 labels"):
            assert line in log
        assert "Traceback" not in log
        assert "\r" not in log  # progress bars are for terminals


def test_same_seed_same_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    assert model_def.main([*DIGITS, "--output-dir", str(tmp_path / "again")]) == 0
    for name in ("queries.csv", "metrics.csv"):
        rows = [read(run / name) for run in (finished[0], tmp_path / "again")]
        for row in (*rows[0], *rows[1]):
            row.pop("query_seconds", None)
        assert rows[0] == rows[1]


def test_seed_can_be_a_hyperparameter(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Whatever the experiment's seed is, a trial with the same `seed` draws the same images."""
    settings = ["hyperparameters.rounds=1", "reproducibility.experiment_seed=5"]
    for name, seed in (("a", 0), ("b", 1)):
        arguments = [*DIGITS, *settings, f"hyperparameters.seed={seed}"]
        assert model_def.main([*arguments, "--output-dir", str(tmp_path / name)]) == 0
    drawn = [
        [row["index"] for row in read(run / "queries.csv") if row["round"] == "0"]
        for run in (finished[0], tmp_path / "a", tmp_path / "b")
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_search_draws_one_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rounds of milliseconds leave no time for pictures.
    monkeypatch.setattr(round_pictures, "SHARE", 1e6)
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    names = ("batch_size", "uncertainty_passes", "query_strategy", "rounds")
    plain = {name: value for name, value in SMALL.items() if name not in names}
    config["hyperparameters"] |= {**plain, "dataset": "digits", "batch_size": 8, "rounds": 1}
    config["hyperparameters"] |= {"label_budget": 10, "tensorboard_pictures": True}
    config["searcher"] = {"name": "random", "metric": "val_loss", "max_trials": 4}
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    run = tmp_path / "run"
    with caplog.at_level("INFO"):
        assert model_def.main(["--config", str(file), "--output-dir", str(run)]) == 0
    assert "one sample of the search space, drawn with seed 0: learning_rate: " in caplog.text
    used = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["hyperparameters"]
    assert isinstance(used["learning_rate"], float)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"round/queried", "round/map_of_the_pool"} <= set(events.Tags()["images"])


def test_existing_output_is_not_touched(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished[0].rglob("*")}
    assert model_def.main([*DIGITS, "--output-dir", str(finished[0])]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in finished[0].rglob("*")}


def test_diverged_training_stops_before_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["hyperparameters.learning_rate=10", "hyperparameters.weight_decay=10"]
    changes += ["hyperparameters.batches_per_round=80", "hyperparameters.rounds=2"]
    status = model_def.main([*DIGITS, *changes, "--output-dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert status == 2
    assert "the training loss is nan in round" in error
    assert "learning_rate: 10" in error
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_main_job_falls_back_to_digits_loudly(tmp_path: Path) -> None:
    """With no data and no network; the run itself is stopped once it has begun."""
    command = [sys.executable, "-m", "tools.main_job", "--data-dir", str(tmp_path / "none")]
    command += ["--output-dir", str(tmp_path / "run")]
    environment: dict[str, Any] = {"PATH": "/usr/bin", "https_proxy": "http://127.0.0.1:9"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if "1259 training images of 10 classes" in line:
                break
        process.kill()
    text = "".join(log)
    assert "NO PATHMNIST" in text
    assert "RUNNING ON THE BUNDLED DIGITS" in text
    assert "save it as" in text
    assert "digits: 1259 training images" in text


@pytest.mark.skipif(
    not (SHARED_DATA / "pathmnist_1000").is_dir(), reason="no PathMNIST images here"
)
def test_real_pathmnist_images(tmp_path: Path) -> None:
    settings = [f"hyperparameters.{n}={v}" for n, v in SMALL.items() if n != "image_size"]
    run = tmp_path / "run"
    arguments = ["--config", str(ROOT / "configs" / "quick.yaml"), "--output-dir", str(run)]
    arguments += ["--data-dir", str(SHARED_DATA / "pathmnist_1000"), "--set", *settings]
    assert model_def.main(arguments) == 0
    rows = read(run / "queries.csv")
    with np.load(SHARED_DATA / "pathmnist_1000" / "pathmnist.npz") as arrays:
        labels = arrays["train_labels"].ravel()
    assert [int(row["label"]) for row in rows] == [int(labels[int(row["index"])]) for row in rows]
