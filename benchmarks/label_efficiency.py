"""Which query strategy needs the fewest labels? Runs every strategy with every seed.

    python -m benchmarks.label_efficiency --data-dir data --output study --processes 2
    python -m benchmarks.label_efficiency --data-dir data --output study \\
        --set hyperparameters.architecture=small_cnn hyperparameters.dataset=breastmnist
    nohup python -m benchmarks.label_efficiency --data-dir data --output study >/dev/null &
    cat study/progress.txt                   # finished runs and remaining hours
    python -m benchmarks.comparison study    # statistics and figures

The grid is `configs/strategies.yaml`, or another file with ranges for `query_strategy` and `seed`.
The runs need no cluster. A seed fixes the first images and the initial weights for all strategies.
A further run per seed, "all labels", gives the upper line: it trains on the whole pool, with the
same rounds, steps, schedule and checkpoint rule as the strategies (--no-upper-line: none).

`study/runs.csv` gets a row for each finished run. The command can be stopped at any time; when
started again, it performs only the missing runs. `study/study.json` holds the settings, which must
stay the same. With `--copies 5`, every image of the pool occurs five times with slight changes;
with `--originals 2400`, the pool is first cut to that many random images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from active_learning import ActiveLearner, Observer, run
from benchmarks.near_duplicates import with_near_duplicates
from benchmarks.records import read_records, write_records
from data import ImageStore, Splits
from errors import UserError, exit_status
from reporting.files import write_atomically
from tools.compare.runs import ALL_LABELS
from training.experiment_config import load, override
from training.hyperparameters import Hyperparameters
from training.loading import evaluated_part, load_data
from training.oracle import Proposal, SimulatedOracle
from training.precision import compute_dtype
from training.seeds import make_generator

RANDOM = "random"
GRID = ("query_strategy", "seed")
# Settings that change where and how fast a run computes, but not its result.
LOCAL = ("data_dir", "scoring_batch_size")
CURVES = ("labels", "val_accuracy", "val_auc", "test_accuracy", "test_auc")
COLUMNS = ("strategy", "seed", *CURVES, "query_seconds", "seconds")


@dataclass(frozen=True)
class Study:
    """The grid of runs.

    values: the hyperparameters, except those of `GRID`. upper_line: whether each seed has a run
    with all labels. originals: the pool is cut to this many
    random images; 0: to none. copies: how often the pool has each of them.
    """

    values: dict[str, Any]
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    upper_line: bool
    originals: int
    copies: int

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Every (strategy, seed), seed by seed, so that an unfinished study is still balanced.

        The upper line comes last, because the comparison of strategies does not need it.
        """
        compared = [(name, seed) for seed, name in itertools.product(self.seeds, self.strategies)]
        return compared + [(ALL_LABELS, seed) for seed in self.seeds if self.upper_line]


def read_study(arguments: argparse.Namespace) -> Study:
    """Read the grid in --config, changed by --set.

    Raises:
        UserError: a hyperparameter outside the grid has a range, or a value is invalid.
    """
    config = override(load(arguments.config), arguments.set)
    values = dict(config["hyperparameters"])
    originals, copies = arguments.originals, arguments.copies
    grid = []
    for name in GRID:
        value = values.pop(name, None)
        choices = value.get("vals") if isinstance(value, dict) else [value]
        if not isinstance(choices, list) or not choices:
            raise UserError(f"hyperparameters.{name}: {value!r} is not a choice; list it in vals")
        grid.append(choices)
    ranges = [name for name, value in values.items() if isinstance(value, dict)]
    if ranges:
        raise UserError(
            f"hyperparameters.{ranges[0]}: a range; give it one value, because only query_strategy "
            "and seed may be ranges here"
        )
    if originals < 0:
        raise UserError(f"--originals {originals}: must be 0 or more; 0 keeps the whole pool")
    if copies < 1:
        raise UserError(f"--copies {copies}: must be 1 or more; 1 is the pool as it is")
    for strategy, seed in itertools.product(*grid):
        hp = Hyperparameters.from_mapping({**values, "query_strategy": strategy, "seed": seed})
    values = {name: value for name, value in hp.resolved().items() if name not in GRID}
    names, seeds = (tuple(choices) for choices in grid)
    return Study(values, names, seeds, not arguments.no_upper_line, originals, copies)


