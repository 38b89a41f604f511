"""Runs model_def.py in processes that can be killed, and compares the run folders they write.

`tests.reliability.kill_test` and the tests use it. The processes are forked from a server that has
already imported the packages. They start in milliseconds, while `python model_def.py` takes
seconds.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "model_def.py"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["cluster.entry", "local.run", "matplotlib.figure", "torch.utils.tensorboard"]
)


def warm_up() -> None:
    """Start the server, which imports the packages in the background."""
    forkserver.ensure_running()


def run_script(
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    """Turn this process into `python model_def.py ARGUMENTS`; its output is appended to `log`."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Runs are compared bit by bit, and sums depend on the number of threads.
    os.environ.update({"OMP_NUM_THREADS": "1", **environment})
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def start(
    arguments: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """Start `python model_def.py ARGUMENTS` in a new process.

    Args:
        log: the file to which its output is appended.
        environment: variables to set in addition to those of this process.
        prepare: a picklable function that the new process calls first.
    """
    words = [str(argument) for argument in arguments]
    process = _context.Process(
        target=run_script, args=(words, log, dict(environment or {}), prepare), daemon=True
    )
    process.start()
    return process


def wait(process: ForkServerProcess, seconds: float = 240) -> int:
    """Wait for `process`; returns its exit status, which is -9 if it was killed.

    Raises:
        TimeoutError: the process did not end within `seconds`; it is then killed.
    """
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"process {process.pid} still ran after {seconds} s")
    return process.exitcode


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; an empty list if the file does not exist yet."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def last_state(run: Path) -> dict[str, Any]:
    """State of weights, optimizer and learner in the newest checkpoint of a run folder."""
    entries = json.loads((run / "checkpoints.json").read_text(encoding="utf-8"))
    return checkpoint_state(run / "checkpoints" / entries[-1]["uuid"])


def checkpoint_state(checkpoint: Path) -> dict[str, Any]:
    """State of weights, optimizer and learner in a checkpoint folder."""
    content = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    files = {file.name: load_file(file) for file in sorted(checkpoint.glob("*.safetensors"))}
    return {**files, "learner": content["learner"], "progress": content["progress"]}


def same(one: Any, other: Any) -> bool:
    """Whether two nested structures of tensors and plain values are equal to the last bit."""
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.dtype != other.dtype or one.shape != other.shape:
            return False
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def differences(run: Path, reference: Path) -> list[str]:
    """The differences between the finished run folders `run` and `reference`, one line each.

    Only measured times may differ: queried images, metrics and weights must be equal.
    """
    lines = []
    if (run / "queries.csv").read_bytes() != (reference / "queries.csv").read_bytes():
        lines.append("queries.csv differs")
    rows, expected_rows = (read_rows(folder / "metrics.csv") for folder in (run, reference))
    if len(rows) != len(expected_rows):
        lines.append(f"metrics.csv has {len(rows)} rounds, not {len(expected_rows)}")
    for row, expected in zip(rows, expected_rows, strict=False):
        for name in {**row, **expected}:
            if name != "query_seconds" and row.get(name) != expected.get(name):
                lines.append(
                    f"metrics.csv, round {expected['round']}: {name} is {row.get(name)}, "
                    f"not {expected.get(name)}"
                )
    if list(rows[0]) != list(expected_rows[0]):
        lines.append("metrics.csv has other columns")
    if not same(last_state(run), last_state(reference)):
        lines.append("the last checkpoint differs")
    return lines
