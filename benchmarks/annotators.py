"""Compares a cheap annotator, an expert, and both together, at equal minutes of annotation.

    python -m benchmarks.annotators --data-dir data --output blood.csv
    python -m benchmarks.annotators --config configs/digits.yaml --output digits.csv \\
        --minutes-per-round 4 --set hyperparameters.architecture=small_cnn

The cheap annotator takes 5 s for a label, and the share `--noise` of its labels is wrong. The
expert takes `--expert-seconds` and makes no mistake. There are four ways to spend the same minutes
in each round:

- `cheap`: many labels of the cheap annotator.
- `expert`: fewer labels of the expert.
- `both`: labels of the cheap annotator, of which the expert gives a quarter again: those that the
  network doubts most (`training.oracle.TwoAnnotators`).
- `both, at random`: the same, but a random quarter. This is the control.

In the first round all but `expert` have labels of the cheap annotator alone. Rounds, steps and
schedule are the same for all. Each finished run is a row of the CSV file; when started again, the
command performs only the missing runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from active_learning import ActiveLearner, run
from benchmarks.records import read_records, write_records
from errors import exit_status
from tools.compare.statistics import half_width
from tools.compare.tables import plus_minus
from training.experiment_config import load, override
from training.hyperparameters import Hyperparameters
from training.loading import evaluated_part, load_data
from training.oracle import Learner, SimulatedOracle
from training.pool import Pool
from training.seeds import make_generator

CHEAP_SECONDS, SHARE = 5.0, 0.25
ARMS = ("cheap", "expert", "both", "both, at random")
CURVES = ("minutes", "labels", "wrong_labels", "val_accuracy", "test_accuracy")
COLUMNS = (
    "dataset", "architecture", "noise", "expert_seconds", "arm", "seed", *CURVES, "seconds",
)  # fmt: skip
Curves = dict[str, list[str]]  # a text for each round, by the names of `CURVES`


class AtRandom:
    """What the oracle reads of `learner`, with random class probabilities: the control."""

    def __init__(self, learner: Learner, classes: int) -> None:
        self.hp = learner.hp
        self.seed = learner.seed
        self.pool = learner.pool
        self._classes = classes

    def probabilities_of(self, indices: Tensor) -> Tensor:
        """Random class probabilities, float32 [k, C]."""
        generator = make_generator(self.seed, "random doubts", self.pool.rounds)
        return torch.randn(len(indices), self._classes, generator=generator).softmax(1)


def settings_of(
    arm: str, noise: float, expert_seconds: float, minutes_per_round: float
) -> dict[str, Any]:
    """Annotators and round sizes by which each round of `arm` takes `minutes_per_round`."""
    seconds = 60 * minutes_per_round
    if arm == "expert":
        labels = round(seconds / expert_seconds)
        return {
            "seconds_per_label": expert_seconds,
            "initial_labeled_size": labels,
            "samples_to_label": labels,
        }
    price = CHEAP_SECONDS + (0 if arm == "cheap" else SHARE * expert_seconds)
    return {
        "label_noise": noise,
        "seconds_per_label": CHEAP_SECONDS,
        "expert_share": 0.0 if arm == "cheap" else SHARE,
        "expert_seconds_per_label": expert_seconds,
        "initial_labeled_size": round(seconds / CHEAP_SECONDS),
        "samples_to_label": round(seconds / price),
    }


def run_once(
    values: Mapping[str, Any], arm: str, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One run of one arm; returns its row. A curve is text, one number per round."""
    noise, minutes_per_round = arguments.noise, arguments.minutes_per_round
    annotators = settings_of(arm, noise, arguments.expert_seconds, minutes_per_round)
    budget = values["rounds"] * minutes_per_round
    changes = {**annotators, "minutes_budget": budget, "label_budget": 0, "seed": seed}
    hp = Hyperparameters.from_mapping({**values, **changes})
    splits = load_data(hp)
    truth = splits.train.labels
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner = ActiveLearner(hp, splits.train.to(device), seed)
    at_random = arm == "both, at random"
    doubter = AtRandom(learner, splits.num_classes) if at_random else learner
    oracle = SimulatedOracle.of_trial(doubter, splits.train)
    val, test = (
        evaluated_part(store, hp.evaluation_size).to(device) for store in (splits.val, splits.test)
    )
    started = time.perf_counter()
    curves: Curves = {name: [] for name in CURVES}
    for evaluation in run(learner, oracle, val, test):
        accuracies = (evaluation.val["accuracy"], evaluation.test["accuracy"])
        add_round(curves, learner.pool, evaluation.annotation_minutes, truth, accuracies)
    return {
        **{"dataset": hp.dataset, "architecture": hp.architecture},
        **{"noise": noise, "expert_seconds": arguments.expert_seconds, "arm": arm, "seed": seed},
        **{name: " ".join(numbers) for name, numbers in curves.items()},
        "seconds": f"{time.perf_counter() - started:.0f}",
    }


