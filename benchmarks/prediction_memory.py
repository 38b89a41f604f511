"""Measures the memory that `python -m tools.predict` takes for more and more files.

    python -m benchmarks.prediction_memory RUN [--files 1000 20000 100000]

It writes small PNG files of noise into a temporary folder, predicts them with the network of RUN,
each time in a new process, and prints the peak of resident memory and the CPU time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16
FILES_PER_FOLDER = 1000


def write_files(folder: Path, first: int, end: int) -> None:
    """Write the files from number `first` to before `end`."""
    for number in range(first, end):
        below = folder / f"{number // FILES_PER_FOLDER:04}"
        below.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(pixels).save(below / f"{number:07}.png", compress_level=1)


def measure(run: Path, images: Path, output: Path) -> tuple[float, float]:
    """Peak resident memory in MB, and CPU seconds, of one prediction.

    Raises:
        ValueError: the prediction has failed.
    """
    paths = [str(run), str(images), "--output", str(output)]
    command = [sys.executable, "-m", "tools.predict", *paths]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"tools.predict has ended with status {process.returncode}")
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that a run has written")
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 20_000, 100_000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, written = Path(temporary) / "images", 0
        folder.mkdir()
        for count in sorted(arguments.files):
            write_files(folder, written, count)
            written = count
            output = Path(temporary) / "predictions.csv"
            megabytes, seconds = measure(arguments.run, folder, output)
            with output.open(encoding="utf-8") as file:
                rows = sum(1 for _ in file) - 1
            print(f"{count} files, {rows} rows: {megabytes:.0f} MB, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
