"""Kinds of input that real users bring and that readers of images get wrong: one test for each.

All of it is generated. Each test's name says the kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pwd
import resource
import struct
import time
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from active_learning import Evaluation
from data import UNLABELLED, ImageStore, Splits, load_splits
from data_sources.disk_images import mapped_images
from data_sources.image_file import BACKGROUND, decode
from data_sources.sources import FileSources
from errors import UserError
from labelling.exchange import answers_from_csv
from labelling.log import Answer, AnswerLog
from labelling.outcome import tally
from labelling.settings import LabellingSettings
from local.observer import LocalObserver
from local.run import Request, run_locally
from query_strategies import STRATEGIES, PoolScores, get_strategy
from run_folder.description import RunDescription
from run_folder.writer import RunFolder
from tests.conftest import ROOT, SMALL
from tests.labelling_runs import made_up_batch, made_up_run
from tools.doubts import held_out_probabilities
from tools.image_inputs import find_inputs, read_batches
from training import experiment_config
from training.hyperparameters import Hyperparameters
from training.seeds import make_generator

SIZE = 8


def load(data_dir: Path, dataset: str = "folder:set", **options: Any) -> Splits:
    usual = {"image_size": SIZE, "validation_fraction": 0.2, "test_fraction": 0.2}
    return load_splits(dataset, data_dir, split_seed=0, **{**usual, **options})


def stores(splits: Splits) -> tuple[ImageStore, ImageStore, ImageStore]:
    return splits.train, splits.val, splits.test


def files(store: ImageStore) -> list[str]:
    return [store.sources[index] for index in range(len(store))]


def all_files(splits: Splits) -> list[str]:
    return sorted(name for store in stores(splits) for name in files(store))


def pixels(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape or (SIZE, SIZE), dtype=np.uint8)


def save(path: Path, seed: int, *shape: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, *shape)).save(path, **options)


def class_folders(root: Path, count: int = 10, names: Sequence[str] = "ab") -> None:
    for label, name in enumerate(names):
        for number in range(count):
            save(root / name / f"{number}.png", 100 * label + number)


def refusal(data_dir: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(data_dir, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("Train", "valid", "TEST"), ("training", "validation", "testing")],
)
def test_folders_of_splits(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for seed, (name, count) in enumerate(zip(names, (7, 3, 4), strict=True)):
        for label in "ab":
            for number in range(count):
                file = tmp_path / "set" / name / label / f"{number}.png"
                save(file, 1000 * seed + 100 * "ab".index(label) + number)
    splits = load(tmp_path)
    assert splits.class_names == ("a", "b")
    assert [len(store) for store in stores(splits)] == [14, 6, 8]
    for name, store in zip(names, stores(splits), strict=True):
        assert all(file.startswith(f"{name}/") for file in files(store))
    assert "as the folders give them" in splits.notes.facts[-1]


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_split_without_a_folder_is_drawn_from_train(tmp_path: Path, missing: str) -> None:
    root = tmp_path / "set"
    class_folders(root / "train")
    other = "test" if missing == "val" else "val"
    for label, name in enumerate("ab"):
        save(root / other / name / "x.png", 5000 + label)
    splits = load(tmp_path)
    assert len(getattr(splits, missing)) == 4
    assert all_files(splits) == sorted(
        [f"train/{c}/{n}.png" for c in "ab" for n in range(10)] + [f"{other}/a/x.png"]
        + [f"{other}/b/x.png"]
    )  # fmt: skip
    assert files(getattr(splits, other)) == [f"{other}/a/x.png", f"{other}/b/x.png"]
    assert "drawn from train" in splits.notes.facts[-1]


def test_a_class_that_is_called_train(tmp_path: Path) -> None:
    for name in ("train", "car"):
        for number in range(5):
            save(tmp_path / "set" / name / f"{number}.png", number + 50 * len(name))
    assert load(tmp_path).class_names == ("car", "train")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train/a", "train/b", "c"), "train, which mean splits, beside c"),
        (("train/a", "train/b", "val/a", "valid/b"), "mean the same split twice"),
        (("val/a", "test/b"), "no folder train"),
        (("train", "test"), "no class folders"),
    ],
)
def test_an_unclear_layout_is_refused(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    for seed, folder in enumerate(folders):
        save(tmp_path / "set" / folder / "x.png", seed)
    assert message in refusal(tmp_path)


def test_folders_below_a_class(tmp_path: Path) -> None:
    class_folders(tmp_path / "set")
    save(tmp_path / "set" / "a" / "patient1" / "left" / "x.png", 900)
    splits = load(tmp_path)
    assert splits.class_names == ("a", "b")
    assert "a/patient1/left/x.png" in all_files(splits)


@pytest.mark.parametrize("ending", ["webp", "jfif", "jpe", "gif", "ppm", "tga", "JPG", "scan", ""])
def test_every_ending_that_pillow_decodes(tmp_path: Path, ending: str) -> None:
    class_folders(tmp_path / "set")
    kind = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "scan": "PNG", "": "PNG"}
    name = f"odd.{ending}" if ending else "odd"
    save(tmp_path / "set" / "a" / name, 900, format=kind.get(ending, ending.upper()))
    splits = load(tmp_path)
    assert f"a/{name}" in all_files(splits)
    assert not splits.notes.warnings


def test_files_that_are_no_images_are_counted_and_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "set")
    for name in ("a/1.dcm", "a/2.dcm", "b/notes.txt", "readme"):
        (tmp_path / "set" / name).write_bytes(b"\x80not an image")
    (warning,) = load(tmp_path).notes.warnings
    assert "4 files left out" in warning
    assert "2 .dcm (such as a/1.dcm)" in warning
    assert "1 .txt (such as b/notes.txt)" in warning
    assert "1 without an ending (such as readme)" in warning


def test_hidden_files_are_skipped_without_a_word(tmp_path: Path) -> None:
    root = tmp_path / "set"
    class_folders(root)
    for name in (
        *("a/._0.png", "a/.DS_Store", "a/Thumbs.db", ".ipynb_checkpoints/x.png", "desktop.ini"),
        *("__MACOSX/a/0.png", "a/.ipynb_checkpoints/0-checkpoint.png"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"hidden")
    splits = load(tmp_path)
    assert splits.class_names == ("a", "b")
    assert len(all_files(splits)) == 20
    assert not splits.notes.warnings


# --- groups ---------------------------------------------------------------------------------------


def patients(root: Path, count: int = 10) -> None:
    """Each patient has three images of class a and two of class b."""
    for patient in range(count):
        for number in range(5):
            name = "ab"[number >= 3]
            save(root / name / f"p{patient:02d}_{number}.png", 10 * patient + number)


def groups_of(store: ImageStore) -> set[str]:
    return {name.split("/")[1][:3] for name in files(store)}


def test_images_of_a_patient_share_a_split(tmp_path: Path) -> None:
    patients(tmp_path / "set")
    splits = load(tmp_path, group_by=r"/(p\d+)_")
    train, val, test = map(groups_of, stores(splits))
    assert (len(train), len(val), len(test)) == (6, 2, 2)
    assert len(train | val | test) == 10
    assert "drawn by group, 10 groups" in splits.notes.facts[-1]
    ungrouped = load(tmp_path)
    assert groups_of(ungrouped.train) & groups_of(ungrouped.val)
    assert "drawn by image; set group_by" in ungrouped.notes.facts[-1]


def test_groups_and_splits_from_a_table(tmp_path: Path) -> None:
    patients(tmp_path / "set", 6)
    split = {"p04": "valid", "p05": "test"}
    rows = [
        (name, name.split("/")[1][:3]) for name in all_files(load(tmp_path))
    ]  # fmt: skip
    table = tmp_path / "set" / "groups.csv"
    table.write_text(
        "file,group,split\n" + "".join(f"{n},{g},{split.get(g, 'train')}\n" for n, g in rows)
    )
    splits = load(tmp_path, group_by="groups.csv")
    assert [sorted(groups_of(store)) for store in stores(splits)] == [
        ["p00", "p01", "p02", "p03"], ["p04"], ["p05"],
    ]  # fmt: skip
    assert not splits.notes.warnings
    table.write_text(table.read_text().replace("p00_0.png,p00,train", "p00_0.png,p00,test"))
    assert "group 'p00' is in two splits" in refusal(tmp_path, group_by="groups.csv")


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("(", "is no regular expression"),
        (r"slide(\d+)", "does not match a/0.png"),
        ("absent.csv", "absent.csv: cannot be read (No such file"),
        ("../out.csv", "must be the name of a CSV file"),
        ("short.csv", "no line for a/1.png"),
        ("twice.csv", "line 3: 'a/0.png' is there twice"),
        ("columns.csv", "columns name; give file"),
        ("split.csv", "line 2: split 'somewhere'"),
    ],
)
def test_groups_that_cannot_be_used(tmp_path: Path, group_by: str, message: str) -> None:
    class_folders(tmp_path / "set")
    tables = {
        "short.csv": "file,group\na/0.png,1\n",
        "twice.csv": "file,group\na/0.png,1\na/0.png,1\n",
        "columns.csv": "name\na/0.png\n",
        "split.csv": "file,split\na/0.png,somewhere\n",
    }
    for name, content in tables.items():
        (tmp_path / "set" / name).write_text(content)
    assert message in refusal(tmp_path, group_by=group_by)


def test_a_table_as_a_spreadsheet_on_windows_writes_it(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", count=6)
    rows = [f"{c}\\{number}.png;p{number}" for c in "ab" for number in range(6)]
    table = "\r\n".join(["File;Group", *rows, ""]).encode("utf-8-sig")
    (tmp_path / "set" / "groups.csv").write_bytes(table)
    splits = load(tmp_path, group_by="groups.csv")
    assert "6 groups" in splits.notes.facts[-1]


# --- where an image came from ---------------------------------------------------------------------


def test_a_file_name_that_is_not_utf_8(tmp_path: Path) -> None:
    class_folders(tmp_path / "set")
    strange = os.path.join(os.fsencode(tmp_path / "set" / "a"), b"caf\xe9.png")
    os.rename(os.fsencode(tmp_path / "set" / "a" / "0.png"), strange)
    splits = load(tmp_path)
    assert r"a/caf\xe9.png" in all_files(splits)
    paths = [s.sources.path(i) for s in stores(splits) for i in range(len(s))]
    assert os.fsdecode(strange) in map(str, paths)
    for name in all_files(splits):
        name.encode()


@pytest.mark.parametrize("name", ["US$_$tile", "a|b", "漢字", "שלום", "x" * 200, "a b", "#<b>&"])
def test_a_class_of_any_name(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path / "set", names="a")
    for number in range(10):
        save(tmp_path / "set" / name / f"{number}.png", 700 + number)
    splits = load(tmp_path)
    assert sorted(splits.class_names) == sorted(["a", name])
    assert f"{name}/3.png" in all_files(splits)


def test_images_of_an_array_are_named_by_their_position(tmp_path: Path) -> None:
    splits = load(tmp_path, "digits")
    assert splits.train.sources[0].startswith("digits:")
    positions = {int(name.split(":")[1]) for name in all_files(splits)}
    assert positions == set(range(1797))
    assert splits.train.sources.path(0) is None


# --- images without a class -----------------------------------------------------------------------


def test_unlabelled_images_beside_class_folders(tmp_path: Path) -> None:
    root = tmp_path / "set"
    class_folders(root)
    for number in range(10):
        save(root / "unlabelled" / f"{number}.png", 300 + number)
        save(root / f"loose{number}.png", 400 + number)
    splits = load(tmp_path, allow_unlabelled=True)
    assert splits.class_names == ("a", "b")
    assert [int((s.labels == UNLABELLED).sum()) for s in stores(splits)] == [12, 4, 4]
    for store in stores(splits):
        for label, name in zip(store.labels.tolist(), files(store), strict=True):
            assert (label == UNLABELLED) == (not name.startswith(("a/", "b/")))
    without = load(tmp_path)
    assert len(all_files(without)) == 20
    assert any("20 images left out" in warning for warning in without.notes.warnings)


def test_nothing_but_unlabelled_images_and_a_list_of_classes(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / "set" / f"{number}.png", number)
    assert "oracle: people, with the class names in classes.txt" in refusal(tmp_path)
    assert "0 class folders" in refusal(tmp_path, allow_unlabelled=True)
    (tmp_path / "set" / "classes.txt").write_text("cat\ndog\n\nbird\n")
    splits = load(tmp_path, allow_unlabelled=True)
    assert splits.class_names == ("cat", "dog", "bird")
    assert [s.labels.unique().tolist() for s in stores(splits)] == [[UNLABELLED]] * 3


def test_a_class_folder_that_is_not_in_the_list(tmp_path: Path) -> None:
    class_folders(tmp_path / "set")
    (tmp_path / "set" / "classes.txt").write_text("A\nb\n")
    assert "folder 'a' is not in the list of classes" in refusal(tmp_path)
    (tmp_path / "set" / "classes.txt").write_text("a\nb\na\n")
    assert "'a' stands twice" in refusal(tmp_path)


def test_accents_as_macos_stores_them(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    class_folders(tmp_path / "set", names="a")
    for number in range(10):
        save(tmp_path / "set" / decomposed / f"{number}.png", 600 + number)
    (tmp_path / "set" / "classes.txt").write_text("café\na\n", encoding="utf-8")
    splits = load(tmp_path)
    assert splits.class_names == ("café", "a")
    assert "café/3.png" in all_files(splits)


def test_classes_that_differ_in_case_or_spaces_only(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", names="ab")
    for number in range(10):
        save(tmp_path / "set" / "B " / f"{number}.png", 600 + number)
    (warning,) = load(tmp_path).notes.warnings
    assert "'B ' and 'b' are two classes" in warning


def test_a_folder_around_the_class_folders(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "images")
    assert "folders below it (a, b); if those are the classes, move them up" in refusal(tmp_path)


# --- small and empty classes ----------------------------------------------------------------------


def test_a_class_with_one_image(tmp_path: Path) -> None:
    class_folders(tmp_path / "set")
    save(tmp_path / "set" / "c" / "0.png", 900)
    splits = load(tmp_path)
    assert "c/0.png" in files(splits.train)
    assert len(splits.notes.warnings) == 2
    assert all("no image of class c" in warning for warning in splits.notes.warnings)


def test_an_empty_class_folder(tmp_path: Path) -> None:
    class_folders(tmp_path / "set")
    (tmp_path / "set" / "c").mkdir()
    splits = load(tmp_path)
    assert splits.class_names == ("a", "b")
    assert splits.notes.warnings == [f"{tmp_path / 'set' / 'c'}: an empty folder, so no class"]


def test_a_class_only_in_test(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        class_folders(tmp_path / "set" / split, names="abc" if split == "test" else "ab")
    splits = load(tmp_path)
    assert splits.class_names == ("a", "b", "c")
    assert any("the network cannot learn it" in warning for warning in splits.notes.warnings)


# --- bit depth and transparency -------------------------------------------------------------------


def png_chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(samples: NDArray[Any], colour: int, transparent: bytes = b"") -> bytes:
    """A PNG with 16 bits a channel, which Pillow reads and does not write."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    key = png_chunk(b"tRNS", transparent) if transparent else b""
    content = png_chunk(b"IHDR", header) + key + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + content + png_chunk(b"IEND", b"")


GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6  # colour types of PNG


def deep(*shape: int) -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 2**16, (SIZE, SIZE, *shape), dtype=np.uint16)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_16_bit_png_is_scaled(tmp_path: Path, channels: tuple[int, ...]) -> None:
    samples = deep(*channels)
    (tmp_path / "x.png").write_bytes(png(samples, COLOUR if channels else GREY))
    image = decode(tmp_path / "x.png", SIZE)
    assert image.is_deep
    np.testing.assert_array_equal(image.pixels.squeeze(), samples >> 8)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_16_bit_tiff_is_scaled(
    tmp_path: Path, order: str, channels: tuple[int, ...], white_is_zero: bool
) -> None:
    tifffile = pytest.importorskip("tifffile")
    if white_is_zero and (channels or order == ">"):
        pytest.skip("no such files, or Pillow does not read them")
    samples = deep(*channels)
    photometric = "rgb" if channels else "miniswhite" if white_is_zero else "minisblack"
    tifffile.imwrite(tmp_path / "x.tif", samples, byteorder=order, photometric=photometric)
    expected = (65535 - samples if white_is_zero else samples) >> 8
    np.testing.assert_array_equal(decode(tmp_path / "x.tif", SIZE).pixels.squeeze(), expected)


@pytest.mark.parametrize("kind", ["float32", "int16", "int32", "uint32", "int8"])
def test_samples_without_a_range_are_refused(tmp_path: Path, kind: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "x.tif", np.ones((SIZE, SIZE), dtype=kind))
    with pytest.raises(UserError, match="choose a window and save it with 8 bits"):
        decode(tmp_path / "x.tif", SIZE)


