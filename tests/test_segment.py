"""`python -m tools.segment`: cells found on drawn smears, crops, table, overlays and bad input."""

from __future__ import annotations

import csv
import dataclasses
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from benchmarks.segmentation import Example, drawn_phases, drawn_smears, matches
from benchmarks.smears import WHITE_KINDS, DrawnCell, Look, draw_smear
from segmentation.cells import (
    WHITE_TO_RED,
    find_all_cells,
    find_phase_cells,
    find_white_cells,
    phase_cell_diameters,
    red_cell_diameters,
    typical_diameter,
)
from segmentation.reading import read
from segmentation.stain import nuclear_stain, optical_density
from tests.conftest import ROOT
from tools import segment

SMALL = Look(height=240, width=320, diameter=60, white=3, red=30)
HALF = Look(height=240, width=320, diameter=85)


def white(truth: Sequence[DrawnCell]) -> list[DrawnCell]:
    return [cell for cell in truth if cell.kind in WHITE_KINDS]


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "cells.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Example]]:
    """A folder of three small smears, and what was drawn on them."""
    folder = tmp_path_factory.mktemp("smears")
    examples = drawn_smears(SMALL, seed=1, images=3)
    for number, (pixels, _) in enumerate(examples):
        Image.fromarray(pixels).save(folder / f"smear_{number}.png")
    return folder, examples


@pytest.mark.parametrize(
    ("changes", "seed"),
    [
        ({"uneven_light": 0.05}, 0),
        ({"uneven_light": 0.4}, 1),
        ({"red": 50}, 2),
        ({"at_edge": True}, 3),
        ({"touching": True}, 4),
        ({"diameter": 45.0, "white": 5, "red": 80}, 5),
    ],
    ids=["plain", "uneven light", "crowded", "at the edge", "touching", "small cells"],
)
def test_white_cells_are_found(changes: dict[str, Any], seed: int) -> None:
    look = dataclasses.replace(HALF, **changes)
    cells = found = regions = 0
    for pixels, truth in drawn_smears(look, seed, images=10):
        result = find_white_cells(optical_density(pixels), look.diameter)
        cells += len(white(truth))
        found += matches(result, white(truth))
        regions += len(result)
    assert found / cells >= 0.95  # the benchmark has the figures of many more images
    assert found / regions >= 0.93


def test_a_smear_without_white_cells_gives_none() -> None:
    for pixels, _ in drawn_smears(dataclasses.replace(HALF, white=0, platelets=8), 6, images=4):
        assert not find_white_cells(optical_density(pixels), 85)


def test_an_empty_field_gives_no_cells() -> None:
    pixels, _ = draw_smear(np.random.default_rng(7), Look(white=0, red=0, platelets=0))
    density = optical_density(pixels)
    assert not find_all_cells(density, 170)
    assert typical_diameter(red_cell_diameters(density)) is None


def test_a_nucleus_of_several_lobes_is_one_cell() -> None:
    generator = np.random.default_rng(8)
    look = dataclasses.replace(HALF, white=1, red=0, platelets=0)
    neutrophils = 0
    while neutrophils < 4:
        pixels, truth = draw_smear(generator, look)
        if truth[0].kind == "neutrophil" and truth[0].box[0] > 0 and truth[0].box[1] > 0:
            neutrophils += 1
            assert len(find_white_cells(optical_density(pixels), look.diameter)) == 1


def test_boxes_lie_on_the_cells() -> None:
    for pixels, truth in drawn_smears(dataclasses.replace(HALF, white=1), seed=9, images=5):
        (cell,) = find_white_cells(optical_density(pixels), 85)
        (drawn,) = white(truth)
        left, top, right, bottom = drawn.box
        assert left - 13 <= cell.box[0] < cell.box[2] <= right + 13
        assert top - 13 <= cell.box[1] < cell.box[3] <= bottom + 13
        assert cell.area <= (cell.box[2] - cell.box[0]) * (cell.box[3] - cell.box[1])


def test_all_cells_adds_the_red_ones() -> None:
    cells = found = regions = 0
    for pixels, truth in drawn_smears(dataclasses.replace(HALF, red=12), seed=10, images=5):
        result = find_all_cells(optical_density(pixels), 85)
        assert {cell.kind for cell in result} == {"white", "other"}
        cells += len(truth)
        found += matches(result, truth)
        regions += len(result)
    assert found / cells >= 0.7  # approximate: cells that overlap may be found as one
    assert found / regions >= 0.9


