"""Measures how long large data sets take to read, at first and from the cache, and their memory.

    python -m benchmarks.reading folder --images 59000 --size 64
    python -m benchmarks.reading hdf5 --images 150000 --size 96 [--noise]

Creates a synthetic data set in a temporary folder, reads it twice, each time in a new process, and
removes it. `folder` makes grey JPEG files with one folder per class. `hdf5` makes compressed colour
images in PatchCamelyon's layout; with --noise they cannot be compressed, so the file is as large as
its pixels. HDF5 is always read like a data set that exceeds the memory. The fingerprint reads every
image once more. The script also prints the time of the check of the source's content, which every
start makes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data import load_splits
from data_sources import disk_images
from data_sources.content import content_hashes

CLASSES = 6
CHUNK = 64  # images that are compressed together


def make_folder(root: Path, images: int, size: int) -> None:
    """Write images of stripes with noise; the JPEG files are about as large as real ones."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:size, 0:size]
    for number in tqdm(range(images), desc="making files", disable=None):
        folder = root / "made_up" / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        a, b = rng.normal(size=2) / 5
        pixels = 128 + 40 * np.sin(a * columns + b * rows) + 12 * rng.normal(size=(size, size))
        file = folder / f"{number}.jpeg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=80)


def make_hdf5(root: Path, images: int, size: int, noise: bool) -> None:
    """Write blocks of 8x8 equal pixels, which deflate to about a twentieth, or only noise."""
    import h5py

    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("valid", 2000), ("test", 2000)):
        with h5py.File(root / f"made_up_{split}_y.h5", "w") as file:
            file["y"] = (np.arange(count, dtype=np.uint8) % 2).reshape(-1, 1, 1, 1)
        with h5py.File(root / f"made_up_{split}_x.h5", "w") as file:
            shape = (size, size, 3)
            compression_level = None if noise else 1
            data = file.create_dataset(
                "x", (count, *shape), "u1", chunks=(CHUNK, *shape), compression=compression_level
            )
            for start in tqdm(range(0, count, CHUNK), desc=f"making {split}", disable=None):
                n = min(CHUNK, count - start)
                if noise:
                    data[start : start + n] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
                    continue
                small = rng.integers(0, 256, (n, size // 8, size // 8, 3), dtype=np.uint8)
                data[start : start + n] = small.repeat(8, 1).repeat(8, 2)


def read(kind: str, root: Path, size: int) -> None:
    """Read the set in `root`; print the seconds, the size of the images and the peak memory."""
    disk_images.MEMORY_SHARE = 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    splits = load_splits(
        f"{kind}:made_up",
        root,
        image_size=size,
        split_seed=0,
        validation_fraction=0.1,
        test_fraction=0.1,
    )
    loaded = time.perf_counter() - wall, time.process_time() - cpu
    splits.fingerprint()
    total = time.perf_counter() - wall, time.process_time() - cpu
    files = sorted(path for path in root.rglob("*.*") if ".cache" not in path.parts)
    wall, cpu = time.perf_counter(), time.process_time()
    content_hashes([path for path in files if path.is_file()])
    checked = time.perf_counter() - wall, time.process_time() - cpu
    images = sum(part.images.nbytes for part in (splits.train, splits.val, splits.test))
    print(
        f"read in {loaded[0]:.1f} s ({loaded[1]:.1f} s of CPU time), with the fingerprint in "
        f"{total[0]:.1f} s ({total[1]:.1f} s); {images / 2**20:.0f} MiB of images, "
        f"source checked in {checked[0]:.1f} s ({checked[1]:.1f} s); "
        f"largest resident set {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB"
    )


def main() -> None:
    """Create a data set and read it in two processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("folder", "hdf5"))
    parser.add_argument("--images", type=int, default=59_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--noise", action="store_true", help="HDF5 that cannot be compressed")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read(arguments.kind, arguments.read, arguments.size)
        return
    with tempfile.TemporaryDirectory() as name:
        if arguments.kind == "folder":
            make_folder(Path(name), arguments.images, arguments.size)
        else:
            make_hdf5(Path(name), arguments.images, arguments.size, arguments.noise)
        for title in ("first time", "from the cache"):
            print(f"{title}: ", end="", flush=True)
            words = [arguments.kind, "--size", str(arguments.size), "--read", name]
            subprocess.run([sys.executable, "-m", "benchmarks.reading", *words], check=True)


if __name__ == "__main__":
    main()
