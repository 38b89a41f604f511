"""`folder:NAME`: decoding, splitting, caching, and the files that must not be swallowed."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import Splits, load_splits
from data_sources import image_file, image_folder
from errors import UserError

SIZE = 12


def load(data_dir: Path, image_size: int = SIZE) -> Splits:
    return load_splits(
        "folder:set",
        data_dir,
        image_size=image_size,
        split_seed=0,
        validation_fraction=0.2,
        test_fraction=0.2,
    )


def failure(data_dir: Path) -> str:
    with pytest.raises(UserError) as error:
        load(data_dir)
    message = str(error.value)
    assert "\n" not in message
    return message


def noise(seed: int, *shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape or (SIZE, SIZE), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Two classes of ten grey PNGs each."""
    for seed in range(20):
        save(tmp_path / "set" / "ab"[seed % 2] / f"{seed}.png", noise(seed))
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files decoded so far."""
    names: list[str] = []
    decode = image_file.decode

    def recording(path: Path, size: int, **options: Any) -> Any:
        names.append(path.name)
        return decode(path, size, **options)

    monkeypatch.setattr(image_folder, "decode", recording)
    return names


def pixels_of(splits: Splits) -> dict[bytes, int]:
    """Every image's bytes with its label."""
    stores = (splits.train, splits.val, splits.test)
    return {
        image.numpy().tobytes(): int(label)
        for store in stores
        for image, label in zip(store.images, store.labels, strict=True)
    }


def test_images_keep_their_pixels_and_their_class(data_dir: Path) -> None:
    splits = load(data_dir)
    assert splits.name == "set"
    assert splits.class_names == ("a", "b")
    assert splits.channels == 1
    assert [len(store) for store in (splits.train, splits.val, splits.test)] == [12, 4, 4]
    assert pixels_of(splits) == {noise(seed).tobytes(): seed % 2 for seed in range(20)}


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "tif", "tiff", "bmp", "PNG"])
def test_every_format(data_dir: Path, suffix: str) -> None:
    save(data_dir / "set" / "a" / f"one.{suffix}", noise(99))
    assert len(pixels_of(load(data_dir))) == 21


def test_one_coloured_image_makes_all_three_channels(data_dir: Path) -> None:
    save(data_dir / "set" / "a" / "colour.png", noise(99, SIZE, SIZE, 3))
    splits = load(data_dir)
    assert splits.channels == 3
    pixels = pixels_of(splits)
    assert noise(99, SIZE, SIZE, 3).transpose(2, 0, 1).tobytes() in pixels
    assert noise(0).tobytes() * 3 in pixels


def test_large_images_are_averaged_down(data_dir: Path) -> None:
    for path in data_dir.glob("set/*/*"):
        path.unlink()
    for seed in range(8):
        flat = np.full((640, 480, 3), 20 * seed, dtype=np.uint8)
        save(data_dir / "set" / "ab"[seed % 2] / f"{seed}.jpg", flat)
    splits = load(data_dir)
    assert splits.train.images.shape[1:] == (3, SIZE, SIZE)
    values = {image[0] for image in pixels_of(splits)}
    assert values == {20 * seed for seed in range(8)}


def test_photographs_are_turned_upright(data_dir: Path) -> None:
    image = Image.fromarray(noise(99))
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    image.save(data_dir / "set" / "a" / "turned.png", exif=exif)
    assert noise(99)[::-1, ::-1].tobytes() in pixels_of(load(data_dir))