def add_round(
    curves: Curves, pool: Pool, minutes: float, truth: Tensor, accuracies: tuple[float, float]
) -> None:
    """Add a round to the curves of a run.

    truth: true labels of the pool, int64 [N]. accuracies: on validation and on test.
    """
    labelled = pool.labelled
    wrong = int((pool.labels[labelled] != truth[labelled]).sum())
    numbers = (f"{minutes:.1f}", str(len(labelled)), str(wrong), *map("{:.4f}".format, accuracies))
    for name, number in zip(CURVES, numbers, strict=True):
        curves[name].append(number)


def do_missing_runs(arguments: argparse.Namespace) -> None:
    """Perform the runs that the file does not have yet."""
    torch.set_num_threads(1)
    values = override(load(arguments.config), arguments.set)["hyperparameters"]
    if arguments.data_dir:
        values["data_dir"] = arguments.data_dir
    rows = read_records(arguments.output)
    finished = {
        (float(row["noise"]), float(row["expert_seconds"]), row["arm"], int(row["seed"]))
        for row in rows
    }
    for seed in range(arguments.seeds):
        for arm in ARMS:
            if (arguments.noise, arguments.expert_seconds, arm, seed) in finished:
                continue
            row = run_once(values, arm, seed, arguments)
            rows.append(row)
            write_records(arguments.output, COLUMNS, rows)
            print(
                f"seed {seed}, {arm}: test accuracy {row['test_accuracy'].split()[-1]} with "
                f"{row['labels'].split()[-1]} labels, {row['wrong_labels'].split()[-1]} of them "
                f"wrong ({row['seconds']} s)",
                flush=True,
            )


def summary(rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """A table row for each data set, noise, expert's time and arm.

    It holds the labels and the share of wrong ones at the end; test accuracy, as a mean over the
    rounds and at the end; and by how much `both` exceeds either, paired by seed: means with 95 %
    intervals over seeds.
    """
    lines = []
    keys = ("dataset", "noise", "expert_seconds")
    for study in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        of_study = [row for row in rows if tuple(row[key] for key in keys) == study]
        dataset, noise, expert_seconds = study
        by_arm = {
            arm: sorted((r for r in of_study if r["arm"] == arm), key=lambda r: int(r["seed"]))
            for arm in ARMS
        }
        curves = {
            arm: np.array([[float(x) for x in row["test_accuracy"].split()] for row in of_arm])
            for arm, of_arm in by_arm.items()
        }
        for arm, of_arm in by_arm.items():
            labels, wrong = (
                np.array([int(row[name].split()[-1]) for row in of_arm])
                for name in ("labels", "wrong_labels")
            )
            measured = (curves[arm].mean(1), curves[arm][:, -1])
            of_both = (curves["both"].mean(1), curves["both"][:, -1])
            gains = [ours - theirs for ours, theirs in zip(of_both, measured, strict=True)]
            lines.append(
                [
                    *(dataset, f"{float(noise):.0%}", f"{float(expert_seconds):.0f} s", arm),
                    *(str(len(of_arm)), str(labels[0])),
                    f"{(wrong / labels).mean():.1%}",
                    *map(plus_minus, measured),
                    *(
                        "" if arm == "both" else f"{gain.mean():+.3f} ± {half_width(gain):.3f}"
                        for gain in gains
                    ),
                ]
            )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/bloodmnist.yaml"))
    parser.add_argument("--data-dir", help="overrides hyperparameters.data_dir")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE")
    parser.add_argument("--noise", type=float, default=0.1, metavar="SHARE")
    parser.add_argument("--expert-seconds", type=float, default=20.0)
    parser.add_argument("--minutes-per-round", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True, metavar="CSV")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: do_missing_runs(arguments))


if __name__ == "__main__":
    sys.exit(main())
