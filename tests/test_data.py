"""`data.py`: the stores, the checks on whatever a source returns, statistics and normalising."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import ImageStore, Splits, channel_statistics, load_splits, normalise
from data_sources.medmnist_table import medmnist_sets
from errors import UserError
from tests.bad_input_makers import as_npz, good_arrays, plain_user

Arrays = dict[str, Any]
OWN_SPLIT: dict[str, Any] = {"split_seed": 0, "validation_fraction": 0.1, "test_fraction": 0.2}
FLAG = "breastmnist"  # grey, two classes


def load(dataset: str, data_dir: str | Path, image_size: int = 28, **changes: Any) -> Splits:
    options = {"download": False, **OWN_SPLIT, **changes}
    return load_splits(dataset, data_dir, image_size=image_size, **options)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# --- what a good file gives ---------------------------------------------------------------------


@pytest.mark.parametrize(("size", "suffix"), [(28, ""), (64, "_64")])
def test_arrays_of_the_file_become_stores(tmp_path: Path, size: int, suffix: str) -> None:
    arrays = good_arrays(size)
    (tmp_path / f"{FLAG}{suffix}.npz").write_bytes(as_npz(arrays))
    splits = load(FLAG, str(tmp_path), size)
    assert splits.name == FLAG
    assert (splits.num_classes, splits.channels) == (2, 1)
    assert splits.class_names == ("malignant", "normal, benign")
    for name in ("train", "val", "test"):
        store: ImageStore = getattr(splits, name)
        expected = arrays[f"{name}_images"]
        assert len(store) == len(expected)
        assert store.images.dtype == torch.uint8
        assert store.labels.dtype == torch.int64
        assert store.images.is_contiguous()
        np.testing.assert_array_equal(store.images.numpy(), expected[:, None])
        np.testing.assert_array_equal(store.labels.numpy(), arrays[f"{name}_labels"][:, 0])


def test_colour_images_become_channels_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: Arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (9, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(9)
    (tmp_path / "pathmnist.npz").write_bytes(as_npz(arrays))
    images = load("pathmnist", tmp_path).train.images
    np.testing.assert_array_equal(images.numpy(), arrays["train_images"].transpose(0, 3, 1, 2))


def test_ordinal_labels_are_classes(tmp_path: Path) -> None:
    assert medmnist_sets()["retinamnist"]["task"] == "ordinal-regression"
    arrays: Arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((5, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(5)[:, None]
    (tmp_path / "retinamnist.npz").write_bytes(as_npz(arrays))
    assert load("retinamnist", tmp_path).num_classes == 5


@pytest.mark.parametrize(
    "flag", sorted(flag for flag in medmnist_sets() if not flag.endswith("3d"))
)
def test_every_set_by_name(tmp_path: Path, flag: str) -> None:
    info = medmnist_sets()[flag]
    if flag == "chestmnist":
        with pytest.raises(UserError, match=r"chestmnist is multi-label.*choose one of bloodmnist"):
            load(flag, tmp_path)
        return
    classes, colour = len(info["label"]), (3,) if info["n_channels"] == 3 else ()
    for size, suffix in ((28, ""), (64, "_64")):
        arrays: Arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = np.zeros((classes, size, size, *colour), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(classes, dtype=np.uint8)[:, None]
        (tmp_path / f"{flag}{suffix}.npz").write_bytes(as_npz(arrays))
        splits = load(flag, tmp_path, size)
        assert splits.train.images.shape == (classes, info["n_channels"], size, size)
        assert splits.class_names == tuple(info["label"].values())


def test_a_class_missing_from_a_held_out_split_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrays: Arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((5, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(5)
    arrays["test_labels"] = np.array([0, 1, 2, 3, 3])
    (tmp_path / "retinamnist.npz").write_bytes(as_npz(arrays))
    with caplog.at_level(logging.WARNING):
        load("retinamnist", tmp_path)
    assert len(caplog.records) == 1
    assert "test_labels: no image of class 4" in caplog.text


# --- bad files ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=300), is_zip=st.booleans())
def test_random_bytes_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, is_zip: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    if is_zip:  # random bytes as every array, in an archive that is whole
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for key in good_arrays():
                archive.writestr(f"{key}.npy", b"\x93NUMPY\x01\x00" + content)
        content = file.getvalue()
    (folder / f"{FLAG}.npz").write_bytes(content)
    with pytest.raises(UserError):
        load(FLAG, folder)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_a_damaged_file_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    file = io.BytesIO()
    np.savez(file, **good_arrays())  # uncompressed, so that headers are hit and understood
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        # Half the hits go to the first array's headers, where most of the meaning is.
        end = data.draw(st.sampled_from([200, len(content)]))
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (folder / f"{FLAG}.npz").write_bytes(content)
    with suppress(UserError):
        load(FLAG, folder)


# --- bad names and places -----------------------------------------------------------------------


def test_a_missing_file_without_download_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(FLAG, tmp_path / "none")
    assert f"{tmp_path}/none/{FLAG}.npz: no such file" in one_line(error)
    assert medmnist_sets()[FLAG]["url"] in one_line(error)


@pytest.mark.parametrize("below", ["", "new"])
def test_a_download_into_a_folder_without_write_permission(public_dir: Path, below: str) -> None:
    public_dir.chmod(0o555)
    with plain_user(), pytest.raises(UserError, match="Permission denied: ") as error:
        load(FLAG, public_dir / below, download=True)
    assert f"by hand and save it as {public_dir / below / FLAG}.npz" in one_line(error)


# --- digits -------------------------------------------------------------------------------------


def test_digits_need_no_file_and_split_the_same_each_time(tmp_path: Path) -> None:
    first, again = load("digits", tmp_path / "none"), load("digits", tmp_path / "none")
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != load("digits", tmp_path, split_seed=1).fingerprint()
    sizes = [len(first.train), len(first.val), len(first.test)]
    assert sum(sizes) == 1797
    np.testing.assert_allclose(sizes, [1258, 180, 359], atol=6)
    assert first.class_names == tuple("0123456789")
    assert first.train.images.shape[1:] == (1, 28, 28)
    assert int(first.train.images.max()) > 250


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction: 0.0"),
        ({"test_fraction": float("nan")}, "test_fraction: nan"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"split_seed": -1}, "split_seed: -1"),
    ],
)
def test_a_split_that_cannot_be_made(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as error:
        load("digits", tmp_path, **changes)
    assert expected in one_line(error)


# --- stores and fingerprints --------------------------------------------------------------------


def made_up_splits() -> Splits:
    def store(seed: int) -> ImageStore:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (6, 3, 4, 4), generator=generator, dtype=torch.uint8)
        return ImageStore(images, torch.arange(6) % 2, ("a", "b"))

    return Splits("made-up", store(0), store(1), store(2))


def change_pixel(splits: Splits) -> Splits:
    splits.test.images[5, 2, 3, 3] ^= 1
    return splits


def change_label(splits: Splits) -> Splits:
    splits.val.labels[0] = 1
    return splits


def rename_class(splits: Splits) -> Splits:
    train = ImageStore(splits.train.images, splits.train.labels, ("a", "c"))
    return Splits(splits.name, train, splits.val, splits.test)


@pytest.mark.parametrize(
    "change",
    [
        change_pixel,
        change_label,
        rename_class,
        lambda splits: Splits("other", splits.train, splits.val, splits.test),
        lambda splits: Splits(splits.name, splits.train, splits.test, splits.val),
    ],
)
def test_fingerprint_tells_any_change(change: Callable[[Splits], Splits]) -> None:
    assert change(made_up_splits()).fingerprint() != made_up_splits().fingerprint()


def test_fingerprint_is_of_values_not_of_memory_layout() -> None:
    splits = made_up_splits()
    images = splits.train.images.contiguous(memory_format=torch.channels_last)
    relaid = ImageStore(images, splits.train.labels, splits.class_names)
    assert Splits(splits.name, relaid, splits.val, splits.test).fingerprint() == (
        made_up_splits().fingerprint()
    )


def test_to_moves_both_tensors() -> None:
    moved = made_up_splits().train.to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert moved.class_names == ("a", "b")


# --- statistics and normalising -----------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1, 100, 2**20])
def test_channel_statistics_equal_numpys(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr("data.STATISTICS_BLOCK_BYTES", block_bytes)
    images = np.random.default_rng(0).integers(0, 256, (37, 3, 5, 6), dtype=np.uint8)
    images[:, 1] //= 7
    mean, std = channel_statistics(torch.from_numpy(images))
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 2, 3)), rtol=1e-6)


def test_a_constant_channel_normalises_to_zeros() -> None:
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[:, 0] = 77
    images[:2, 1] = 200
    mean, std = channel_statistics(images)
    result = normalise(images, mean, std)
    torch.testing.assert_close(result[:, 0], torch.zeros(4, 2, 2))
    assert result.isfinite().all()


def test_no_images_have_no_statistics() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        channel_statistics(torch.zeros(0, 3, 28, 28, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalise_equals_the_formula(dtype: torch.dtype) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8).repeat(1, 3, 1, 1)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.3, 0.2, 0.05])
    result = normalise(images, mean, std, dtype)
    exact = (images.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert result.dtype == dtype
    torch.testing.assert_close(
        result, exact.to(dtype), rtol=max(1e-5, torch.finfo(dtype).eps), atol=1e-5
    )


def test_normalise_keeps_the_memory_format_and_its_input() -> None:
    images = made_up_splits().train.images
    before = images.clone()
    mean, std = channel_statistics(images)
    last = images.contiguous(memory_format=torch.channels_last)
    assert normalise(last, mean, std).is_contiguous(memory_format=torch.channels_last)
    assert normalise(images, mean, std).is_contiguous()
    assert torch.equal(images, before)


def test_normalising_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.float32"):
        normalise(torch.zeros(1, 1, 2, 2), torch.zeros(1), torch.ones(1))