def test_equal_images_share_a_split(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    for copy in range(8):
        save(data_dir / "set" / "a" / f"copy{copy}.bmp", noise(0))
    splits = load(data_dir)
    holders = [
        store
        for store in (splits.train, splits.val, splits.test)
        if noise(0).tobytes() in {image.numpy().tobytes() for image in store.images}
    ]
    assert len(holders) == 1
    assert not caplog.records


def test_an_image_in_two_classes_is_warned_of(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(data_dir / "set" / "b" / "also.png", noise(0))
    load(data_dir)
    assert "1 images also appear under another class" in caplog.text


# --- what is passed over, and what is refused ---------------------------------------------------


def test_hidden_and_other_files_are_passed_over(data_dir: Path) -> None:
    root = data_dir / "set"
    for name in (".DS_Store", "a/._0.png", "a/notes.txt", "a/Thumbs.db", "labels.csv"):
        (root / name).write_bytes(b"not an image")
    save(root / ".hidden" / "x.png", noise(99))
    (root / "a" / "folder.png").mkdir()
    os.mkfifo(root / "a" / "pipe.png")
    splits = load(data_dir)
    assert splits.class_names == ("a", "b")
    assert len(pixels_of(splits)) == 20


def test_links_inside_are_followed_and_links_out_refused(data_dir: Path, tmp_path: Path) -> None:
    root = data_dir / "set"
    shutil.move(root, tmp_path / "elsewhere")
    root.symlink_to(tmp_path / "elsewhere")  # the folder itself may be a link
    (root / "a" / "again.png").symlink_to(root / "a" / "0.png")
    assert len(load(data_dir).train) > 0
    save(tmp_path / "private" / "x.png", noise(99))
    (root / "c").symlink_to(tmp_path / "private")
    assert "c: link leads out of the data set" in failure(data_dir)
    (root / "c").unlink()
    (root / "a" / "out.png").symlink_to(tmp_path / "private" / "x.png")
    assert "out.png: link leads out of the data set" in failure(data_dir)


@pytest.mark.parametrize("target", ["nowhere", "loop.png"])
def test_broken_links_are_named(data_dir: Path, target: str) -> None:
    (data_dir / "set" / "a" / "loop.png").symlink_to(data_dir / "set" / "a" / target)
    assert "cannot be read" in failure(data_dir)


def test_more_than_memory(data_dir: Path) -> None:
    with pytest.raises(UserError, match="lower image_size"):
        load(data_dir, image_size=100_000)


# --- the cache ----------------------------------------------------------------------------------


def test_files_are_decoded_once(data_dir: Path, decoded: list[str]) -> None:
    first = load(data_dir)
    assert len(decoded) == 20
    assert load(data_dir).fingerprint() == first.fingerprint()
    assert len(decoded) == 20
    os.utime(data_dir / "set" / "a" / "0.png", (1, 1))  # the same content
    load(data_dir)
    assert len(decoded) == 20
    load(data_dir, image_size=SIZE + 1)
    assert len(decoded) == 40


def replace_unnoticed(root: Path) -> None:
    """Other pixels, and the size and modification time that the file had."""
    before = (root / "a" / "0.bmp").stat()
    save(root / "a" / "0.bmp", noise(98))
    os.utime(root / "a" / "0.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (root / "a" / "0.bmp").stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def grow(root: Path) -> None:
    times = (root / "a" / "0.png").stat()
    with (root / "a" / "0.png").open("ab") as file:
        file.write(b"\0")
    os.utime(root / "a" / "0.png", ns=(times.st_atime_ns, times.st_mtime_ns))


def rename(root: Path) -> None:
    (root / "a" / "0.png").rename(root / "a" / "new.png")


def move(root: Path) -> None:
    (root / "a" / "0.png").rename(root / "b" / "0.png")


def add(root: Path) -> None:
    save(root / "a" / "new.png", noise(99))


def damage_cache(root: Path) -> None:
    (cache,) = root.parent.glob(".cache/*.npz")
    cache.write_bytes(cache.read_bytes()[:-100])


@pytest.mark.parametrize("change", [replace_unnoticed, grow, rename, move, add, damage_cache])
def test_a_stale_cache_is_made_again(data_dir: Path, decoded: list[str], change: Any) -> None:
    save(data_dir / "set" / "a" / "0.bmp", noise(97))
    load(data_dir)
    change(data_dir / "set")
    decoded.clear()
    fresh = load(data_dir)
    assert len(decoded) >= 20
    decoded.clear()
    assert load(data_dir).fingerprint() == fresh.fingerprint()
    assert not decoded


def test_where_no_cache_can_be_written_one_warning_is_given(
    data_dir: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (data_dir / ".cache").touch()
    with caplog.at_level(logging.WARNING):
        load(data_dir)
    assert len(decoded) == 20
    assert len(caplog.records) == 1
    assert "not cached" in caplog.text


def test_a_full_disk_leaves_no_half_cache(
    data_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    load(data_dir)
    assert "not cached (No space left on device)" in caplog.text
    assert {path.suffix for path in (data_dir / ".cache").iterdir()} <= {".lock"}
