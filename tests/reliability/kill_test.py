"""Does a run that is killed again and again end as one that never was?

    python -m tests.reliability.kill_test --kills 50 --seed 0

Runs the digits, small, once undisturbed; then again, killed (SIGKILL) at random moments and gone
on with by --resume until it ends, and so on until there have been enough kills. Images queried,
metrics and the last checkpoint, weights and optimizer, are compared to the last bit. Prints how
many kills were survived and what they cut off; the exit status is 1 where anything differs. (Python
may note at the end that locks were left behind: they are those of the killed.)
"""

from __future__ import annotations

import argparse
import functools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from active_learning import ActiveLearner
from run_folder.writer import RunFolder
from tests.reliability import processes

CONFIG = processes.ROOT / "configs" / "digits.yaml"
SETTINGS = {
    "query_strategy": "uncertainty_diversity",  # needs embeddings as well as probabilities
    "image_size": 8,
    "batch_size": 8,
    "batches_per_round": 3,
    "reporting_period": 2,
    "initial_labeled_size": 10,
    "samples_to_label": 5,
    "evaluation_size": 20,
    "between_rounds": "shrink_and_perturb",
}


# What a process is doing from one of these calls on, until the next.
PHASES: tuple[tuple[type, str, str, str], ...] = (
    (ActiveLearner, "propose", "querying", "training"),
    (ActiveLearner, "predict", "evaluating", "evaluating"),
    (RunFolder, "draw_learning_curve", "between validation and checkpoint", ""),
    (RunFolder, "save_checkpoint", "writing a checkpoint", "between rounds"),
)


def note_phases(file: Path) -> None:
    """Have this process write to `file` what it is doing, so that a kill's witness can tell."""
    note = functools.partial(file.write_text, encoding="utf-8")
    for owner, name, before, after in PHASES:
        setattr(owner, name, _noting(getattr(owner, name), before, after, note))
    note("starting")


def _noting(
    function: Callable[..., Any], before: str, after: str, note: Callable[[str], object]
) -> Callable[..., Any]:
    """`function`, with `before` and `after` noted on entry and exit, unless they are empty."""

    @functools.wraps(function)
    def noting(*arguments: Any, **options: Any) -> Any:
        if before:
            note(before)
        result = function(*arguments, **options)
        if after:
            note(after)
        return result

    return noting


def arguments_for(run: Path, rounds: int) -> list[str | Path]:
    """What starts a new run in `run`."""
    settings = {**SETTINGS, "rounds": rounds, "label_budget": 10 + 5 * (rounds - 1)}
    values = [f"hyperparameters.{name}={value}" for name, value in settings.items()]
    return ["--config", CONFIG, "--output-dir", run, "--set", *values]


def run_to_the_end(arguments: Sequence[str | Path], log: Path) -> None:
    """Run model_def.py with `arguments`.

    Raises:
        RuntimeError: it did not end well.
    """
    status = processes.wait(processes.start(arguments, log), seconds=3600)
    if status != 0:
        raise RuntimeError(f"a run ended with status {status}\n{log.read_text()}")


def next_arguments(run: Path, rounds: int) -> list[str | Path]:
    """What goes on with `run`, or starts it where a kill came before anything was written."""
    if (run / "config.yaml").exists():
        return ["--resume", run]
    shutil.rmtree(run, ignore_errors=True)
    return arguments_for(run, rounds)


def kill_repeatedly(
    run: Path, rounds: int, kills: int, longest: float, generator: random.Random
) -> list[str]:
    """Begin `run` and kill it until it ends, `kills` times at most; what each kill cut off.

    Args:
        longest: seconds that a process may live.

    Raises:
        RuntimeError: a process ended by itself and not well.
    """
    log, phase = run.parent / "log.txt", run.parent / "phase.txt"
    cut_off: list[str] = []
    while len(cut_off) < kills:
        phase.write_text("starting", encoding="utf-8")
        process = processes.start(
            next_arguments(run, rounds), log, prepare=functools.partial(note_phases, phase)
        )
        process.join(generator.uniform(0, longest))
        process.kill()
        status = processes.wait(process)
        if status == 0:
            break
        if status != -signal.SIGKILL:
            raise RuntimeError(f"{run} ended with status {status}\n{log.read_text()}")
        cut_off.append(phase.read_text(encoding="utf-8") or "starting")
        print(f"killed while {cut_off[-1]}: {progress(run)}", flush=True)
    return cut_off


def progress(run: Path) -> str:
    """How far `run` has come, in words."""
    rows = processes.read_rows(run / "metrics.csv")
    return f"{run.name}, round {len(rows)}" if rows else f"{run.name}, before the first round"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kill_test_") as name:
        folder = Path(name)
        reference = folder / "reference"
        # The first process waits for the imports, which must not count as time to be killed in.
        run_to_the_end(arguments_for(folder / "warm_up", 1), folder / "log.txt")
        started = time.monotonic()
        run_to_the_end(arguments_for(reference, arguments.rounds), folder / "log.txt")
        seconds = time.monotonic() - started
        print(f"undisturbed: {arguments.rounds} rounds in {seconds:.1f} s", flush=True)
        # Enough for starting and, in the mean, for a round or more.
        longest = 2.5 * seconds / arguments.rounds
        generator = random.Random(arguments.seed)
        cut_off: list[str] = []
        runs = 0
        found = []
        while len(cut_off) < arguments.kills:
            runs += 1
            run = folder / f"run {runs}"
            left = arguments.kills - len(cut_off)
            cut_off += kill_repeatedly(run, arguments.rounds, left, longest, generator)
            run_to_the_end(next_arguments(run, arguments.rounds), folder / "log.txt")
            found += [f"{run.name}: {line}" for line in processes.differences(run, reference)]
            shutil.rmtree(run)
    for line in found:
        print(line)
    for phase, count in Counter(cut_off).most_common():
        print(f"{count} while {phase}")
    verdict = "DIFFERENT" if found else "identical to the last bit"
    print(f"{len(cut_off)} kills in {runs} runs: {verdict}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
