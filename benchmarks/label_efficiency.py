"""Which query strategy needs the fewest labels? Every strategy with every seed, off the cluster.

    python -m benchmarks.label_efficiency --data-dir data --output study
    python -m benchmarks.label_efficiency --data-dir data --output study --processes 2 \\
        --set hyperparameters.architecture=small_cnn hyperparameters.dataset=breastmnist
    python -m benchmarks.comparison study    # statistics and figures, see there

The grid is `configs/strategies.yaml`, or another with ranges for `query_strategy` and `seed`. A
seed fixes the first images and the initial weights, the same for every strategy. Beside the
grid's strategies one more run per seed, "all labels", trains on the whole pool for as many steps:
the upper line.

`study/runs.csv` gets a row per finished run; started again, the command does the runs that are
missing. `study/study.json` holds the settings, which must not change meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from active_learning import ActiveLearner, SimulatedOracle, run
from data import Splits
from errors import UserError
from reporting.files import csv_text, write_atomically
from training.experiment_config import load, override
from training.hyperparameters import Hyperparameters
from training.loading import evaluated_part, load_data

ALL_LABELS = "all labels"
GRID = ("query_strategy", "seed")
# Settings that say where and how fast a run computes, not what.
LOCAL = ("data_dir", "scoring_batch_size")
CURVES = ("labels", "val_accuracy", "val_auc", "test_accuracy", "test_auc")
COLUMNS = ("strategy", "seed", *CURVES, "query_seconds", "seconds")


@dataclass(frozen=True)
class Study:
    """What is compared: `values` are hyperparameters, but for the grid's two."""

    values: dict[str, Any]
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Every (strategy, seed), seed by seed, so that an unfinished study is a fair one.

        The upper line comes last: without it the strategies can be compared as well.
        """
        compared = [(name, seed) for seed, name in itertools.product(self.seeds, self.strategies)]
        return compared + [(ALL_LABELS, seed) for seed in self.seeds]


def read_study(config: Path, settings: list[str]) -> Study:
    """The grid in `config` after `settings`, or UserError for one that is none."""
    values = dict(override(load(config), settings)["hyperparameters"])
    grid = []
    for name in GRID:
        value = values.pop(name, None)
        choices = value.get("vals") if isinstance(value, dict) else [value]
        if not isinstance(choices, list) or not choices:
            raise UserError(f"hyperparameters.{name}: {value!r} is no choice; list them in vals")
        grid.append(choices)
    ranges = [name for name, value in values.items() if isinstance(value, dict)]
    if ranges:
        raise UserError(
            f"hyperparameters.{ranges[0]}: a range; of a comparison only query_strategy and seed "
            "may be ranges, so give it one value"
        )
    for strategy, seed in itertools.product(*grid):
        hp = Hyperparameters.from_mapping({**values, "query_strategy": strategy, "seed": seed})
    values = {name: value for name, value in hp.resolved().items() if name not in GRID}
    return Study(values, tuple(grid[0]), tuple(grid[1]))


@lru_cache(maxsize=1)
def _splits(hp: Hyperparameters) -> Splits:
    """Read once per process; no run changes them."""
    return load_data(hp)


def run_once(values: dict[str, Any], strategy: str, seed: int) -> dict[str, Any]:
    """Train one strategy with one seed from the first labels to the last; returns its row.

    The curves are texts of numbers, one per round, with a space between.
    """
    reading = Hyperparameters.from_mapping({**values, "query_strategy": "random", "seed": 0})
    splits = _splits(reading)
    if strategy == ALL_LABELS:
        size = len(splits.train)
        rounds = len(reading.query_sizes(size))
        values = values | {
            "initial_labeled_size": size,
            "label_budget": size,
            "rounds": 1,
            "batches_per_round": values["batches_per_round"] * rounds,
        }
    name = "random" if strategy == ALL_LABELS else strategy
    hp = Hyperparameters.from_mapping({**values, "query_strategy": name, "seed": seed})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    oracle = SimulatedOracle.of_trial(hp, splits.train, seed)
    learner = ActiveLearner(hp, splits.train.to(device), oracle, seed)
    val, test = (
        evaluated_part(store, hp.evaluation_size).to(device) for store in (splits.val, splits.test)
    )
    started = time.perf_counter()
    curves: dict[str, list[str]] = {column: [] for column in CURVES}
    query_seconds = 0.0
    for query, *metrics in run(learner, val, test):
        query_seconds += query.seconds
        curves["labels"].append(str(len(learner.pool.labelled)))
        for split, values_ in zip(("val", "test"), metrics, strict=True):
            for metric in ("accuracy", "auc"):
                curves[f"{split}_{metric}"].append(f"{values_[metric]:.5f}")
    return {
        "strategy": strategy,
        "seed": seed,
        **{column: " ".join(numbers) for column, numbers in curves.items()},
        "query_seconds": f"{query_seconds:.1f}",
        "seconds": f"{time.perf_counter() - started:.1f}",
    }


def finished_rows(
    study: Study, missing: list[tuple[str, int]], processes: int
) -> Iterator[dict[str, Any]]:
    """The rows of the runs that are `missing`, as they come in, so many runs at a time."""
    if processes == 1:
        for entry in missing:
            yield run_once(study.values, *entry)
        return
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    with ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(threads,),
    ) as pool:
        futures = [pool.submit(run_once, study.values, *entry) for entry in missing]
        for future in as_completed(futures):
            yield future.result()


def open_study(folder: Path, study: Study) -> list[dict[str, Any]]:
    """The rows that `folder` has already, which must be of the same settings; made if new."""
    settings = {name: value for name, value in study.values.items() if name not in LOCAL}
    file, rows = folder / "study.json", folder / "runs.csv"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        machine = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        write_atomically(file, json.dumps({"hyperparameters": settings, **machine}, indent=2))
    then = json.loads(file.read_text(encoding="utf-8"))["hyperparameters"]
    for name in sorted({*then, *settings}):
        if then.get(name) != settings.get(name):
            raise UserError(
                f"hyperparameters.{name}: {settings.get(name)!r}, but the runs in {folder} had "
                f"{then.get(name)!r}; set it back, or give another --output"
            )
    if not rows.exists():
        return []
    with rows.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def main(argv: list[str] | None = None) -> int:
    """Do the runs that are missing; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/strategies.yaml"))
    parser.add_argument("--data-dir", help="in place of hyperparameters.data_dir")
    parser.add_argument("--output", type=Path, required=True, metavar="STUDY")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args(argv)
    try:
        study = read_study(arguments.config, arguments.set)
        rows = open_study(arguments.output, study)
        if arguments.data_dir:
            study.values["data_dir"] = arguments.data_dir
        reading = {**study.values, "query_strategy": "random", "seed": 0}
        load_data(Hyperparameters.from_mapping(reading))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    done = {(row["strategy"], int(row["seed"])) for row in rows}
    missing = [entry for entry in study.runs if entry not in done]
    print(f"{len(study.runs)} runs, {len(missing)} of them to do", flush=True)
    for row in finished_rows(study, missing, arguments.processes):
        rows.append(row)
        table = csv_text(COLUMNS, ([row[column] for column in COLUMNS] for row in rows))
        write_atomically(arguments.output / "runs.csv", table)
        print(
            f"{row['strategy']}, seed {row['seed']}: test accuracy "
            f"{row['test_accuracy'].split()[-1]} at {row['labels'].split()[-1]} labels "
            f"({row['seconds']} s)",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
