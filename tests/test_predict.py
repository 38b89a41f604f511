"""`python -m tools.predict` on a small run: every kind of input, and agreement with evaluation."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from data import Splits
from errors import UserError
from run_folder import reader
from run_folder.reader import Run, open_model, open_run
from tools import predict
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


def values(rows: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(row["class"], row["probability"], row["uncertainty"]) for row in rows]


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
    probability = run.inference.logits(embeddings).softmax(1).amax(1)
    masks = query_passes(run.hp, run.inference.network, run.seed, run.round + 1).masks
    assert masks.shape == (run.hp.uncertainty_passes, 64)
    passes = torch.stack([run.inference.network.head(embeddings * mask) for mask in masks])
    mean = passes.softmax(2).mean(0)
    entropy = torch.special.entr(mean).sum(1)
    for name, expected in (("probability", probability), ("uncertainty", entropy)):
        np.testing.assert_allclose(
            [float(row[name]) for row in found], expected.detach().numpy(), atol=2e-6
        )


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


def test_no_data_set_is_needed(
    small_run: Path, run: Run, rows: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack(pictures(run, 20)))
    expected = rows(tmp_path / "a.npz")

    def gone(*_: object, **__: object) -> Splits:
        raise UserError("the data set is gone")

    monkeypatch.setattr(reader, "load_data", gone)
    assert rows(tmp_path / "a.npz") == expected


def test_a_folder_that_keeps_no_statistics_needs_its_data_set(
    small_run: Path, run: Run, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(small_run, tmp_path / "run"))
    identity = json.loads((older / "run.json").read_text(encoding="utf-8"))
    del identity["network"]
    (older / "run.json").write_text(json.dumps(identity))
    model = open_model(older)
    assert model.class_names == run.class_names
    assert torch.equal(model.inference.mean, run.inference.mean)
    assert torch.equal(open_model(small_run).inference.std, run.inference.std)


def test_damaged_statistics_are_refused(small_run: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(small_run, tmp_path / "run"))
    identity = json.loads((damaged / "run.json").read_text(encoding="utf-8"))
    for wrong in ({**identity["network"], "mean": [0.5, 0.5]}, {"channels": 1}, 3):
        (damaged / "run.json").write_text(json.dumps({**identity, "network": wrong}))
        with pytest.raises(UserError, match=r"run\.json: damaged"):
            open_model(damaged)


def test_table_on_the_terminal(
    small_run: Path, run: Run, rows: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack(pictures(run, 12)))
    assert predict.main([str(small_run), str(tmp_path / "a.npz")]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == list(predict.COLUMNS)
    assert len({len(line) for line in (header, *lines)}) == 1
    assert [line.split() for line in lines] == [
        list(row.values()) for row in rows(tmp_path / "a.npz")
    ]


class TestRefusals:
    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> str:
        assert predict.main([str(one) for one in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.png", b"no image", "unusable image"),
            ("a.npz", b"no archive", "not a whole .npz"),
            ("a.h5", b"no HDF5", "cannot be read"),
            ("a.txt", b"text", "not a kind of file"),
        ],
    )
    def test_unreadable_files(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        name: str, content: bytes, said: str,
    ) -> None:  # fmt: skip
        (tmp_path / name).write_bytes(content)
        message = self.refused(capsys, small_run, tmp_path / name)
        assert said in message
        assert str(tmp_path / name) in message

    def test_nothing_there(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "no such file" in self.refused(capsys, small_run, tmp_path / "absent.png")
        assert "no image in it" in self.refused(capsys, small_run, tmp_path)

    def test_arrays_that_are_no_images(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8)))
        assert "as uint8" in self.refused(capsys, small_run, tmp_path / "a.npz")
        np.savez(tmp_path / "b.npz", images=np.zeros((2, 8, 8, 4), dtype=np.uint8))
        assert "4 channels" in self.refused(capsys, small_run, tmp_path / "b.npz")

    def test_floating_point(
        self, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Image.fromarray(np.full((9, 9), 0.5, dtype=np.float32)).save(tmp_path / "a.tif")
        assert "8 bits" in self.refused(capsys, small_run, tmp_path / "a.tif")

    def test_output_into_no_folder(
        self, small_run: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Image.fromarray(pictures(run, 1)[0]).save(tmp_path / "a.png")
        output = tmp_path / "absent" / "out.csv"
        message = self.refused(capsys, small_run, tmp_path / "a.png", "--output", output)
        assert "--output" in message

    def test_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Image.new("L", (8, 8)).save(tmp_path / "a.png")
        assert "not a run folder" in self.refused(capsys, tmp_path, tmp_path / "a.png")