def test_phase_cells_are_found() -> None:
    cells = found = regions = 0
    for phase, truth in drawn_phases(seed=11, images=5):
        result = find_phase_cells(phase, 60)
        cells += len(truth)
        found += matches(result, truth)
        regions += len(result)
    assert found / cells >= 0.95
    assert found / regions >= 0.95


@pytest.mark.parametrize("diameter", [45, 85])
def test_the_diameter_is_estimated(diameter: int) -> None:
    look = dataclasses.replace(HALF, diameter=diameter, red=12, white=1)
    lone = [
        cell
        for pixels, _ in drawn_smears(look, seed=12, images=5)
        for cell in red_cell_diameters(optical_density(pixels))
    ]
    estimate = typical_diameter(lone)
    assert estimate is not None
    assert WHITE_TO_RED * estimate == pytest.approx(diameter, rel=0.15)
    phases = [d for p, _ in drawn_phases(13, 3) for d in phase_cell_diameters(p)]
    assert typical_diameter(phases) == pytest.approx(60, rel=0.15)


def test_typical_diameter_is_by_area() -> None:
    assert typical_diameter([1.0] * 20 + [9.0, 10.0, 11.0]) == 10.0
    assert typical_diameter([]) is None


def test_uneven_light_is_removed() -> None:
    empty = Look(white=0, red=0, platelets=0, noise=0, uneven_light=0.4)
    pixels, _ = draw_smear(np.random.default_rng(14), empty)
    assert optical_density(pixels).max() < 0.1
    assert -np.log(pixels.min() / pixels.max()) > 0.4


def test_red_cells_have_no_nuclear_stain() -> None:
    look = dataclasses.replace(HALF, white=0, platelets=0, noise=0)
    pixels, _ = draw_smear(np.random.default_rng(15), look)
    density = optical_density(pixels)
    assert density.max() > 0.4
    assert np.percentile(nuclear_stain(density), 99) < 0.1


def test_the_output_folder(smears: tuple[Path, list[Example]], tmp_path: Path) -> None:
    folder, examples = smears
    output = tmp_path / "cells"
    arguments = [str(folder), "--output", str(output), "--cell-diameter", "60", "--size", "32"]
    assert segment.main(arguments) == 0
    rows = rows_of(output)
    assert list(rows[0]) == list(segment.COLUMNS)
    assert sorted(path.name for path in output.iterdir()) == ["cells.csv", "crops", "overlays"]
    files = sorted(path.relative_to(output).as_posix() for path in output.glob("crops/*"))
    assert files == sorted(row["file"] for row in rows)
    truth = sum(len(white(drawn)) for _, drawn in examples)
    assert truth - 1 <= len(rows) <= truth
    for row in rows:
        assert row["kind"] == "white"
        assert row["crop_side"] == "84"  # 1.4 diameters
        with Image.open(output / row["file"]) as crop:
            assert (crop.size, crop.mode) == ((32, 32), "RGB")
            # The middle of the crop is the nucleus: it lets little red light through.
            assert np.asarray(crop)[12:20, 12:20, 0].mean() < 170
        at_edge = {row["left"], row["top"]} & {"0"} or row["right"] == "320"
        assert row["at_edge"] == str(int(bool(at_edge) or row["bottom"] == "240"))
    for number, (pixels, _) in enumerate(examples):
        with Image.open(output / "overlays" / f"smear_{number}.png") as overlay:
            assert overlay.size == (320, 240)
            assert (np.asarray(overlay) != pixels).any()


def test_scale_sets_how_much_a_crop_shows(
    smears: tuple[Path, list[Example]], tmp_path: Path
) -> None:
    common = [str(smears[0] / "smear_0.png"), "--cell-diameter", "60", "--size", "84"]
    for scale in ("1.4", "2.8"):
        output = tmp_path / scale
        assert segment.main([*common, "--output", str(output), "--scale", scale]) == 0
    near, far = (rows_of(tmp_path / scale)[0] for scale in ("1.4", "2.8"))
    assert (near["crop_side"], far["crop_side"]) == ("84", "168")
    with Image.open(tmp_path / "2.8" / far["file"]) as image:
        middle = np.asarray(image.crop((21, 21, 63, 63)).resize((84, 84)), dtype=float)
    with Image.open(tmp_path / "1.4" / near["file"]) as image:
        assert np.abs(middle - np.asarray(image, dtype=float)).mean() < 12


