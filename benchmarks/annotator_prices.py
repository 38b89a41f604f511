"""When do a cheap annotator and an expert together beat either alone? A grid of prices and noise.

    python -m benchmarks.annotator_prices --output annotator_prices.csv
    python -m benchmarks.annotator_prices --run features --data-dir data --output prices.csv

The comparison of benchmarks.annotators, with a logistic regression on frozen embeddings in place of
the network, so that a run takes a second. Margin chooses among all images. The embeddings are the
pixels of scikit-learn's digits and, with `--run`, those that a run's network makes of its pool;
benchmarks/frozen_features.py says how to train one. Each finished run is a row of the CSV file;
when started again, the command performs only the missing runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.annotators import ARMS, COLUMNS, CURVES, AtRandom, Curves, add_round, settings_of
from benchmarks.frozen_features import REGIMES, Features, embedded, logits, train_head
from benchmarks.records import read_records, write_records
from data import ImageStore, load_splits
from errors import exit_status
from query_strategies import PoolScores, get_strategy
from run_folder.reader import open_run
from training.hyperparameters import Hyperparameters
from training.oracle import Proposal, SimulatedOracle
from training.pool import Pool
from training.seeds import make_generator

ROUNDS, MINUTES_PER_ROUND = 10, 8.0
NOISE, EXPERT_SECONDS = (0.1, 0.3), (20.0, 60.0)


class FrozenLearner:
    """What the oracle reads of a learner, for a logistic regression on frozen embeddings."""

    def __init__(self, hp: Hyperparameters, features: Features, seed: int) -> None:
        self.hp = hp
        self.seed = seed
        self.pool = Pool(len(features.pool[1]))
        self._features = features
        self._weights = torch.empty(0)

    def probabilities_of(self, indices: Tensor) -> Tensor:
        """Class probabilities, float32 [k, C]."""
        return logits(self._features.pool[0][indices], self._weights).softmax(1)

    def label(self, round_: int, size: int, oracle: SimulatedOracle) -> None:
        """Have `size` images labelled: random ones at first, then those of smallest margin."""
        unlabelled = self.pool.unlabelled
        generator = make_generator(self.seed, "query", round_)
        if round_ == 0:
            indices = unlabelled[torch.randperm(len(unlabelled), generator=generator)[:size]]
        else:
            probabilities = self.probabilities_of(unlabelled)[None]
            scores = PoolScores(unlabelled, probabilities, None, None)
            indices = get_strategy("margin", 10).select(scores, size, generator)
        self.pool.ask(indices, round_)
        answers = oracle.answer(Proposal(round_, "margin", indices, None, None, 0.0))
        self.pool.answer(answers)
        self.pool.correct(answers.corrections)
        self.pool.rounds = round_ + 1

    def train(self) -> None:
        """Train a new regression on all labels so far."""
        labelled = self.pool.labelled
        embeddings, labels = self._features.pool[0][labelled], self.pool.labels[labelled]
        self._weights = train_head(embeddings, labels, self._features.classes)

    def accuracy(self, split: tuple[Tensor, Tensor]) -> float:
        """Share of a split's images that it classifies right."""
        return float((logits(split[0], self._weights).argmax(1) == split[1]).float().mean())


def run_once(
    name: str, features: Features, arm: str, noise: float, expert_seconds: float, seed: int
) -> dict[str, Any]:
    """One run of one arm; returns its row."""
    started = time.process_time()
    sizes = settings_of(arm, noise, expert_seconds, MINUTES_PER_ROUND)
    hp = Hyperparameters.from_mapping({**sizes, "rounds": ROUNDS})
    learner = FrozenLearner(hp, features, seed)
    truth = features.pool[1]
    classes = tuple(map(str, range(features.classes)))
    labels_only = ImageStore(torch.zeros(len(truth), 1, 1, 1, dtype=torch.uint8), truth, classes)
    doubter = AtRandom(learner, features.classes) if arm == "both, at random" else learner
    oracle = SimulatedOracle.of_trial(doubter, labels_only)
    curves: Curves = {name: [] for name in CURVES}
    for round_, size in enumerate(hp.query_sizes(len(truth))):
        learner.label(round_, size, oracle)
        learner.train()
        minutes = learner.pool.minutes(hp.seconds_per_label)
        accuracies = (learner.accuracy(features.val), learner.accuracy(features.test))
        add_round(curves, learner.pool, minutes, truth, accuracies)
    return {
        **{"dataset": name, "architecture": "logistic regression"},
        **{"noise": noise, "expert_seconds": expert_seconds, "arm": arm, "seed": seed},
        **{name: " ".join(numbers) for name, numbers in curves.items()},
        "seconds": f"{time.process_time() - started:.1f}",
    }


def do_missing_runs(arguments: argparse.Namespace) -> None:
    """Perform the runs that the file does not have yet."""
    torch.set_num_threads(1)
    studies = {"digits, pixels": digits_pixels()}
    if arguments.run is not None:
        run = open_run(arguments.run, data_dir=arguments.data_dir)
        studies[f"{run.splits.name}, {run.hp.architecture}"] = embedded(run, REGIMES[0])
    rows = read_records(arguments.output)
    keys = ("dataset", "noise", "expert_seconds", "arm", "seed")
    finished = {tuple(str(row[key]) for key in keys) for row in rows}
    for seed in range(arguments.seeds):
        for name, features in studies.items():
            for noise in NOISE:
                for price in EXPERT_SECONDS:
                    for arm in ARMS:
                        if (name, str(noise), str(price), arm, str(seed)) not in finished:
                            rows.append(run_once(name, features, arm, noise, price, seed))
            write_records(arguments.output, COLUMNS, rows)
            print(f"seed {seed}, {name}", flush=True)


def digits_pixels() -> Features:
    """The standardised pixels of the digits."""
    splits = load_splits(
        "digits", ".", image_size=8, split_seed=0, validation_fraction=0.15, test_fraction=0.15
    )
    stores = (splits.train, splits.val, splits.test)
    raw = [store.images.flatten(1).float() for store in stores]
    mean, std = raw[0].mean(0), raw[0].std(0).clamp_min(1.0)
    pool, val, test = (
        ((values - mean) / std, store.labels) for values, store in zip(raw, stores, strict=True)
    )
    return Features(pool, val, test, splits.num_classes)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="the run whose network embeds its pool")
    parser.add_argument("--data-dir", type=Path, help="overrides the run's data_dir")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path, required=True, metavar="CSV")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: do_missing_runs(arguments))


if __name__ == "__main__":
    sys.exit(main())
