"""Checks that a run which is killed again and again ends like a run that is never killed.

    python -m tests.reliability.kill_test --kills 50 --seed 0

Trains a small network on the digits once without interruption. Then it trains the same run again,
kills it (SIGKILL) at random moments and resumes it with --resume until it ends. It repeats this
with new runs until the number of kills is reached. Each run is compared with the first to the last
bit: queried images, metrics, and the weights and optimizer state of the last checkpoint. The script
prints the number of kills and what they interrupted. The exit status is 1 if anything differs.
(Python may report leaked locks at the end; they belong to the killed processes.)
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


# Class, method, the phase of the run from the method's entry on, and from its exit on.
PHASES: tuple[tuple[type, str, str, str], ...] = (
    (ActiveLearner, "propose", "querying", "training"),
    (ActiveLearner, "predict", "evaluating", "evaluating"),
    (RunFolder, "draw_learning_curve", "between validation and checkpoint", ""),
    (RunFolder, "save_checkpoint", "writing a checkpoint", "between rounds"),
)


def note_phases(file: Path) -> None:
    """Make this process write its phase to `file`, so that it is known what a kill interrupts."""
    note = functools.partial(file.write_text, encoding="utf-8")
    for owner, name, before, after in PHASES:
        setattr(owner, name, _noting(getattr(owner, name), before, after, note))
    note("starting")


def _noting(
    function: Callable[..., Any], before: str, after: str, note: Callable[[str], object]
) -> Callable[..., Any]:
    """Wrap `function` to note `before` on entry and `after` on exit, unless they are empty."""

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
    """The arguments of model_def.py that start a new run in `run`."""
    settings = {**SETTINGS, "rounds": rounds, "label_budget": 10 + 5 * (rounds - 1)}
    values = [f"hyperparameters.{name}={value}" for name, value in settings.items()]
    return ["--config", CONFIG, "--output-dir", run, "--set", *values]


def run_to_the_end(arguments: Sequence[str | Path], log: Path) -> None:
    """Run model_def.py with `arguments`.

    Raises:
        RuntimeError: the exit status is not 0.
    """
    status = processes.wait(processes.start(arguments, log), seconds=3600)
    if status != 0:
        raise RuntimeError(f"a run ended with status {status}\n{log.read_text()}")


def next_arguments(run: Path, rounds: int) -> list[str | Path]:
    """The arguments that resume `run`, or start it if it was killed before it wrote anything."""
    if (run / "config.yaml").exists():
        return ["--resume", run]
    shutil.rmtree(run, ignore_errors=True)
    return arguments_for(run, rounds)


def kill_repeatedly(
    run: Path, rounds: int, kills: int, longest: float, generator: random.Random
) -> list[str]:
    """Start `run` and kill it until it ends, at most `kills` times; returns the phases killed.

    Args:
        longest: the maximum lifetime of a process, in seconds.

    Raises:
        RuntimeError: a process failed without being killed.
    """
    log, phase = run.parent / "log.txt", run.parent / "phase.txt"
    killed_phases: list[str] = []
    while len(killed_phases) < kills:
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
        killed_phases.append(phase.read_text(encoding="utf-8") or "starting")
        print(f"killed while {killed_phases[-1]}: {progress(run)}", flush=True)
    return killed_phases


def progress(run: Path) -> str:
    """The name of `run` and its last finished round, as text."""
    rows = processes.read_rows(run / "metrics.csv")
    return f"{run.name}, round {len(rows)}" if rows else f"{run.name}, before the first round"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kill_test_") as name:
        folder = Path(name)
        reference = folder / "reference"
        # The first process waits for the imports, which must not count towards the measured time.
        run_to_the_end(arguments_for(folder / "warm_up", 1), folder / "log.txt")
        started = time.monotonic()
        run_to_the_end(arguments_for(reference, arguments.rounds), folder / "log.txt")
        seconds = time.monotonic() - started
        print(f"undisturbed: {arguments.rounds} rounds in {seconds:.1f} s", flush=True)
        # On average, this is enough to start and to finish a round or more.
        longest = 2.5 * seconds / arguments.rounds
        generator = random.Random(arguments.seed)
        killed_phases: list[str] = []
        runs = 0
        different = []
        while len(killed_phases) < arguments.kills:
            runs += 1
            run = folder / f"run {runs}"
            remaining = arguments.kills - len(killed_phases)
            killed_phases += kill_repeatedly(run, arguments.rounds, remaining, longest, generator)
            run_to_the_end(next_arguments(run, arguments.rounds), folder / "log.txt")
            different += [f"{run.name}: {line}" for line in processes.differences(run, reference)]
            shutil.rmtree(run)
    for line in different:
        print(line)
    for phase, count in Counter(killed_phases).most_common():
        print(f"{count} while {phase}")
    verdict = "DIFFERENT" if different else "identical to the last bit"
    print(f"{len(killed_phases)} kills in {runs} runs: {verdict}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
