"""Runs of model_def.py as processes that can be killed, and what they leave behind, compared.

Used by `tests.reliability.kill_test` and by the tests. A server that has done the imports already
forks them: they start in milliseconds where `python model_def.py` takes seconds.
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
_context.set_forkserver_preload(["cluster.entry", "local.run", "matplotlib.figure"])


def warm_up() -> None:
    """Have the imports done in the background, for processes to be started later."""
    forkserver.ensure_running()


def run_script(
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    """Become `python model_def.py ARGUMENTS` with its output appended to `log`."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Runs are compared bit by bit, which depends on the number of threads.
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
    """`python model_def.py ARGUMENTS` in a process of its own.

    Args:
        log: the file that its output is appended to.
        environment: variables set for it, besides this process's own.
        prepare: called in it first; a picklable function.
    """
    words = [str(argument) for argument in arguments]
    process = _context.Process(
        target=run_script, args=(words, log, dict(environment or {}), prepare), daemon=True
    )
    process.start()
    return process


def wait(process: ForkServerProcess, seconds: float = 240) -> int:
    """The exit status of `process`, -9 if it was killed.

    Raises:
        TimeoutError: it still ran after `seconds`; it is killed then.
    """
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"process {process.pid} still ran after {seconds} s")
    return process.exitcode


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none where there is no file yet."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def last_state(run: Path) -> dict[str, Any]:
    """Weights, optimizer and learner in the newest checkpoint of a run folder."""
    entries = json.loads((run / "checkpoints.json").read_text(encoding="utf-8"))
    return checkpoint_state(run / "checkpoints" / entries[-1]["uuid"])


def checkpoint_state(checkpoint: Path) -> dict[str, Any]:
    """Weights, optimizer and learner in a checkpoint's folder."""
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
    """In what finished run folder `run` differs from `reference`, one line each.

    Time aside, nothing may: not the images queried, not a metric's last digit, not a weight.
    """
    found = []
    if (run / "queries.csv").read_bytes() != (reference / "queries.csv").read_bytes():
        found.append("queries.csv differs")
    ours, theirs = read_rows(run / "metrics.csv"), read_rows(reference / "metrics.csv")
    if len(ours) != len(theirs):
        found.append(f"metrics.csv has {len(ours)} rounds, not {len(theirs)}")
    for mine, yours in zip(ours, theirs, strict=False):
        for name in {**mine, **yours}:
            if name != "query_seconds" and mine.get(name) != yours.get(name):
                found.append(
                    f"metrics.csv, round {yours['round']}: {name} is {mine.get(name)}, "
                    f"not {yours.get(name)}"
                )
    if list(ours[0]) != list(theirs[0]):
        found.append("metrics.csv has other columns")
    if not same(last_state(run), last_state(reference)):
        found.append("the last checkpoint differs")
    return found
