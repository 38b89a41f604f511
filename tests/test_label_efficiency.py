"""The label-efficiency benchmark: a tiny real study, its comparison, and its near-duplicates."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import comparison, forecast, label_efficiency
from benchmarks.near_duplicates import with_near_duplicates
from data import ImageStore
from reporting.files import csv_text
from tests.conftest import ROOT, SMALL
from tests.reliability.processes import read_rows

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A study of two strategies and two seeds on the digits, done in two goes; its command."""
    folder = tmp_path_factory.mktemp("study") / "digits"
    values = {**SMALL, "dataset": "digits", "stain_jitter": 0.0}
    values["query_strategy"] = "{vals: [random, margin]}"
    values["seed"] = "{vals: [0, 1]}"
    command = ["--config", str(ROOT / "configs" / "strategies.yaml"), "--output", str(folder)]
    command += ["--set", *(f"hyperparameters.{name}={value}" for name, value in values.items())]
    assert label_efficiency.main(command) == 0
    return folder, command


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_record(folder: Path) -> dict[str, Any]:
    """What study.json says of the settings and the machine."""
    record: dict[str, Any] = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    return record


def with_record(study: tuple[Path, list[str]], folder: Path, record: dict[str, Any]) -> list[str]:
    """Copy the study to `folder` with another study.json; returns the command that continues it."""
    shutil.copytree(study[0], folder)
    (folder / "study.json").write_text(json.dumps(record), encoding="utf-8")
    return [str(folder) if part == str(study[0]) else part for part in study[1]]


