"""How much do two runs on two cores slow each other down?

    python -m benchmarks.side_by_side

Trains configs/digits.yaml on two cores of the machine: first one run alone, then two runs at once,
each in its own process. training/threads.py chooses their threads. Last, it trains two runs at once
with two threads each, which is the default of torch. Prints the wall-clock seconds until the last
run has ended, including the start, and the ratio to one run alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from training.threads import Load

ROOT = Path(__file__).resolve().parent.parent
CORES = 2
REPEATS = 3
LIMIT = 1.5  # allowed ratio of two runs with the chosen threads to one run alone
BUSY = 0.2  # cores that other processes use; above this the script warns
SETTINGS = (  # name, runs at once, threads of each; None: training/threads.py chooses
    ("one run alone", 1, None),
    ("two runs at once", 2, None),
    (f"two runs at once, {CORES} threads each", 2, CORES),
)


def seconds_of(runs: int, threads: int | None) -> float:
    """Wall-clock seconds until `runs` simultaneous runs have ended."""
    environment = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "model_def.py", "--config", "configs/digits.yaml"),
                    *("--output-dir", f"{folder}/{number}"),
                ],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(runs)
        ]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            raise RuntimeError(f"a run ended with exit status {max(statuses)}")
        return time.perf_counter() - start


def main() -> None:
    """Measure all settings and print their times."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)  # the runs inherit it
    print(
        f"{len(cores)} cores, torch {torch.__version__}; median of {REPEATS} (minimum to maximum)"
    )
    if (busy := Load().of_others()) > BUSY:
        print(f"warning: other processes use {busy:.1f} cores, so these times are unreliable")
    alone = 0.0
    for name, runs, threads in SETTINGS:
        times = [seconds_of(runs, threads) for _ in tqdm(range(REPEATS), name, disable=None)]
        median = statistics.median(times)
        alone = alone or median
        print(
            f"{name}: {median:.0f} s ({min(times):.0f} to {max(times):.0f}), "
            f"{median / alone:.2f} times one run"
        )
        if runs > 1 and threads is None and median > LIMIT * alone:
            print(f"this exceeds the limit of {LIMIT} times one run")


if __name__ == "__main__":
    main()
