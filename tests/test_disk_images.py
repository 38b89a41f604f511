"""HDF5 sets too large for memory: mapped from an uncompressed copy, and used like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import torch

from active_learning import ActiveLearner
from data import Splits, channel_statistics, load_splits
from data_sources import disk_images
from errors import UserError
from tests.conftest import ROOT, ask, measure, small_values
from tests.test_learner import assert_same, weights
from training.hyperparameters import Hyperparameters

SIZE = 8
OPTIONS: dict[str, Any] = {"split_seed": 0, "validation_fraction": 0.1, "test_fraction": 0.1}


def write(data_dir: Path, split: str, count: int, size: int = SIZE) -> Path:
    """Compressed images in chunks of seven, in PatchCamelyon's layout; the images' file."""
    rng = np.random.default_rng(len(split) + count)
    path = data_dir / f"made_up_{split}_x.h5"
    with h5py.File(path, "w") as file:
        shape = (count, size, size, 3)
        images = file.create_dataset("x", shape, "u1", chunks=(7, *shape[1:]), compression=1)
        for start in range(0, count, 7):
            small = rng.integers(0, 256, (min(7, count - start), size // 8, size // 8, 3), "u1")
            images[start : start + 7] = small.repeat(8, 1).repeat(8, 2)
    with h5py.File(data_dir / f"made_up_{split}_y.h5", "w") as file:
        file["y"] = (np.arange(count, dtype=np.uint8) % 2).reshape(count, 1, 1, 1)
    return path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    for split, count in (("train", 60), ("valid", 20), ("test", 10)):
        write(tmp_path, split, count)
    return tmp_path


def load(data_dir: Path, share: float = 0.0, size: int = SIZE) -> Splits:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk_images, "MEMORY_SHARE", share)
        return load_splits("hdf5:made_up", data_dir, image_size=size, **OPTIONS)


def caches(data_dir: Path) -> list[str]:
    return sorted(p.name for p in (data_dir / ".cache").iterdir() if not p.name.startswith("."))


@pytest.mark.parametrize("size", [SIZE, SIZE // 2])
def test_mapped_images_are_those_in_memory(data_dir: Path, size: int) -> None:
    mapped, read = load(data_dir, size=size), load(data_dir, 1.0, size)
    assert mapped.fingerprint() == read.fingerprint()
    for one, other in zip(
        channel_statistics(mapped.train.images), channel_statistics(read.train.images), strict=True
    ):
        assert torch.equal(one, other)
    assert len(caches(data_dir)) == 3
    assert load(data_dir, size=size).fingerprint() == read.fingerprint()  # from the file again


def test_a_run_on_mapped_images_is_the_same(data_dir: Path) -> None:
    hp = Hyperparameters.from_mapping(small_values(label_budget=30, candidate_pool_size=0))
    learners = []
    for share in (0.0, 1.0):
        splits = load(data_dir, share)
        learner = ActiveLearner(hp, splits.train, 0)
        while not learner.finished:
            ask(learner)
            for _ in range(hp.batches_per_round):
                learner.train_step()
        learners.append((learner, measure(learner, splits.val)))
    (one, found), (other, expected) = learners
    assert found == expected
    assert torch.equal(one.pool.acquired_round, other.pool.acquired_round)
    assert_same(weights(one), weights(other))


def test_released_images_can_be_used_again(data_dir: Path) -> None:
    images = load(data_dir).train.images
    part = images[3:5]
    before = part.clone()
    disk_images.release(part)
    disk_images.release(before)  # not mapped: nothing happens
    assert torch.equal(images[3:5], before)


class TestCache:
    @pytest.fixture
    def untouched(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The folder, once its cache is there and nobody may write another."""
        load(data_dir)

        def refuse(*_: Any) -> None:
            raise AssertionError("written again")

        monkeypatch.setattr(disk_images, "_write", refuse)
        return data_dir

    def test_written_once(self, untouched: Path) -> None:
        load(untouched)

    @pytest.mark.parametrize("change", ["more images", "other images", "cut short"])
    def test_stale_ones_are_noticed(self, untouched: Path, change: str) -> None:
        path = untouched / "made_up_train_x.h5"
        before = path.stat()
        if change == "more images":
            write(untouched, "train", 61)
        elif change == "other images":  # of the same size and modification time
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            cache = untouched / ".cache" / caches(untouched)[1]
            assert cache.name.startswith("made_up_train_x_8.")
            cache.write_bytes(cache.read_bytes()[:-1])
        with pytest.raises(UserError, match="written again"):
            load(untouched)

    def test_stale_ones_are_replaced(self, data_dir: Path) -> None:
        load(data_dir)
        before = caches(data_dir)
        write(data_dir, "train", 61)
        assert len(load(data_dir).train) == 61
        after = caches(data_dir)
        assert len(after) == 3
        assert len(set(before) & set(after)) == 2

    def test_a_full_disk(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = type("usage", (), {"free": 100})
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(UserError, match=r"cannot be kept there \(0\.0 GiB of disk are free\)"):
            load(data_dir)
        assert caches(data_dir) == []

    def test_a_read_only_folder(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (data_dir / ".cache").write_text("in the way")
        with pytest.raises(UserError, match=r"cannot be kept there \(.*\); set data_dir to a copy"):
            load(data_dir)

    def test_a_source_that_breaks_off_leaves_no_cache(
        self, data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> Any:
            yield np.zeros((1, SIZE, SIZE, 3), np.uint8)
            raise OSError("damaged chunk")

        monkeypatch.setattr("data_sources.hdf5._blocks", broken)
        with pytest.raises(UserError, match=r"x\.h5: cannot be read \(damaged chunk\)"):
            load(data_dir)
        assert caches(data_dir) == []


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(disk_images, "CGROUP_LIMITS", (str(limit), str(tmp_path / "none")))
    plenty = disk_images.available_memory()
    for text, expected in (("max\n", plenty), (f"{2**20}\n", 2**20)):
        limit.write_text(text)
        assert disk_images.available_memory() == pytest.approx(expected, rel=0.3)
    assert disk_images.fits_in_memory(2**17)
    assert not disk_images.fits_in_memory(2**17 + 1)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    for split, count in (("train", 4096), ("valid", 40), ("test", 40)):
        write(folder, split, count, TestMemory.SIZE)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
class TestMemory:
    """48 MiB of images, where 40 MiB may be allocated, a thread's stack of 8 among them."""

    SIZE = 64
    LIMIT = 40
    # Whatever is freed goes back to the system, so that the limit is on what is in use.
    ALLOCATOR: ClassVar = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}

    def drive(self, folder: Path, share: float) -> subprocess.CompletedProcess[str]:
        arguments = map(str, (folder, self.SIZE, share, self.LIMIT))
        return subprocess.run(
            [sys.executable, "-m", "tests.memory_driver", *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.ALLOCATOR},
            capture_output=True,
            text=True,
            timeout=400,
        )

    def test_a_run_needs_a_part_of_what_its_images_take(self, large: Path) -> None:
        done = self.drive(large, 0.0)
        assert done.returncode == 0, done.stderr
        # Pages of the mapping count here as well: they are given back, not kept.
        assert int(done.stdout) < self.LIMIT

    def test_which_reading_them_does_not(self, large: Path) -> None:
        done = self.drive(large, 1.0)
        assert done.returncode != 0
        assert "Unable to allocate" in done.stderr
