"""`python -m tools.predict` on a small run: every kind of input, and agreement with evaluation."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from errors import UserError
from run_folder.reader import Run, open_run
from tests.conftest import ROOT
from tools import predict
from tools.image_inputs import ImageBatch
from tools.prediction import outlier_rule, stream
from tools.prediction.predictor import Prediction, Predictor
from tools.prediction.writers import COLUMNS
from training.calibration import fit_temperature
from training.inference import query_passes

Predict = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="module")
def run(small_run: Path) -> Run:
    return open_run(small_run)


@pytest.fixture
def rows(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Predict:
    """Predicts on the small run; the rows of the CSV."""

    def call(*inputs: Path) -> list[dict[str, str]]:
        output = tmp_path_factory.mktemp("predictions") / "rows.csv"
        assert predict.main([str(small_run), *map(str, inputs), "--output", str(output)]) == 0
        with output.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return call


def pictures(run: Run, count: int) -> list[np.ndarray]:
    """The first test images, uint8 [8, 8]."""
    return [image.squeeze(0).numpy() for image in run.splits.test.images[:count]]


def values(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: row[name] for name in row if name not in ("image", "size")} for row in rows]


def test_arrays_files_and_folders_agree(run: Run, rows: Predict, tmp_path: Path) -> None:
    images = pictures(run, 40)  # more than one batch of 32
    folder = tmp_path / "folder" / "below"
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02d}.{'tif' if number % 2 else 'png'}")
    np.savez(tmp_path / "a.npz", test_images=np.stack(images), test_labels=np.arange(40))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = np.stack(images)[..., np.newaxis]
        file["y"] = np.arange(40)
    from_folder = rows(tmp_path / "folder")
    assert from_folder[1]["image"] == str(folder / "01.tif")
    assert {row["size"] for row in from_folder} == {"8x8"}
    both = rows(tmp_path / "a.npz", tmp_path / "b.h5")
    assert both[39]["image"] == f"{tmp_path / 'a.npz'}:test_images[39]"
    assert both[40]["image"] == f"{tmp_path / 'b.h5'}:x[0]"
    assert values(both[:40]) == values(both[40:]) == values(from_folder)
    mixed = rows(folder / "00.png", tmp_path / "b.h5", folder / "01.tif")
    assert values(mixed[:2]) == [values(from_folder)[0]] * 2
    assert values(mixed[-1:]) == values(from_folder)[1:2]


def test_figures_are_those_of_evaluation_and_query(run: Run, rows: Predict, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=run.splits.test.images.squeeze(1).numpy())
    found = rows(tmp_path / "a.npz")
    names = run.splits.class_names
    right = [
        row["class"] == names[label]
        for row, label in zip(found, run.splits.test.labels.tolist(), strict=True)
    ]
    assert np.mean(right) == pytest.approx(run.metrics[run.round]["test_accuracy"])
    embeddings = run.inference.embed(run.splits.test.images, "test")
    val = run.inference.logits(run.inference.embed(run.splits.val.images, "val"))
    temperature = fit_temperature(val, run.splits.val.labels)
    probabilities = (run.inference.logits(embeddings) / temperature).softmax(1)
    masks = query_passes(run.hp, run.inference.network, run.seed, run.round + 1).masks
    assert masks.shape == (run.hp.uncertainty_passes, 64)
    passes = torch.stack([run.inference.network.head(embeddings * mask) for mask in masks])
    mean = passes.softmax(2).mean(0)
    expected = {
        "probability": probabilities.amax(1),
        "uncertainty": torch.special.entr(mean).sum(1),
        **{f"probability_{name}": probabilities[:, c] for c, name in enumerate(names)},
    }
    for column, numbers in expected.items():
        np.testing.assert_allclose(
            [float(row[column]) for row in found], numbers.detach().numpy(), atol=2e-6
        )


def test_outliers_are_far_from_all_labelled_images(run: Run, rows: Predict, tmp_path: Path) -> None:
    np.savez(tmp_path / "val.npz", images=run.splits.val.images.squeeze(1).numpy())
    noise = torch.randint(0, 256, (50, 8, 8), generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "noise.npz", images=noise.byte().numpy())
    val, strange = rows(tmp_path / "val.npz"), rows(tmp_path / "noise.npz")
    flags = [row["outlier"] == "true" for row in val]
    assert np.mean(flags) == pytest.approx(0.05, abs=0.01)
    distances = np.array([float(row["outlier_distance"]) for row in val])
    assert distances[flags].min() > distances[~np.array(flags)].max()
    assert np.mean([row["outlier"] == "true" for row in strange]) > 0.5
    labelled = run.inference.embed(run.splits.train.images[run.pool.labelled], "labelled")
    embeddings = run.inference.embed(run.splits.val.images, "val")
    nearest = torch.cdist(embeddings.double(), labelled.double()).topk(5, largest=False).values
    np.testing.assert_allclose(distances, nearest.mean(1), rtol=1e-3)


def test_what_the_flag_needs_is_kept_and_made_anew_if_damaged(
    small_run: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(small_run, tmp_path / "run"))
    for left in copy.glob("outliers_*"):
        left.unlink()
    Image.fromarray(pictures(run, 1)[0]).save(tmp_path / "a.png")
    output = tmp_path / "rows.csv"
    arguments = [str(copy), str(tmp_path / "a.png"), "--output", str(output)]
    assert predict.main(arguments) == 0
    first = output.read_text()
    (kept,) = copy.glob("outliers_*.safetensors")
    monkeypatch.setattr(outlier_rule, "open_run", gone)
    assert predict.main(arguments) == 0
    assert output.read_text() == first
    kept.write_bytes(kept.read_bytes()[:100])
    monkeypatch.undo()
    assert predict.main(arguments) == 0
    assert output.read_text() == first


def test_output_file_and_what_is_said_of_resizing(
    small_run: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(pictures(run, 1)[0]).resize((48, 64)).save(tmp_path / "large.jpg")
    Image.fromarray(pictures(run, 1)[0]).convert("RGB").save(tmp_path / "small.png")
    output = tmp_path / "out.csv"
    assert predict.main([str(small_run), str(tmp_path), "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "1 of 2 images resized to 8x8 pixels: 48x64 (1)\n"
    with output.open(newline="", encoding="utf-8") as file:
        assert [row["size"] for row in csv.DictReader(file)] == ["48x64", "8x8"]


def test_colour_arrays_of_another_size(run: Run, rows: Predict, tmp_path: Path) -> None:
    grey = np.stack(pictures(run, 4))
    large = grey.repeat(3, axis=1).repeat(3, axis=2)
    np.savez(tmp_path / "a.npz", images=np.stack([large] * 3, axis=-1))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"] = large
    colour, plain = rows(tmp_path / "a.npz"), rows(tmp_path / "b.h5")
    assert values(colour) == values(plain)
    assert {row["size"] for row in colour + plain} == {"24x24"}


def gone(*_: object) -> Run:
    raise UserError("the data set is gone")


def test_without_the_data_set_only_the_outlier_flag_is_missing(
    small_run: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    copy = Path(shutil.copytree(small_run, tmp_path / "run"))
    for left in copy.glob("outliers_*"):
        left.unlink()
    np.savez(tmp_path / "a.npz", images=np.stack(pictures(run, 20)))
    monkeypatch.setattr(outlier_rule, "open_run", gone)
    output = tmp_path / "rows.csv"
    assert predict.main([str(copy), str(tmp_path / "a.npz"), "--output", str(output)]) == 0
    assert "no outlier flag" in caplog.text
    with output.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert {(row["outlier"], row["outlier_distance"]) for row in found} == {("", "")}
    assert all(row["uncertainty"] for row in found)


def test_json_lines_say_the_same_as_the_csv(
    small_run: Path, run: Run, rows: Predict, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack(pictures(run, 12)))
    output = tmp_path / "rows.jsonl"
    assert predict.main([str(small_run), str(tmp_path / "a.npz"), "--output", str(output)]) == 0
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    for line, row in zip(lines, rows(tmp_path / "a.npz"), strict=True):
        assert set(line["probabilities"]) == set(run.class_names)
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        for name in ("image", "class", "size"):
            assert line[name] == row[name]
        assert line["outlier"] == (row["outlier"] == "true")
        for name in ("probability", "uncertainty", "outlier_distance"):
            assert line[name] == pytest.approx(float(row[name]), abs=1e-6)


def test_damaged_files_are_listed_and_the_others_classified(
    small_run: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, image in enumerate(pictures(run, 70)):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    for number in (3, 40):
        whole = (folder / f"{number:02d}.png").read_bytes()
        (folder / f"{number:02d}.png").write_bytes(whole[: len(whole) - 30])
    (folder / "broken.npz").write_bytes(b"no archive")
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    output = tmp_path / "rows.csv"
    arguments = [small_run, folder, folder / "broken.npz", "--output", output]
    assert predict.main(list(map(str, arguments))) == 1
    errors = capsys.readouterr().err
    with output.open(newline="", encoding="utf-8") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    assert names == [str(folder / f"{n:02d}.png") for n in range(70) if n not in (3, 40)]
    for name in ("03.png", "40.png", "broken.npz"):
        assert f"left out: {folder / name}" in errors
    assert "3 files could not be read" in errors
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_rows_are_written_while_images_are_read(run: Run, tmp_path: Path) -> None:
    """Nothing but the open batch is held: a row has been written when the next batch is read."""
    for number in range(100):
        Image.fromarray(pictures(run, 1)[0]).save(tmp_path / f"{number:03d}.png")
    events: list[str] = []

    class Recorder:
        def write(self, predictions: Iterable[Prediction]) -> None:
            events.append(f"{len(list(predictions))} written")

    predictor = Predictor(run, 1.0, None)
    whole = predictor.predict

    def watched(batch: ImageBatch) -> Iterator[Prediction]:
        events.append(f"{len(batch.names)} read")
        return whole(batch)

    predictor.predict = watched  # type: ignore[method-assign]
    files = sorted(tmp_path.glob("*.png"))
    assert stream.predict_files(predictor, files, Recorder(), max_pixels=10**6) == 0
    assert events == ["32 read", "32 written"] * 3 + ["4 read", "4 written"]


def test_table_on_the_terminal(
    small_run: Path, run: Run, rows: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack(pictures(run, 12)))
    assert predict.main([str(small_run), str(tmp_path / "a.npz")]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == list(COLUMNS)
    assert len({len(line) for line in (header, *lines)}) == 1
    assert [line.split() for line in lines] == [
        [row[name] for name in COLUMNS] for row in rows(tmp_path / "a.npz")
    ]


def test_output_that_nobody_reads_any_more_ends_the_work(small_run: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4000, 8, 8), dtype=np.uint8))
    command = f"{sys.executable} -m tools.predict {small_run} {tmp_path / 'a.npz'} | head -1"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == list(COLUMNS)
    assert "Traceback" not in done.stderr


class TestRefusals:
    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> str:
        assert predict.main([str(one) for one in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    def left_out(self, capsys: pytest.CaptureFixture[str], run: Path, file: Path) -> str:
        """What is said of the one unreadable file."""
        assert predict.main([str(run), str(file)]) == 1
        (line,) = (one for one in capsys.readouterr().err.splitlines() if "left out: " in one)
        assert str(file) in line
        return line

    def test_too_many_pixels(
        self, small_run: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Image.fromarray(pictures(run, 1)[0]).save(tmp_path / "a.png")
        arguments = [str(small_run), str(tmp_path / "a.png"), "--max-pixels"]
        assert predict.main([*arguments, "63"]) == 1
        assert "8x8 pixels, more than 63" in capsys.readouterr().err
        assert predict.main([*arguments, "64"]) == 0

    def test_unknown_kind_of_file(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "a.txt").write_bytes(b"text")
        assert "not a kind of file" in self.refused(capsys, small_run, tmp_path / "a.txt")

    @pytest.mark.parametrize(
        ("name", "reason"),
        [("a.png", "unusable image"), ("a.npz", "not a whole .npz"), ("a.h5", "cannot be read")],
    )
    def test_unreadable_files(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        name: str, reason: str,
    ) -> None:  # fmt: skip
        (tmp_path / name).write_bytes(b"nothing of the kind")
        assert reason in self.left_out(capsys, small_run, tmp_path / name)

    def test_nothing_there(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "no such file" in self.refused(capsys, small_run, tmp_path / "absent.png")
        assert "no image in it" in self.refused(capsys, small_run, tmp_path)

    def test_arrays_that_are_no_images(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8)))
        assert "as uint8" in self.left_out(capsys, small_run, tmp_path / "a.npz")
        np.savez(tmp_path / "b.npz", images=np.zeros((2, 8, 8, 4), dtype=np.uint8))
        assert "4 channels" in self.left_out(capsys, small_run, tmp_path / "b.npz")

    def test_floating_point(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Image.fromarray(np.full((9, 9), 0.5, dtype=np.float32)).save(tmp_path / "a.tif")
        assert "8 bits" in self.left_out(capsys, small_run, tmp_path / "a.tif")

    def test_output_into_no_folder(
        self, small_run: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Image.fromarray(pictures(run, 1)[0]).save(tmp_path / "a.png")
        output = tmp_path / "absent" / "out.csv"
        message = self.refused(capsys, small_run, tmp_path / "a.png", "--output", output)
        assert "--output" in message

    def test_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Image.new("L", (8, 8)).save(tmp_path / "a.png")
        assert "not a run or checkpoint" in self.refused(capsys, tmp_path, tmp_path / "a.png")