def transparent_files() -> dict[str, bytes | Image.Image]:
    """The left half transparent, the right half 100 (or 100, 110, 120)."""
    grey = np.full((SIZE, SIZE), 100, dtype=np.uint8)
    grey[:, : SIZE // 2] = 7
    alpha = np.where(grey == 7, 0, 255).astype(np.uint8)
    colour = np.stack([grey, grey + 10 * (alpha > 0), grey + 20 * (alpha > 0)], 2).astype(np.uint8)
    rgba = np.dstack([colour, alpha])
    palette = Image.fromarray(grey).convert("P")
    palette.info["transparency"] = 7
    deep_grey, deep_colour = (samples.astype(np.uint16) * 257 for samples in (grey, colour))
    return {
        "LA": Image.fromarray(np.dstack([grey, alpha])),
        "RGBA": Image.fromarray(rgba),
        "grey with a key": png(deep_grey, GREY, struct.pack(">H", 7 * 257)),
        "colour with a key": png(deep_colour, COLOUR, struct.pack(">HHH", *[7 * 257] * 3)),
        "16-bit RGBA": png(rgba.astype(np.uint16) * 257, COLOUR_ALPHA),
        "palette": palette,
    }


@pytest.mark.parametrize("kind", sorted(transparent_files()))
def test_transparency_shows_the_background(tmp_path: Path, kind: str) -> None:
    content = transparent_files()[kind]
    if isinstance(content, bytes):
        (tmp_path / "x.png").write_bytes(content)
    else:
        content.save(tmp_path / "x.png")
    image = decode(tmp_path / "x.png", SIZE)
    assert image.is_transparent
    assert (image.pixels[:, : SIZE // 2] == BACKGROUND).all()
    right = image.pixels[:, SIZE // 2 :]
    grey = kind in ("LA", "grey with a key")
    expected = [100] if grey else [100] * 3 if kind == "palette" else [100, 110, 120]
    assert (right == expected).all()
    assert right.shape[2] == len(expected)


def test_what_decoding_did_is_noted_and_kept_in_the_cache(tmp_path: Path) -> None:
    class_folders(tmp_path / "set")
    (tmp_path / "set" / "a" / "deep.png").write_bytes(png(deep(), GREY))
    Image.fromarray(pixels(5, SIZE, SIZE, 4)).save(tmp_path / "set" / "b" / "clear.png")
    for _ in range(2):
        facts = " ".join(load(tmp_path).notes.facts)
        assert "1 images of 16 bits a channel scaled" in facts
        assert f"1 transparent images composed on grey level {BACKGROUND}" in facts


# --- limits ---------------------------------------------------------------------------------------


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    class_folders(tmp_path / "set")
    Image.new("1", (600, 500)).save(tmp_path / "set" / "a" / "large.png")
    message = refusal(tmp_path, max_pixels=299_999)
    assert "600x500 pixels, more than 299999" in message
    assert "raise max_pixels" in message
    assert "a/large.png" in all_files(load(tmp_path, max_pixels=300_000))


def bits_png(path: Path, width: int, height: int) -> None:
    """A whole PNG of one bit a pixel, all black, written without an image in memory."""
    row = b"\0" + bytes((width + 7) // 8)
    packer = zlib.compressobj(1)
    content = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data)


@pytest.mark.parametrize("cut", [None, 200])
def test_a_gigapixel_or_truncated_file_costs_one_line_and_little_memory(
    tmp_path: Path, cut: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    class_folders(tmp_path / "set")
    size = (13_000, 13_000) if cut is None else (8_000, 8_000)
    bits_png(tmp_path / "set" / "a" / "x.png", *size)
    if cut is not None:
        os.truncate(tmp_path / "set" / "a" / "x.png", cut)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal(tmp_path)
    assert "x.png: unusable image" in message
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10 < 400  # MiB
    assert not caplog.records


# --- arrays ---------------------------------------------------------------------------------------


def hdf5_set(data_dir: Path) -> None:
    """`hdf5:set`: 20 images a split, of two classes."""
    for number, split in enumerate(("train", "valid", "test")):
        with h5py.File(data_dir / f"set_{split}_x.h5", "w") as file:
            file["x"] = pixels(number, 20, SIZE, SIZE, 3)
        with h5py.File(data_dir / f"set_{split}_y.h5", "w") as file:
            file["y"] = (np.arange(20) % 2).reshape(20, 1, 1, 1)


READERS = {
    "training": lambda data_dir: load(data_dir, "hdf5:set"),
    "prediction": lambda data_dir: predicted(data_dir / "set_train_x.h5"),
}


def external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("x", (20, SIZE, SIZE, 3), "u1", external=[(str(secret), 0, 3840)])


def external_link(file: h5py.File, secret: Path) -> None:
    file["x"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "x")


def soft_link_out(file: h5py.File, secret: Path) -> None:
    file["elsewhere"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/")
    file["x"] = h5py.SoftLink("/elsewhere/x")


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((20, SIZE, SIZE, 3), "u1")
    source = h5py.VirtualSource(str(secret.with_suffix(".h5")), "x", (20, SIZE, SIZE, 3))
    layout[:] = source
    file.create_virtual_dataset("x", layout)


@pytest.mark.parametrize("lead_away", [external_storage, external_link, soft_link_out, virtual])
@pytest.mark.parametrize("reader", sorted(READERS))
def test_hdf5_never_returns_the_bytes_of_another_file(
    tmp_path: Path, lead_away: Any, reader: str
) -> None:
    hdf5_set(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3840))
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = pixels(9, 20, SIZE, SIZE, 3)
    with h5py.File(tmp_path / "set_train_x.h5", "w") as file:
        lead_away(file, secret)
    with pytest.raises(UserError, match=r"(x|elsewhere): its values lie in another file"):
        READERS[reader](tmp_path)


def test_a_soft_link_inside_an_hdf5_file_is_followed(tmp_path: Path) -> None:
    hdf5_set(tmp_path)
    with h5py.File(tmp_path / "set_train_x.h5", "a") as file:
        file.move("x", "inner")
        file["x"] = h5py.SoftLink("/inner")
    assert len(load(tmp_path, "hdf5:set").train) == 20


@pytest.mark.parametrize("layout", [{"chunks": (64, SIZE, SIZE, 3)}, {}])
@pytest.mark.parametrize("reader", sorted(READERS))
def test_images_that_were_never_written_are_refused_before_allocation(
    tmp_path: Path, layout: dict[str, Any], reader: str
) -> None:
    hdf5_set(tmp_path)
    with h5py.File(tmp_path / "set_train_x.h5", "w") as file:
        images = file.create_dataset("x", (40_000_000, SIZE, SIZE, 3), "u1", **layout)
        if layout:
            images[:64] = 1
    with pytest.raises(UserError, match="written"):
        READERS[reader](tmp_path)


def test_label_minus_one_is_unlabelled_for_people_and_an_error_otherwise(tmp_path: Path) -> None:
    hdf5_set(tmp_path)
    with h5py.File(tmp_path / "set_train_y.h5", "r+") as file:
        file["y"][3] = UNLABELLED
    with pytest.raises(UserError, match="label -1, which means an image without a label"):
        load(tmp_path, "hdf5:set")
    train = load(tmp_path, "hdf5:set", allow_unlabelled=True).train
    assert train.labels[3] == UNLABELLED
    assert train.class_names == ("0", "1")
    assert train.sources[3] == "set_train_x.h5:x:3"


def write_arrays(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


def predicted(*paths: Path, channels: int = 3, **options: Any) -> dict[str, NDArray[np.uint8]]:
    """What a network would be given, by name: uint8 [C, S, S]."""
    batches = read_batches(find_inputs(paths), SIZE, channels, 2, **options)
    return {
        name: image.numpy()
        for batch in batches
        for name, image in zip(batch.names, batch.images, strict=True)
    }


@pytest.mark.parametrize("kind", ["npz", "h5"])
@pytest.mark.parametrize(
    ("shape", "count"),
    [((SIZE, SIZE, 3), 1), ((SIZE, SIZE, 1), 1), ((5, SIZE, SIZE), 5), ((3, SIZE, SIZE, 1), 3)],
)
def test_the_shape_of_an_array_tells_how_many_images_it_holds(
    tmp_path: Path, kind: str, shape: tuple[int, ...], count: int
) -> None:
    values = pixels(0, *shape)
    images = predicted(write_arrays(tmp_path / f"a.{kind}", pictures=values))
    assert len(images) == count
    if shape == (SIZE, SIZE, 3):
        (image,) = images.values()
        np.testing.assert_array_equal(image, values.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["npz", "h5"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pixels(0, 3, SIZE, SIZE), "may be three grey images or one colour image"),
        (pixels(0, 5, 3, SIZE, SIZE), "has the channels first"),
        (pixels(0, 5, SIZE, SIZE, 4), "4 channels"),
        (np.zeros((5, SIZE, SIZE), np.uint16), "uint16 of shape"),
        (np.zeros((5, SIZE, SIZE), np.float32), "scaled to 0 to 255"),
    ],
)
def test_arrays_of_unclear_shape_or_type_are_refused(
    tmp_path: Path, kind: str, array: NDArray[Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predicted(write_arrays(tmp_path / f"a.{kind}", pictures=array))


@pytest.mark.parametrize("kind", ["npz", "h5"])
@pytest.mark.parametrize("labels", [(5, 1, 1, 1), (5, 1, 1), (5, SIZE, SIZE)])
def test_labels_beside_images_are_never_predicted(
    tmp_path: Path, kind: str, labels: tuple[int, ...]
) -> None:
    path = write_arrays(
        tmp_path / f"a.{kind}", x=pixels(0, 5, SIZE, SIZE), y=np.zeros(labels, np.uint8)
    )
    assert sorted(predicted(path)) == [f"{path}:x[{i}]" for i in range(5)]
    path = write_arrays(tmp_path / f"b.{kind}", y=np.zeros(labels, np.uint8))
    with pytest.raises(UserError, match="no images"):
        predicted(path)


# --- prediction -----------------------------------------------------------------------------------


def test_prediction_goes_on_after_a_damaged_file(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", count=5)
    os.truncate(tmp_path / "set" / "a" / "2.png", 60)
    (tmp_path / "set" / "broken.h5").write_bytes(b"\x89HDF no more")
    damaged: list[UserError] = []
    paths = (tmp_path / "set", tmp_path / "set" / "broken.h5")
    images = predicted(*paths, on_damage=damaged.append)
    assert len(images) == 9
    assert ["2.png" in str(damaged[0]), "broken.h5" in str(damaged[1])] == [True, True]
    with pytest.raises(UserError, match=r"2\.png"):
        predicted(*paths)


def test_prediction_finds_what_training_would(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "set"
    class_folders(root, count=4)
    save(root / "a" / "odd.webp", 5)
    save(root / "a" / "noending", 6, format="PNG")
    for name in ("._0.png", "__MACOSX/0.png", "a/Thumbs.db"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"hidden")
    (root / "a" / "scan.dcm").write_bytes(b"no image")
    assert sorted(predicted(root)) == sorted(str(root / name) for name in all_files(load(tmp_path)))
    assert "1 files left out" in caplog.text


@pytest.mark.parametrize("read_only", [True, False])
def test_only_training_writes_beside_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    class_folders(tmp_path / "data" / "set")
    before = sorted((tmp_path / "data").rglob("*"))
    predicted(tmp_path / "data" / "set")
    first = load(tmp_path / "data", read_only=read_only).fingerprint()
    assert (sorted((tmp_path / "data").rglob("*")) == before) == read_only
    assert (tmp_path / "home").exists() == read_only
    assert load(tmp_path / "data", read_only=True).fingerprint() == first  # from either cache
    assert (tmp_path / "home").exists() == read_only


def test_file_sources_can_be_taken_apart(tmp_path: Path) -> None:
    sources = FileSources(tmp_path, ("a/0.png", "b/1.png", "c/2.png"))
    part = sources.take(np.array([2, 0]))
    assert [part[0], part[1]] == ["c/2.png", "a/0.png"]
    assert part.path(0) == tmp_path / "c" / "2.png"


# --- other systems and programs -------------------------------------------------------------------


def test_order_of_names_is_that_of_no_locale_and_no_system(tmp_path: Path) -> None:
    """Copies of one set, with accents as macOS or as others write them, split alike."""
    splits = []
    for form in ("NFC", "NFD"):
        for label, name in enumerate(("élan", "f", "Zone", "e")):
            for number in range(6):
                file = unicodedata.normalize(form, f"{name}/{'é' if number % 2 else 'f'}{number}")
                save(tmp_path / form / "set" / f"{file}.png", 100 * label + number)
        splits.append(load(tmp_path / form))
    one, other = splits
    assert one.class_names == ("Zone", "e", "f", "élan")
    assert [files(store) for store in stores(one)] == [files(store) for store in stores(other)]
    assert one.fingerprint() == other.fingerprint()


def test_names_with_characters_of_patterns(tmp_path: Path) -> None:
    class_folders(tmp_path / "set [1]*?", names=("a[0-9]", "{b}"))
    assert load(tmp_path, "folder:set [1]*?").class_names == ("a[0-9]", "{b}")
    source = tmp_path / "source"
    for content in (b"one", b"two"):
        source.write_bytes(content)
        blocks = [pixels(0, 2, SIZE, SIZE, 3)]
        mapped_images([tmp_path], "x [1]", source, (2, SIZE, SIZE, 3), blocks.copy)
    assert sum(path.name.startswith("x [1]") for path in tmp_path.iterdir()) == 1


def test_hdf5_is_read_where_it_cannot_be_locked(tmp_path: Path) -> None:
    """As on network file systems, or while another program holds the lock."""
    hdf5_set(tmp_path)
    with contextlib.ExitStack() as stack:
        for path in tmp_path.glob("*.h5"):
            fcntl.flock(stack.enter_context(path.open("rb")), fcntl.LOCK_EX)
        for read in READERS.values():
            read(tmp_path)


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system of some clusters."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("without_locks")
def test_file_systems_without_locks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class_folders(tmp_path / "data" / "set")
    assert len(all_files(load(tmp_path / "data"))) == 20
    run = tmp_path / "run"
    run.mkdir()
    with RunFolder(run, cast(RunDescription, None)).locked():
        pass
    assert "cannot be locked (No locks available); start no other process" in caplog.text
    with pytest.raises(UserError, match="move the run to a file system that has locks"):
        AnswerLog(made_up_run(tmp_path, 4)).append([Answer("ann", 0, "tumour")])


def test_a_user_without_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers that run under a number of their own."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    class_folders(tmp_path / "data" / "set")
    before = sorted((tmp_path / "data").rglob("*"))
    for _ in range(2):
        assert len(all_files(load(tmp_path / "data", read_only=True))) == 20
    assert sorted((tmp_path / "data").rglob("*")) == before


def test_a_clock_that_goes_backwards_takes_back_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does another time zone: the later line counts."""
    log = AnswerLog(made_up_run(tmp_path, 4))
    for zone, class_name in (("Pacific/Kiritimati", "tumour"), ("Etc/GMT+12", "debris")):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        hour = "10" if class_name == "tumour" else "09"
        line = Answer("ann", 0, class_name, time=f"2026-01-01T{hour}:00:00.000+00:00")
        log.append([line])
    monkeypatch.delenv("TZ")
    time.tzset()
    outcome = tally(made_up_batch(4), log.read(), LabellingSettings()).outcomes[0]
    assert outcome.answer == "debris"


# --- tables that other programs write -------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        "file;label\r\nslide\\00001.png;tumour\r\n;\r\n;\r\n",
        "sep=;\r\nindex;label\r\n1;tumour\r\n",
        "\ufeffindex\tlabel\tnote\r\n1\ttumour\ta, b, c, d\r\n",
        "index,label,,\r1,tumour,,\r",
        'note,"index","label"\n"a; b; c; d",1,tumour\n\n\n',
    ],
)
def test_labels_in_a_table_as_spreadsheets_write_it(table: str) -> None:
    (answer,) = answers_from_csv(table, made_up_batch(4), "zoe")
    assert (answer.image, answer.answer) == (1, "tumour")


def test_the_line_that_is_named_counts_the_hint_for_spreadsheets() -> None:
    with pytest.raises(UserError, match="CSV line 3: class 'stroma'"):
        answers_from_csv("sep=;\nindex;label\n1;stroma\n", made_up_batch(4), "zoe")


def test_groups_whose_names_differ_in_spaces_only_are_one_group(tmp_path: Path) -> None:
    """One patient in two splits would be a leak that nobody sees."""
    class_folders(tmp_path / "set", count=6)
    rows = [f"{c}/{n}.png; p{n // 2}{' ' * (n % 2)}" for c in "ab" for n in range(6)]
    text = "\n".join(["sep=;", "file;group", *rows, ";", ";"])
    (tmp_path / "set" / "groups.csv").write_text(text)
    assert "3 groups" in load(tmp_path, group_by="groups.csv").notes.facts[-1]


def test_a_setting_that_stands_twice(tmp_path: Path) -> None:
    """YAML would take the last one without a word."""
    file = tmp_path / "config.yaml"
    file.write_text("hyperparameters:\n  rounds: 3\n  seed: 1\n  rounds: 5\n")
    with pytest.raises(UserError, match=r"rounds stands twice .* line 4") as caught:
        experiment_config.load(file)
    assert "\n" not in str(caught.value)
    file.write_bytes(b"\xef\xbb\xbfhyperparameters:\r\n  rounds: 3\r\n")  # of Windows' editor
    assert experiment_config.load(file) == {"hyperparameters": {"rounds": 3}}


# --- pixels that other programs write -------------------------------------------------------------


def test_colour_spaces_of_print_become_the_colours_that_a_viewer_shows(tmp_path: Path) -> None:
    colour = Image.new("RGB", (SIZE, SIZE), (200, 30, 60))
    srgb, lab = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    transform = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    in_lab = ImageCms.applyTransform(colour, transform)
    assert in_lab is not None
    for name, picture in {
        "a.jpg": colour.convert("CMYK"),
        "a.tif": colour.convert("CMYK"),
        "b.tif": in_lab,
        "c.jpg": colour.convert("YCbCr"),
        "c.png": colour.quantize(4),
    }.items():
        picture.save(tmp_path / name)
        found = decode(tmp_path / name, SIZE).pixels[3, 3].tolist()
        assert found == pytest.approx([200, 30, 60], abs=2), name


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_scaled_to_full_brightness(tmp_path: Path, bits: int) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) % 2**bits
    packed = np.packbits(
        np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(8, -1), 1
    )
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", 8, 8, bits, GREY, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*c) for c in chunks))
    expected = values * (255 // (2**bits - 1))
    np.testing.assert_array_equal(decode(tmp_path / "x.png", 8).pixels.squeeze(), expected)


ORIENTATION = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    "metadata",
    [
        b"Exif\0\0", b"Exif\0\0no metadata", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30,
        b"Exif\0\0Exif\0\0" + ORIENTATION, b"Exif\0\0" + ORIENTATION[:-9],
    ],
)  # fmt: skip
def test_damaged_metadata_do_not_make_an_image_unusable(tmp_path: Path, metadata: bytes) -> None:
    picture = Image.fromarray(pixels(1, SIZE, SIZE, 3))
    picture.save(tmp_path / "x.jpg", exif=metadata, icc_profile=b"no profile" * 20)
    picture.save(tmp_path / "y.jpg")
    found, plain = (decode(tmp_path / name, SIZE).pixels for name in ("x.jpg", "y.jpg"))
    assert any(np.array_equal(np.rot90(found, turns), plain) for turns in range(4))


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 5_000)])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_images_of_one_pixel_and_of_extreme_shape(
    tmp_path: Path, size: tuple[int, int], ending: str
) -> None:
    Image.new("RGB", size, (9, 90, 190)).save(tmp_path / f"x.{ending}")
    found = decode(tmp_path / f"x.{ending}", SIZE).pixels
    assert np.abs(found.astype(int) - [9, 90, 190]).max() <= 2


@pytest.mark.parametrize("ending", ["gif", "webp", "tif", "png"])
def test_moving_pictures_and_files_of_pages_are_refused(tmp_path: Path, ending: str) -> None:
    first, *others = (Image.fromarray(pixels(seed, SIZE, SIZE, 3)) for seed in range(3))
    first.save(tmp_path / f"x.{ending}", save_all=True, append_images=others)
    with pytest.raises(UserError, match="3 pages: save each as a file of its own"):
        decode(tmp_path / f"x.{ending}", SIZE)


# --- arrays of other machines and other codings ---------------------------------------------------


def medmnist(path: Path, labels: NDArray[Any], order: Any = np.ascontiguousarray) -> None:
    images = order(pixels(3, 30, 28, 28, 3))
    names = ("train", "val", "test")
    parts: dict[str, Any] = {f"{name}_images": images for name in names}
    parts |= {f"{name}_labels": labels for name in names}
    np.savez(path, **parts)


CODES = np.arange(30) % 9


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(9)[CODES], "give one label per image"),
        (CODES.astype(float), "dtype float64, beginning [0.0, 1.0, 2.0]; give whole numbers"),
        (CODES.astype("U1"), "dtype <U1, beginning ['0', '1', '2']; give whole numbers"),
        (CODES + 1, "label 9 out of range; number the 9 classes 0 to 8"),
        (CODES.astype(object), "Python objects (a pickle), which are never loaded"),
    ],
)
def test_labels_in_another_coding_are_refused(
    tmp_path: Path, labels: NDArray[Any], message: str
) -> None:
    medmnist(tmp_path / "pathmnist.npz", labels)
    with pytest.raises(UserError) as caught:
        load(tmp_path, "pathmnist", image_size=28)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [">i4", "<u8", "i1"])
def test_arrays_of_other_byte_orders_and_memory_layouts(tmp_path: Path, kind: str) -> None:
    medmnist(tmp_path / "pathmnist.npz", CODES.astype(kind)[:, None], np.asfortranarray)
    train = load(tmp_path, "pathmnist", image_size=28).train
    assert train.labels.tolist() == CODES.tolist()
    np.testing.assert_array_equal(
        train.images.permute(0, 2, 3, 1).numpy(), pixels(3, 30, 28, 28, 3)
    )


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_pool_of_copies_gives_each_image_once(name: str) -> None:
    """Repeated points, none of which is farther from the others, or more uncertain."""
    strategy = get_strategy(name, 10)
    generator = make_generator(0, "scores")
    for points in (torch.tensor([[3.0, 3.0], [7.0, 7.0]]).repeat(25, 1), torch.zeros(50, 2)):
        for probabilities in (
            torch.tensor([1.0, 0.0, 0.0]).expand(4, 50, 3),
            torch.rand(4, 50, 3, generator=generator).softmax(2),
        ):
            scores = PoolScores(torch.arange(100, 150), probabilities, points, points[:4])
            for count in (6, 50):
                picked = strategy.select(scores, count, make_generator(1, "picks")).tolist()
                assert len(set(picked)) == len(picked) == count
                assert set(picked) <= set(range(100, 150))


def test_one_image_for_each_process_is_refused_for_batch_normalisation() -> None:
    hp = Hyperparameters(batch_size=4, self_supervised_batch_size=8)
    hp.check_ranks(2)
    with pytest.raises(UserError, match=r"batch_size: 4 leaves .* one image.* at least 8"):
        hp.check_ranks(4)


def test_doubts_where_one_fold_holds_all_labels_of_a_class() -> None:
    labels = torch.zeros(20, dtype=torch.int64)
    labels[7] = 2
    points = torch.randn(20, 5, generator=make_generator(0, "points"))
    probabilities = held_out_probabilities(points, labels, 3)
    assert torch.allclose(probabilities.sum(1), torch.ones(20, dtype=torch.float64))
    assert probabilities[7].tolist() == [1, 0, 0]


def interrupted_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on `folder`/data that was stopped after its first round; the run's folder."""
    class_folders(folder / "data" / "set", count=30)
    settings = {
        **SMALL, "dataset": "folder:set", "data_dir": str(folder / "data"), "rounds": 2,
        "initial_labeled_size": 8, "samples_to_label": 6, "evaluation_size": 0,
        "candidate_pool_size": 0, "label_budget": 14,
    }  # fmt: skip
    request = Request(
        ROOT / "configs" / "digits.yaml",
        output_dir=folder / "run",
        settings=tuple(f"hyperparameters.{name}={value}" for name, value in settings.items()),
    )
    evaluated = LocalObserver.evaluated

    def stop(observer: LocalObserver, evaluation: Evaluation) -> None:
        evaluated(observer, evaluation)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalObserver, "evaluated", stop)
        with pytest.raises(KeyboardInterrupt):
            run_locally(request)
    return folder / "run"


def test_a_run_whose_folder_and_data_were_moved_and_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted_run(tmp_path, monkeypatch)
    moved, data = tmp_path / "elsewhere" / "new [name]", tmp_path / "moved data"
    moved.parent.mkdir()
    run.rename(moved)
    (tmp_path / "data").rename(data)
    monkeypatch.chdir(moved.parent)
    request = Request(Path("unused"), resume=Path(moved.name))
    with pytest.raises(UserError, match="cannot be read"):
        run_locally(request)
    assert run_locally(dataclasses.replace(request, data_dir=data)) == 0
    assert (moved / "queried_round_01.png").exists()


def test_a_run_whose_configuration_or_data_changed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted_run(tmp_path, monkeypatch)
    request = Request(Path("unused"), resume=run)
    config = run / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("samples_to_label: 6", "samples_to_label: 5"))
    with pytest.raises(UserError, match="samples_to_label was 6 and is 5 now; resume with what"):
        run_locally(request)
    config.write_text(text)
    save(tmp_path / "data" / "set" / "a" / "new.png", 999)
    with pytest.raises(UserError, match="the data's fingerprint was"):
        run_locally(request)
    (tmp_path / "data" / "set" / "a" / "new.png").unlink()
    # As if a newer version, which has one more setting, took over the run.
    description = run / "run.json"
    content = json.loads(description.read_text())
    del content["settings"]["tf32"]
    description.write_text(json.dumps(content))
    assert run_locally(request) == 0