class TestStudy:
    def test_every_run_has_its_row(self, study: tuple[Path, list[str]]) -> None:
        rows = read(study[0])
        names = ("all labels", "random", "margin")
        assert {(r["strategy"], r["seed"]) for r in rows} == {(n, s) for n in names for s in "01"}
        for row in rows:
            whole = row["strategy"] == "all labels"
            assert row["labels"] == ("1257 1258 1259" if whole else "10 16 22")
            for column in ("val_accuracy", "test_accuracy", "val_auc", "test_auc"):
                assert len(row[column].split()) == 3

    def test_progress_is_written_down(self, study: tuple[Path, list[str]]) -> None:
        text = (study[0] / "progress.txt").read_text(encoding="utf-8")
        assert "6 of 6 runs are finished" in text

    def test_a_seed_starts_all_strategies_alike(self, study: tuple[Path, list[str]]) -> None:
        first = {
            (row["strategy"], row["seed"]): (
                row["val_accuracy"].split()[0],
                row["val_auc"].split()[0],
            )
            for row in read(study[0])
        }
        for seed in "01":
            assert first["random", seed] == first["margin", seed]
        assert first["random", "0"] != first["random", "1"]

    def test_only_missing_runs_are_done_again(self, study: tuple[Path, list[str]]) -> None:
        folder, command = study
        before = (folder / "runs.csv").read_text(encoding="utf-8")
        kept = before.splitlines()[:-1]
        lost = before.splitlines()[-1].split(",")
        (folder / "runs.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
        assert label_efficiency.main(command) == 0
        after = (folder / "runs.csv").read_text(encoding="utf-8").splitlines()
        assert after[:-1] == kept
        assert after[-1].split(",")[:-2] == lost[:-2]  # all but the seconds

    def test_other_settings_are_refused(
        self, study: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert label_efficiency.main([*study[1], "hyperparameters.learning_rate=0.1"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: hyperparameters.learning_rate: 0.1, but the runs in")
        assert error.count("\n") == 1

    def test_a_hyperparameter_newer_than_the_record_had_its_default(
        self, study: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = read_record(study[0])
        del record["hyperparameters"]["query_growth"]
        command = with_record(study, tmp_path / "older", record)
        assert label_efficiency.main(command) == 0
        assert label_efficiency.main([*command, "hyperparameters.query_growth=2"]) == 2
        assert "hyperparameters.query_growth: 2.0, but the runs in" in capsys.readouterr().err

    def test_another_number_type_is_refused(
        self, study: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = read_record(study[0])
        here = record["dtype"]
        command = with_record(study, tmp_path / "other machine", record | {"dtype": "float16"})
        assert label_efficiency.main(command) == 2
        assert f"precision: {here} on this machine, but the runs" in capsys.readouterr().err

    def test_other_ranges_are_refused(
        self, study: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        setting = "hyperparameters.learning_rate={type: categorical, vals: [1]}"
        assert label_efficiency.main([*study[1], setting]) == 2
        assert "hyperparameters.learning_rate: a range" in capsys.readouterr().err

    def test_comparison_of_it(
        self, study: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert comparison.main([str(study[0]), "--output", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert "digits: digits, 2 seeds" in printed
        assert "| margin | " in printed
        assert "all 1259 labels" in printed
        for name in ("digits_curves", "penalties"):
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def test_versions_are_kept(self, study: tuple[Path, list[str]]) -> None:
        settings = read_record(study[0])
        assert {"torch", "numpy", "python", "device", "cores", "dtype"} <= settings.keys()
        assert not {"seed", "query_strategy", "data_dir"} & settings["hyperparameters"].keys()

    def test_copies_are_part_of_the_settings(
        self, study: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert label_efficiency.main([*study[1], "--copies", "2"]) == 2
        assert "copies: 2, but the runs in" in capsys.readouterr().err
        assert label_efficiency.main([*study[1], "--copies", "0"]) == 2
        assert "--copies 0" in capsys.readouterr().err

    def test_a_part_of_the_pool_in_copies_without_the_upper_line(
        self, study: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = [*study[1], "--no-upper-line", "--originals", "30", "--copies", "2", "--set"]
        command[command.index("--output") + 1] = str(tmp_path / "part")
        command += ["hyperparameters.candidate_pool_size=0", "hyperparameters.seed=0"]
        command += ["hyperparameters.query_strategy=random", "hyperparameters.rounds=2"]
        command += ["hyperparameters.samples_to_label=50", "hyperparameters.label_budget=60"]
        assert label_efficiency.main(command) == 0
        (row,) = read(tmp_path / "part")
        assert (row["strategy"], row["labels"]) == ("random", "10 60")  # 60 images are all
        settings = read_record(tmp_path / "part")
        assert settings["hyperparameters"]["originals"] == 30
        for number, reason in (("1260", "the pool has only 1259 images"), ("-1", "0 or more")):
            command[command.index("--originals") + 1] = number
            command[command.index("--output") + 1] = str(tmp_path / number)
            assert label_efficiency.main(command) == 2
            assert f"--originals {number}: " in (text := capsys.readouterr().err)
            assert reason in text


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """Known answers: accuracies do not change over the rounds, so each is its AUBC.

    Half the 95 % interval of two values that differ by 0.02 is 12.706 * 0.01.
    """
    accuracies = {
        "one": {"margin": (0.80, 0.82), "b": (0.81, 0.85), "a": (0.80, 0.80)},
        "two": {"margin": (0.80, 0.82), "a": (0.79, 0.83)},
    }
    for name, strategies in accuracies.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "study.json").write_text('{"hyperparameters": {"dataset": "made up"}}')
        rows = [
            [strategy, seed, "10 20", f"{one} {one}", "0 0", f"{one} {one}", *"000"]
            for strategy, values in strategies.items()
            for seed, one in enumerate(values)
        ]
        (folder / "runs.csv").write_text(csv_text(label_efficiency.COLUMNS, rows))
    folders = [tmp_path / name for name in accuracies]
    header, rows = comparison.difference_table(folders, "test", "margin")
    assert header == ["strategy", "one, 2 seeds", "two, 2 seeds"]
    assert rows[0] == ["margin", "0.810 ± 0.127", "0.810 ± 0.127"]
    assert rows[1] == ["b", "+0.0200 ± 0.1271", ""]
    assert rows[2] == ["a", "-0.0100 ± 0.1271", "+0.0000 ± 0.1271"]


def test_near_duplicates_differ_slightly_and_keep_their_label() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator)
    # Smooth images, so that a shift by one pixel changes little.
    images = torch.nn.functional.avg_pool2d(images.float(), 5, 1, 2).to(torch.uint8)
    store = ImageStore(images, torch.arange(6) % 2, ("a", "b"))
    larger = with_near_duplicates(store, 5)
    assert len(larger) == 30
    assert larger.labels.tolist() == store.labels.tolist() * 5
    assert torch.equal(larger.images[:6], images)
    for copy in larger.images[6:].split(6):
        difference = (copy.float() - images.float()).abs().mean()
        assert 0 < difference < 30
    assert torch.equal(with_near_duplicates(store, 5).images, larger.images)


def test_forecast_intervals_hold_what_they_promise() -> None:
    """The recorded back-test is what the command finds, and is near 90 % where it has many."""
    recorded = read_rows(RESULTS / "forecast.csv")
    names = list(dict.fromkeys(row["study"] for row in recorded))
    found = [
        dict(zip(forecast.COLUMNS, map(str, row), strict=True))
        for name in names
        for row in forecast.back_test(RESULTS / "label_efficiency" / name)
    ]
    assert found == recorded
    for row in recorded:
        if int(row["forecasts"]) >= 100:
            assert 0.85 < float(row["coverage"]) < 0.95
