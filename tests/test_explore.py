"""Data exploration: duplicates and wrong labels planted in images, and the command line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import ImageStore, Splits
from reporting import duplicates
from reporting.duplicates import Pairs, exact_copies, near_copies
from reporting.label_errors import suspected_labels
from run_folder.reader import open_run
from tests.conftest import ROOT
from tools.explore import __main__ as explore
from tools.explore.examine import explore_data
from tools.explore.report import html_report
from tools.explore.tables import text_table


def smooth(count: int, seed: int, channels: int = 3, size: int = 24) -> torch.Tensor:
    """Random images with broad structures, uint8 [count, channels, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(40, 200, (count, channels, 6, 6), generator=generator).float()
    return (
        torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 255).byte()
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def recompressed(image: torch.Tensor) -> torch.Tensor:
    """The image after JPEG and back, brighter by 20."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=80)
    with Image.open(buffer) as again:
        return torch.from_numpy(np.array(again)).permute(2, 0, 1).int().add(20).clamp(0, 255).byte()


def positions(pairs: Pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def standardised(images: torch.Tensor) -> torch.Tensor:
    """All pixels of the images, ready to be correlated."""
    everything = torch.ones(min(images.shape[2], duplicates.SIDE), dtype=torch.bool)
    return duplicates.Standardised([images], everything & everything[:, None])[
        torch.arange(len(images))
    ]


class TestDuplicates:
    def test_equal_bytes_across_splits(self) -> None:
        images = smooth(20, 0)
        splits = [images[:10], images[[10, 3, 11]], images[[11, 3]]]
        assert positions(exact_copies(splits)) == {(3, 11), (12, 13), (3, 14)}

    def test_changed_copies_are_found_and_nothing_else(self) -> None:
        images = smooth(60, 0)
        copies = torch.stack([recompressed(images[i]) for i in (7, 31)])
        found = near_copies([images[:40], images[40:], copies], torch.arange(62), 0.95, generator())
        assert positions(found) == {(7, 60), (31, 61)}
        assert found.similarity.min() > 0.95

    @pytest.mark.parametrize("size", [24, 45])  # below and above the size compared
    @pytest.mark.parametrize("many", [0, 10_000])  # products of all pixels, or pair by pair
    def test_equal_to_all_correlations(
        self, size: int, many: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the components nor the blocks lose a pair."""
        for name, value in {
            "COMPONENTS": 5, "ROWS": 7, "COLUMNS": 16, "BLOCK": 3, "MOST_COPIES": 100,
            "MANY_CANDIDATES": many,
        }.items():  # fmt: skip
            monkeypatch.setattr(duplicates, name, value)
        images = torch.cat([smooth(50, 0, size=size), smooth(50, 0, size=size).flip(3)])
        images = (images // 2 + smooth(1, 5, size=size) // 2).contiguous()  # all somewhat alike
        whole = standardised(images)
        expected = {(i, j) for i, j in ((whole @ whole.T).triu(1) >= 0.6).nonzero().tolist()}
        found = near_copies([images[:30], images[30:]], torch.arange(100), 0.6, generator())
        assert positions(found) == expected
        assert len(expected) > 20

    def test_flat_images_are_like_none(self) -> None:
        images = torch.full((6, 3, 24, 24), 200, dtype=torch.uint8)
        assert len(near_copies([images], torch.arange(6), 0.95, generator())) == 0

    def test_a_common_black_frame_makes_no_images_alike(self) -> None:
        """As in pictures of the retina: a bright disc on black."""
        side = torch.linspace(-1, 1, 24)
        disc = side**2 + side[:, None] ** 2 < 0.8
        texture = torch.nn.functional.interpolate(
            torch.randn(80, 1, 8, 8, generator=generator()), (24, 24), mode="bilinear"
        )
        images = ((130 + 12 * texture) * disc).clamp(0, 255).byte().repeat(1, 3, 1, 1)
        images[79] = (1.2 * images[3].float()).clamp(0, 255).byte()
        whole = standardised(images)
        assert ((whole @ whole.T).triu(1) > 0.95).sum() > 1000
        found = near_copies([images[:40], images[40:]], torch.arange(80), 0.95, generator())
        assert positions(found) == {(3, 79)}

    def test_frames_of_a_film_are_listed_a_few_times_each(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No image loses its copy in another split to its many copies in its own."""
        monkeypatch.setattr(duplicates, "COLUMNS", 16)
        noise = torch.randn(300, 3, 24, 24, generator=generator())
        frames = (smooth(1, 0).float() + 4 * noise).clamp(0, 255).byte()
        splits = [frames[:200], frames[200:250], frames[250:]]
        found = near_copies(splits, torch.arange(300), 0.95, generator())
        of_split = torch.bucketize(found.first, torch.tensor([200, 250]), right=True)
        for image in range(250, 300):
            counts = of_split[found.second == image].bincount(minlength=3).tolist()
            assert counts == [3, 3, min(3, image - 250)]
        assert len(found) < 300 * 3 * 3

    def test_images_of_noise_are_not_compared_pair_by_pair(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compared: list[int] = []
        whole = duplicates._similarity

        def counted(images: duplicates.Standardised, pair: torch.Tensor) -> torch.Tensor:
            compared.append(pair.shape[1])
            return whole(images, pair)

        monkeypatch.setattr(duplicates, "_similarity", counted)
        monkeypatch.setattr(duplicates, "MANY_CANDIDATES", 100)
        noise = torch.randint(0, 256, (300, 3, 24, 24), generator=generator(), dtype=torch.uint8)
        noise[299] = recompressed(noise[5])
        found = near_copies([noise], torch.arange(300), 0.5, generator())
        assert positions(found) == {(5, 299)}
        assert sum(compared) < 2000


class TestSuspectedLabels:
    def test_by_hand(self) -> None:
        probabilities = torch.tensor(
            [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9], [0.45, 0.55]]
        )
        labels = torch.tensor([0, 0, 0, 1, 1, 1])
        # Thresholds 0.6 and 0.683: image 2 reaches that of class 1, image 5 none.
        positions, suggested = suspected_labels(probabilities, labels)
        assert positions.tolist() == [2]
        assert suggested.tolist() == [1]

    def test_planted_errors_come_first(self) -> None:
        labels = torch.arange(300) % 3
        logits = 3.0 * torch.nn.functional.one_hot(labels, 3) + torch.randn(
            300, 3, generator=generator()
        )
        given = labels.clone()
        given[::20] = (given[::20] + 1) % 3
        positions, suggested = suspected_labels(logits.softmax(1), given)
        planted = set(range(0, 300, 20))
        assert len(planted & set(positions[:15].tolist())) >= 12
        right = suggested[:15] == labels[positions[:15]]
        assert right.float().mean() > 0.8

    def test_class_without_images(self) -> None:
        positions, _ = suspected_labels(torch.full((4, 3), 1 / 3), torch.tensor([0, 0, 1, 1]))
        assert positions.tolist() == []


@pytest.fixture(scope="module")
def planted() -> Splits:
    """Three classes; one test image is a training image's copy, labelled otherwise."""
    images, labels = smooth(90, 0), torch.arange(90) % 3
    names = ("one", "two", "<three>")
    test = images[60:].clone()
    test[4] = images[9]
    parts = [(images[:40], labels[:40]), (images[40:60], labels[40:60]), (test, labels[60:])]
    train, val, test_part = (ImageStore(x, y, names) for x, y in parts)
    return Splits("planted", train, val, test_part)


def test_report_without_a_run(planted: Splits) -> None:
    found = explore_data(planted, None)
    (twins,) = found.exact
    assert (twins.first.split, twins.first.index) == ("train", 9)
    assert (twins.second.split, twins.second.index) == ("test", 4)
    assert twins.across
    assert twins.contradictory
    assert found.near == []
    assert found.counts.sum(1).tolist() == [40, 20, 30]
    reds = planted.train.images[:, 0]
    assert found.histograms[0, 0, 100] == int((reds == 100).sum())
    means = planted.train.images[planted.train.labels == 1].double().mean((1, 2, 3))
    assert found.brightness[1, 0].item() == pytest.approx(means.mean().item())
    text = text_table(found, None)
    (row,) = (line for line in text.splitlines() if line.startswith("test, copy in training"))
    assert row.split()[4:] == ["1", "1", "0", "0"]
    html = html_report(found, None)
    assert "&lt;three&gt;" in html
    assert "<three>" not in html
    assert "http" not in html


def test_command_line_on_a_run(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", str(small_run), "--output-dir", str(tmp_path / "new" / "out")]
    assert explore.main(arguments) == 0
    assert "suspected labels, by checkpoint" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "new" / "out" / "exploration.json").read_text("utf-8"))
    run = open_run(small_run)
    sums = [sum(one["images"][split] for one in numbers["classes"]) for split in ("train", "test")]
    assert sums == [len(run.splits.train), len(run.splits.test)]
    suspected = numbers["suspected_labels"]
    assert suspected["suspected"] >= len(suspected["listed"]) > 0
    for one in suspected["listed"]:
        assert one["suggested_probability"] > one["given_probability"]
        labelled = one["split"] == "train" and run.pool.acquired_round[one["index"]] >= 0
        assert one["trained_on"] == bool(labelled)
        assert one["image"] == getattr(run.splits, one["split"]).sources[one["index"]]
    rows = list(csv.DictReader((tmp_path / "new" / "out" / "suspected_labels.csv").open()))
    assert [row["image"] for row in rows[:5]] == [one["image"] for one in suspected["listed"][:5]]
    html = (tmp_path / "new" / "out" / "exploration.html").read_text("utf-8")
    assert html.count("<img") > 10


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert explore.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_refusals(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config" in refused(capsys)
    assert "not a run or checkpoint" in refused(capsys, "--run", str(tmp_path))
    assert "absent.yaml" in refused(capsys, "--config", str(tmp_path / "absent.yaml"))
    other = str(ROOT / "configs" / "quick.yaml")
    assert "is 'pathmnist', and 'digits'" in refused(
        capsys, "--config", other, "--run", str(small_run)
    )
    missing = ["--config", other, "--data-dir", str(tmp_path / "nowhere")]
    config = (ROOT / "configs" / "quick.yaml").read_text("utf-8")
    (tmp_path / "config.yaml").write_text(
        config.replace("dataset: pathmnist", "dataset: folder:absent")
    )
    missing[1] = str(tmp_path / "config.yaml")
    assert "absent" in refused(capsys, *missing)


def test_duplicates_of_a_run_are_those_of_its_data(small_run: Path) -> None:
    run = open_run(small_run)
    with_run, without = explore_data(run.splits, run), explore_data(run.splits, None)
    fields = {field.name for field in dataclasses.fields(with_run)} - {"splits", "suspicions"}
    for name in fields - {"counts", "histograms", "brightness"}:
        assert getattr(with_run, name) == getattr(without, name)
    assert without.suspicions is None
