"""Finds and reads runs: run folders, checkpoints, folders of either, and studies.

A study is what `benchmarks.label_efficiency` writes: study.json and runs.csv.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from run_folder.description import DAMAGE, one_line, read_description
from run_folder.names import DESCRIPTION
from run_folder.tables import MetricsTable
from tools.compare.statistics import Floats

ALL_LABELS = "all labels"  # the strategy's name in a study's rows of the upper line


@dataclass(frozen=True)
class Run:
    """One finished run.

    settings: its hyperparameters, without the seed. data: names the data set and its content.
    labels, val, test: labelled images, validation accuracy and test accuracy after each round, [R].
    """

    path: Path
    settings: Mapping[str, Any]
    seed: int
    data: str
    labels: Floats
    val: Floats
    test: Floats

    @property
    def is_upper(self) -> bool:
        """Whether the run has all labels, so that it belongs to the upper line."""
        return self.settings["query_strategy"] == ALL_LABELS


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at `paths`, each a run folder, a checkpoint, a study, or a folder of any of these.

    Raises:
        UserError: a path holds no run, or a damaged one.
    """
    runs = []
    for path in paths:
        found = list(_runs_below(path))
        if not found:
            raise UserError(
                f"{path}: holds no run; name a run folder, a checkpoint, or a folder of them"
            )
        runs += found
    return runs


def _runs_below(path: Path) -> Iterator[Run]:
    if (path / "study.json").exists():
        yield from read_study(path)
    elif (path / DESCRIPTION).exists():
        yield read_run(path)
    elif path.is_dir():
        for folder in sorted(one for one in path.iterdir() if one.is_dir()):
            yield from _runs_below(folder)


def read_run(path: Path) -> Run:
    """The run whose run folder or checkpoint is `path`.

    Raises:
        UserError: a file is missing or damaged, or no round has been evaluated.
    """
    description, _ = read_description(path)
    try:
        rounds = MetricsTable.read(path).rows.values()
        rows = [row for row in rounds if "val_accuracy" in row]
        run = Run(
            path=path,
            settings={n: value for n, value in description.settings.items() if n != "seed"},
            seed=description.seed,
            data=f"{description.dataset} (fingerprint {description.fingerprint[:12]})",
            labels=_column(rows, "labeled_samples"),
            val=_column(rows, "val_accuracy"),
            test=_column(rows, "test_accuracy"),
        )
    except (csv.Error, *DAMAGE) as error:
        raise UserError(f"{path}: not a whole run ({one_line(error)}); name another one") from error
    if not rows:
        raise UserError(f"{path}: no round has been evaluated yet; let the run finish one")
    return run


def _column(rows: Sequence[Mapping[str, float]], name: str) -> Floats:
    return np.array([float(row[name]) for row in rows])


def read_study(folder: Path) -> list[Run]:
    """The runs of the study in `folder`, the upper line's included.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        settings = json.loads((folder / "study.json").read_text(encoding="utf-8"))[
            "hyperparameters"
        ]
        with (folder / "runs.csv").open(newline="", encoding="utf-8") as lines:
            return [
                Run(
                    path=folder,
                    settings={**settings, "query_strategy": row["strategy"]},
                    seed=int(row["seed"]),
                    data=str(settings["dataset"]),
                    labels=_numbers(row["labels"]),
                    val=_numbers(row["val_accuracy"]),
                    test=_numbers(row["test_accuracy"]),
                )
                for row in csv.DictReader(lines)
            ]
    except (csv.Error, *DAMAGE) as error:
        reason = one_line(error)
        raise UserError(f"{folder}: not a whole study ({reason}); name another one") from error


def _numbers(text: str) -> Floats:
    return np.array([float(number) for number in text.split()])
