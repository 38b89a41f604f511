"""Which images to label first, before there is a network that has seen a label?

    python -m benchmarks.first_labels --output first_labels.csv
    python -m benchmarks.first_labels --run features --data-dir data --output first_labels.csv

Every strategy chooses 16 images of the pool. Each other image of the pool then gets the label of
the nearest chosen one, by embeddings of length 1. The figure is the share of right labels. The
embeddings are the pixels of scikit-learn's digits and, with `--run`, those that a run's network
makes of its pool; benchmarks/frozen_features.py says how to train one. Seconds are of one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.records import write_records
from data import load_splits
from errors import exit_status
from query_strategies import PoolScores, get_strategy
from run_folder.reader import open_run
from training.seeds import make_generator

LABELS = 16
STRATEGIES = ("max_herding", "typiclust", "k_means", "prob_cover", "k_center", "random")
COLUMNS = ("images", "strategy", "seed", "labels", "accuracy", "seconds")


def pools(arguments: argparse.Namespace) -> dict[str, tuple[Tensor, Tensor]]:
    """Embeddings float32 [N, D] and labels int64 [N] of each pool, by name."""
    digits = load_splits(
        "digits", ".", image_size=8, split_seed=0, validation_fraction=0.15, test_fraction=0.15
    ).train
    found = {"digits, pixels": (digits.images.flatten(1).float(), digits.labels)}
    if arguments.run is not None:
        run = open_run(arguments.run, data_dir=arguments.data_dir)
        train = run.splits.train
        embeddings = run.inference.embed(train.images, "embedding").float().cpu()
        name = f"{run.splits.name}, {run.hp.architecture} of {len(run.pool.labelled)} labels"
        found[name] = (embeddings, train.labels)
    return found


def chosen_by(strategy: str, embeddings: Tensor, classes: int, seed: int) -> Tensor:
    """Positions int64 [LABELS] of the images that `strategy` labels first."""
    candidates = torch.arange(len(embeddings))
    # prob_cover reads the number of classes from them; no strategy here reads their values.
    undecided = torch.full((1, len(embeddings), classes), 1 / classes)
    scores = PoolScores(candidates, undecided, embeddings, None)
    return get_strategy(strategy, 10).select(scores, LABELS, make_generator(seed, "first labels"))


def nearest_label_accuracy(embeddings: Tensor, labels: Tensor, chosen: Tensor) -> float:
    """Share of the images not in `chosen` whose nearest image of `chosen` has their label."""
    unit = F.normalize(embeddings, dim=1)
    right = labels[chosen][(unit @ unit[chosen].T).argmax(dim=1)] == labels
    others = torch.ones_like(right)
    others[chosen] = False
    return float(right[others].float().mean())


def measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each pool, strategy and seed."""
    rows: list[dict[str, Any]] = []
    for name, (embeddings, labels) in pools(arguments).items():
        for strategy in STRATEGIES:
            for seed in range(arguments.seeds):
                started = time.process_time()
                chosen = chosen_by(strategy, embeddings, int(labels.max()) + 1, seed)
                seconds = time.process_time() - started
                accuracy = nearest_label_accuracy(embeddings, labels, chosen)
                values = (name, strategy, seed, LABELS, f"{accuracy:.4f}", f"{seconds:.2f}")
                rows.append(dict(zip(COLUMNS, values, strict=True)))
            shown = [float(row["accuracy"]) for row in rows[-arguments.seeds :]]
            print(f"{name}, {strategy}: {mean(shown):.3f}", flush=True)
    return rows


def summary(rows: Sequence[dict[str, str]]) -> list[list[str]]:
    """A table row for each pool and strategy: accuracy with its standard deviation, and seconds."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["images"], row["strategy"]), []).append(row)
    return [
        [
            *names,
            str(len(of_group)),
            f"{mean(values):.3f} ± {stdev(values):.3f}",
            f"{mean(float(row['seconds']) for row in of_group):.1f}",
        ]
        for names, of_group in groups.items()
        for values in [[float(row["accuracy"]) for row in of_group]]
    ]


def measure(arguments: argparse.Namespace) -> None:
    """Measure, and write the table."""
    torch.set_num_threads(1)
    rows = measured(arguments)
    write_records(arguments.output, COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="the run whose network embeds its pool")
    parser.add_argument("--data-dir", type=Path, help="overrides the run's data_dir")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path, required=True, metavar="CSV")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
