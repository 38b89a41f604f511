"""Checks that a long run stays within its memory, file handles and disk space.

    python -m tests.reliability.soak --rounds 220

Trains on the digits with very small rounds. After each round it reads, from outside, the resident
memory, open file handles and threads of the process, and the number and size of its checkpoints.
The first fifth of the rounds is warm-up. After that, memory must grow by less than 5 %, handles and
threads must not increase, and the folder must never hold more than three checkpoints and a fourth
that is being written. Prints the figures; the exit status is 1 if a condition fails. It reads
/proc, so it needs Linux.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.reliability import kill_test, processes

MOST_GROWTH = 0.05
MOST_CHECKPOINTS = 3 + 1  # the last two, the best, and one that is being written
PART = 0.2  # share of the rounds in the warm-up, in the early part and in the last part


@dataclass(frozen=True)
class Sample:
    """Measurements after a round was reported."""

    round: int
    resident: int  # bytes
    handles: int
    threads: int
    checkpoints: int
    checkpoint_bytes: int


def sample(pid: int, run: Path, round_: int) -> Sample:
    """Measure process `pid`, which writes `run`.

    Raises:
        OSError: the process has ended.
    """
    process = Path("/proc") / str(pid)
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    files = [path for path in run.glob("checkpoints/*/*") if path.exists()]
    return Sample(
        round=round_,
        resident=int(status["VmRSS"].split()[0]) * 1024,
        handles=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
        checkpoints=len({path.parent for path in files}),
        checkpoint_bytes=sum(_size(path) for path in files),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # removed after it was listed
        return 0


def watch(run: Path, rounds: int, log: Path) -> list[Sample]:
    """Run to the end; returns a sample for each observed round.

    Raises:
        RuntimeError: the exit status is not 0.
    """
    small = "hyperparameters.architecture=small_cnn"
    process = processes.start([*kill_test.arguments_for(run, rounds), small], log)
    assert process.pid is not None
    samples: list[Sample] = []
    while process.is_alive():
        rounds_reported = len(processes.read_rows(run / "metrics.csv"))
        if rounds_reported and (not samples or rounds_reported > samples[-1].round):
            try:
                samples.append(sample(process.pid, run, rounds_reported))
            except (OSError, KeyError):  # the process has just ended
                break
        time.sleep(0.02)
    if processes.wait(process) != 0:
        raise RuntimeError(f"the run failed\n{log.read_text()}")
    return samples


def judge(samples: Sequence[Sample]) -> list[str]:
    """Print the figures of a run; returns one line per failed condition."""
    count = int(len(samples) * PART)
    early, late = samples[count : 2 * count], samples[-count:]
    failures = []
    resident = [statistics.median(one.resident for one in part) for part in (early, late)]
    growth = resident[1] / resident[0] - 1
    print(
        f"resident memory: {resident[0] / 2**20:.1f} MiB around round {early[0].round}, "
        f"{resident[1] / 2**20:.1f} MiB in the last {count} rounds: {growth:+.2%}"
    )
    if growth >= MOST_GROWTH:
        failures.append(f"memory grew by {growth:.2%}")
    for name in ("handles", "threads"):
        most = [max(getattr(one, name) for one in part) for part in (early, late)]
        print(f"{name}: {most[0]}, then {most[1]}")
        if most[1] > most[0]:
            failures.append(f"the number of {name} grew")
    checkpoints = max(one.checkpoints for one in samples)
    size = max(one.checkpoint_bytes for one in samples)
    print(f"checkpoints: {checkpoints} at most, {size / 2**20:.1f} MiB at most")
    if checkpoints > MOST_CHECKPOINTS:
        failures.append(f"{checkpoints} checkpoints at the same time")
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=220)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak_") as name:
        folder = Path(name)
        started = time.monotonic()
        samples = watch(folder / "run", arguments.rounds, folder / "log.txt")
        seconds = time.monotonic() - started
        print(f"{arguments.rounds} rounds in {seconds:.0f} s, {len(samples)} of them measured")
        failures = judge(samples)
        remaining = len(list((folder / "run" / "checkpoints").iterdir()))
        print(f"checkpoints at the end: {remaining}")
    for line in failures:
        print(f"NOT FLAT: {line}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
