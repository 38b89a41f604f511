"""Does a long run stay within its memory, its file handles and its disk?

    python -m tests.reliability.soak --rounds 220

Runs the digits with very small rounds and looks, from outside, after each one: resident memory,
open file handles and threads of the process, checkpoints on disk and their size. The first fifth of
the rounds is warm-up. Prints the figures; the exit status is 1 where memory grows by 5 % or more
after that, handles or threads become more, or there are ever more than three checkpoints and one in
the making. Linux only, as it reads /proc.
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
PART = 0.2  # of the rounds: how many are warm-up, and how many then are compared with the last


@dataclass(frozen=True)
class Sample:
    """What was seen when a round had been reported."""

    round: int
    resident: int  # bytes
    handles: int
    threads: int
    checkpoints: int
    checkpoint_bytes: int


def sample(pid: int, run: Path, round_: int) -> Sample:
    """Look at process `pid`, which writes `run`.

    Raises:
        OSError: the process is gone.
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
    except FileNotFoundError:  # removed since it was listed
        return 0


def watch(run: Path, rounds: int, log: Path) -> list[Sample]:
    """Run it to the end; a sample for each round that was seen.

    Raises:
        RuntimeError: it did not end well.
    """
    small = "hyperparameters.architecture=small_cnn"
    process = processes.start([*kill_test.arguments_for(run, rounds), small], log)
    assert process.pid is not None
    samples: list[Sample] = []
    while process.is_alive():
        seen = len(processes.read_rows(run / "metrics.csv"))
        if seen and (not samples or seen > samples[-1].round):
            try:
                samples.append(sample(process.pid, run, seen))
            except (OSError, KeyError):  # it ended meanwhile
                break
        time.sleep(0.02)
    if processes.wait(process) != 0:
        raise RuntimeError(f"the run did not end well\n{log.read_text()}")
    return samples


def judge(samples: Sequence[Sample]) -> list[str]:
    """Print the figures of a run; what does not hold, one line each."""
    count = int(len(samples) * PART)
    early, late = samples[count : 2 * count], samples[-count:]
    found = []
    resident = [statistics.median(one.resident for one in part) for part in (early, late)]
    growth = resident[1] / resident[0] - 1
    print(
        f"resident memory: {resident[0] / 2**20:.1f} MiB around round {early[0].round}, "
        f"{resident[1] / 2**20:.1f} MiB in the last {count} rounds: {growth:+.2%}"
    )
    if growth >= MOST_GROWTH:
        found.append(f"memory grew by {growth:.2%}")
    for name in ("handles", "threads"):
        most = [max(getattr(one, name) for one in part) for part in (early, late)]
        print(f"{name}: {most[0]}, then {most[1]}")
        if most[1] > most[0]:
            found.append(f"{name} became more")
    checkpoints = max(one.checkpoints for one in samples)
    size = max(one.checkpoint_bytes for one in samples)
    print(f"checkpoints: {checkpoints} at most, {size / 2**20:.1f} MiB at most")
    if checkpoints > MOST_CHECKPOINTS:
        found.append(f"{checkpoints} checkpoints at a time")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=220)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak_") as name:
        folder = Path(name)
        started = time.monotonic()
        samples = watch(folder / "run", arguments.rounds, folder / "log.txt")
        seconds = time.monotonic() - started
        print(f"{arguments.rounds} rounds in {seconds:.0f} s, {len(samples)} of them looked at")
        found = judge(samples)
        left = len(list((folder / "run" / "checkpoints").iterdir()))
        print(f"checkpoints in the end: {left}")
    for line in found:
        print(f"NOT FLAT: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