@lru_cache(maxsize=1)
def _splits(hp: Hyperparameters, originals: int, copies: int) -> Splits:
    """The data, read once per process; no run changes it."""
    splits = load_data(hp)
    if originals:
        splits = replace(splits, train=_part(splits.train, originals))
    if copies > 1:
        splits = replace(splits, train=with_near_duplicates(splits.train, copies))
    return splits


def _part(store: ImageStore, size: int) -> ImageStore:
    """A random but fixed selection of `size` images of `store`.

    Raises:
        UserError: there are fewer.
    """
    if size > len(store):
        raise UserError(f"--originals {size}: the pool has only {len(store)} images")
    generator = make_generator(0, "part of the pool")
    return store.subset(torch.randperm(len(store), generator=generator)[:size])


class QuerySeconds(Observer):
    """Sums the seconds of all queries."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def labelled(self, proposal: Proposal) -> None:
        self.seconds += proposal.seconds


def with_all_labels(values: dict[str, Any], size: int) -> dict[str, Any]:
    """The settings of the upper line for a pool of `size` images.

    Each round after the first adds one image, so that rounds, steps and schedule equal those of the
    strategies. With 20 rounds, the first round has all but 19 images.
    """
    rounds = len(_sizes(values, size))
    return values | {
        "initial_labeled_size": size - (rounds - 1),
        "samples_to_label": 1,
        "label_budget": size,
        "rounds": rounds,
        "query_strategy": RANDOM,
    }


def _sizes(values: dict[str, Any], pool_size: int) -> tuple[int, ...]:
    hp = Hyperparameters.from_mapping({**values, "query_strategy": RANDOM, "seed": 0})
    return hp.query_sizes(pool_size)


def run_once(
    values: dict[str, Any], originals: int, copies: int, strategy: str, seed: int
) -> dict[str, Any]:
    """Run one strategy with one seed up to the budget; returns the row of runs.csv.

    A curve is a string with one number per round, separated by spaces.
    """
    reading = Hyperparameters.from_mapping({**values, "query_strategy": RANDOM, "seed": 0})
    splits = _splits(reading, originals, copies)
    settings = {**values, "query_strategy": strategy}
    if strategy == ALL_LABELS:
        settings = with_all_labels(values, len(splits.train))
    hp = Hyperparameters.from_mapping({**settings, "seed": seed})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner = ActiveLearner(hp, splits.train.to(device), seed)
    oracle = SimulatedOracle.of_trial(learner, splits.train)
    val, test = (
        evaluated_part(store, hp.evaluation_size).to(device) for store in (splits.val, splits.test)
    )
    started = time.perf_counter()
    curves: dict[str, list[str]] = {column: [] for column in CURVES}
    queries = QuerySeconds()
    for evaluation in run(learner, oracle, val, test, queries):
        curves["labels"].append(str(evaluation.labels))
        for split, measured in (("val", evaluation.val), ("test", evaluation.test)):
            for metric in ("accuracy", "auc"):
                curves[f"{split}_{metric}"].append(f"{measured[metric]:.5f}")
    return {
        "strategy": strategy,
        "seed": seed,
        **{column: " ".join(numbers) for column, numbers in curves.items()},
        "query_seconds": f"{queries.seconds:.1f}",
        "seconds": f"{time.perf_counter() - started:.1f}",
    }


def finished_rows(
    study: Study, missing: list[tuple[str, int]], processes: int
) -> Iterator[dict[str, Any]]:
    """Perform the `missing` runs, `processes` at a time; yields each row when its run finishes."""
    fixed = (study.values, study.originals, study.copies)
    if processes == 1:
        for entry in missing:
            yield run_once(*fixed, *entry)
        return
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    with ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(threads,),
    ) as pool:
        futures = [pool.submit(run_once, *fixed, *entry) for entry in missing]
        for future in as_completed(futures):
            yield future.result()


def open_study(folder: Path, study: Study) -> list[dict[str, Any]]:
    """Read the rows in `folder`, or create the folder if it does not exist.

    Raises:
        UserError: the recorded runs used other settings, or computed in another number type.
    """
    settings = {name: value for name, value in study.values.items() if name not in LOCAL}
    if study.originals:
        settings["originals"] = study.originals
    if study.copies > 1:
        settings["copies"] = study.copies
    file, rows = folder / "study.json", folder / "runs.csv"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = str(compute_dtype(study.values["precision"], device)).removeprefix("torch.")
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        machine = {
            "dtype": dtype,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        write_atomically(file, json.dumps({"hyperparameters": settings, **machine}, indent=2))
    record = json.loads(file.read_text(encoding="utf-8"))
    if record.get("dtype", dtype) != dtype:
        raise UserError(
            f"precision: {dtype} on this machine, but the runs in {folder} had {record['dtype']}, "
            "which gives other figures; continue where they ran, or give another --output"
        )
    recorded = record["hyperparameters"]
    # A hyperparameter that is newer than the record had the effect of its default.
    defaults = Hyperparameters().resolved()
    recorded = {name: defaults[name] for name in settings if name in defaults} | recorded
    for name in sorted({*recorded, *settings}):
        if recorded.get(name) != settings.get(name):
            raise UserError(
                f"hyperparameters.{name}: {settings.get(name)!r}, but the runs in {folder} had "
                f"{recorded.get(name)!r}; set it back, or give another --output"
            )
    return read_records(rows)


def do_missing_runs(arguments: argparse.Namespace) -> None:
    """Perform the runs that the study does not have yet."""
    study = read_study(arguments)
    if arguments.data_dir:
        study.values["data_dir"] = arguments.data_dir
    reading = Hyperparameters.from_mapping({**study.values, "query_strategy": RANDOM, "seed": 0})
    _splits(reading, study.originals, study.copies)  # refuses data that cannot be used
    rows = open_study(arguments.output, study)
    finished = {(row["strategy"], int(row["seed"])) for row in rows}
    missing = [entry for entry in study.runs if entry not in finished]
    started = time.time()
    _report(arguments.output, len(study.runs), len(missing), 0, started)
    for count, row in enumerate(finished_rows(study, missing, arguments.processes), start=1):
        rows.append(row)
        write_records(arguments.output / "runs.csv", COLUMNS, rows)
        print(
            f"{row['strategy']}, seed {row['seed']}: test accuracy "
            f"{row['test_accuracy'].split()[-1]} at {row['labels'].split()[-1]} labels "
            f"({row['seconds']} s)",
            flush=True,
        )
        _report(arguments.output, len(study.runs), len(missing), count, started)


def _report(folder: Path, total: int, missing: int, count: int, started: float) -> None:
    """Print the progress of the study and write it to progress.txt."""
    text = f"{total - missing + count} of {total} runs are finished"
    if count:
        hours = (time.time() - started) / count * (missing - count) / 3600
        text += f"; the others take about {hours:.1f} h more"
    print(text, flush=True)
    write_atomically(folder / "progress.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/strategies.yaml"))
    parser.add_argument("--data-dir", help="overrides hyperparameters.data_dir")
    parser.add_argument("--output", type=Path, required=True, metavar="STUDY")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--no-upper-line", action="store_true", help="no runs with all labels")
    parser.add_argument(
        "--originals", type=int, default=0, help="random images that the pool keeps; 0: all"
    )
    parser.add_argument(
        "--copies", type=int, default=1, help="slightly different copies of each image"
    )
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: do_missing_runs(arguments))


if __name__ == "__main__":
    sys.exit(main())