def test_phase_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phases = np.stack([phase for phase, _ in drawn_phases(seed=16, images=2)])
    np.save(tmp_path / "one.npy", phases[0])
    with h5py.File(tmp_path / "cellai.h5", "w") as file:
        file["phase/images"] = phases
        file["amplitude/images"] = np.ones_like(phases)
    output = tmp_path / "cells"
    inputs = [str(tmp_path / "one.npy"), str(tmp_path / "cellai.h5")]
    assert segment.main([*inputs, "--output", str(output)]) == 0
    assert "is an estimate from" in capsys.readouterr().err
    rows = rows_of(output)
    assert {row["image"] for row in rows} == {"one", "cellai_0000", "cellai_0001"}
    boxes = {
        name: [r["left"] for r in rows if r["image"] == name] for name in ("one", "cellai_0000")
    }
    assert boxes["one"] == boxes["cellai_0000"]
    with Image.open(output / rows[0]["file"]) as crop:
        assert crop.mode == "L"


def test_files_of_the_same_name_stay_apart(
    smears: tuple[Path, list[Example]], tmp_path: Path
) -> None:
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "x.png").write_bytes((smears[0] / "smear_0.png").read_bytes())
    output = tmp_path / "cells"
    arguments = ["--output", str(output), "--cell-diameter", "60"]
    assert segment.main([str(tmp_path / "a"), str(tmp_path / "b"), *arguments]) == 0
    assert {row["image"] for row in rows_of(output)} == {"x", "x-2"}


def test_transparency_is_seen_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (smear,) = read([tmp_path / "a.png"])
    assert (smear.pixels[:2] == 0).all()
    assert (smear.pixels[2:] == 255).all()


def make_bad_input(folder: Path, kind: str) -> Path:
    """One input that cannot be segmented."""
    path = folder / {"array": "a.npy", "pickle": "a.npy", "h5": "a.h5"}.get(kind, "a.png")
    if kind == "truncated":
        Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "grey":
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(path)
    elif kind == "text":
        path.write_text("no image")
    elif kind == "empty field":
        Image.fromarray(np.full((64, 64, 3), 210, np.uint8)).save(path)
    elif kind == "array":
        np.save(path, np.zeros((4, 4), np.uint8))
    elif kind == "pickle":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file["phase/images"] = h5py.ExternalLink("other.h5", "x")
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no such file"),
        ("truncated", "unusable image"),
        ("grey", "has no stain"),
        ("text", "unusable image"),
        ("empty field", "no cell that lies alone"),
        ("array", "phases in radians"),
        ("pickle", "cannot be read"),
        ("h5", "no phase images"),
    ],
)
def test_bad_input_is_one_line(
    kind: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_bad_input(tmp_path, kind)
    output = tmp_path / "cells"
    assert segment.main([str(path), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: .*\n", error), error
    assert says in error
    assert str(path) in error
    assert not output.exists()
    assert not (tmp_path / ".cells.partial").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--size", "4"), ("--scale", "0.1"), ("--cell-diameter", "nan"), ("--max-pixels", "0")],
)
def test_bad_settings_are_one_line(
    option: str,
    value: str,
    smears: tuple[Path, list[Example]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = ["--output", str(tmp_path / "cells")]
    assert segment.main([str(smears[0]), *output, option, value]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: {option} {value}: .*\n", error), error


def test_a_large_image_is_refused_before_it_is_decoded(
    smears: tuple[Path, list[Example]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    output = ["--output", str(tmp_path / "cells")]
    assert segment.main([str(smears[0]), *output, "--max-pixels", "1000"]) == 2
    assert "320x240 pixels, more than 1000" in capsys.readouterr().err


def test_an_output_folder_with_files_is_not_touched(
    smears: tuple[Path, list[Example]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("kept")
    assert segment.main([str(smears[0]), "--output", str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_same_seed_draws_the_same_smear() -> None:
    first, second, other = (drawn_smears(SMALL, seed, 1)[0] for seed in (0, 0, 1))
    assert (first[0] == second[0]).all()
    assert first[1] == second[1]
    assert (first[0] != other[0]).any()
    assert dataclasses.asdict(first[1][0])["kind"] in WHITE_KINDS


def test_help_needs_no_scikit_image() -> None:
    code = "import sys, tools.segment; sys.exit('skimage' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
