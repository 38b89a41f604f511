"""Compares query strategies on a frozen network with a linear head: many seeds in minutes.

    python model_def.py --config configs/bloodmnist.yaml --data-dir data --output-dir features \\
        --set hyperparameters.query_strategy=random hyperparameters.label_budget=300 \\
        hyperparameters.seed=100
    python -m benchmarks.frozen_features --run features --data-dir data --output studies
    python -m benchmarks.comparison studies/queries_50 studies/queries_1200 --output figures

The run's network embeds all images once. After each query, a new logistic regression is trained on
the embeddings of the labelled images; dropout on the embeddings gives its Monte Carlo passes. The
figures therefore show which strategies help a head on these embeddings. They select strategies for
a full study with `benchmarks.label_efficiency`; they do not replace it.

The command writes three studies, each to its own folder, in the format of
`benchmarks.label_efficiency`: queries of 50 images; queries of 1,200 images, 10 % of the blood
cells; and queries of 100 images from a pool in which every image occurs five times with slight
changes. When started again, it performs only the missing runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.label_efficiency import COLUMNS
from benchmarks.near_duplicates import with_near_duplicates
from benchmarks.records import read_records, write_records
from errors import exit_status
from query_strategies import PoolScores, get_strategy
from reporting.files import write_atomically
from run_folder.reader import Run, open_run
from training.calibration import fit_temperature
from training.seeds import make_generator

CANDIDATES = 4000  # random unlabelled images per query; a large query gets more
PASSES, DROPOUT = 10, 0.2
PENALTY = 1e-3  # on the squared weights of the logistic regression
ITERATIONS = 60
PREFILTER_FACTOR = 10.0
MARGIN = "margin"
STRATEGIES = (
    "random", "margin", "entropy", "uncertainty_diversity", "margin_diversity", "cluster_margin",
    "spread_margin", "weighted_k_means", "badge", "u_herding", "drop_query", "falcun", "k_center",
)  # fmt: skip


@dataclass(frozen=True)
class Regime:
    """One study: `first` random labels, then queries of `query` labels up to `budget`.

    copies: number of slightly different copies of each image. originals: the pool is made of this
    many first images; 0 means all.
    """

    name: str
    first: int
    query: int
    budget: int
    copies: int = 1
    originals: int = 0


REGIMES = (
    Regime("queries_50", 100, 50, 500),
    Regime("queries_1200", 600, 1200, 3000),
    Regime("near_duplicates", 100, 100, 500, copies=5, originals=2400),
)


@dataclass(frozen=True)
class Features:
    """Standardised embeddings, float32 [N, D], and labels, int64 [N], of pool, val and test."""

    pool: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int


def embedded(run: Run, regime: Regime) -> Features:
    """Embed the images of a regime with the run's network."""
    train = run.splits.train
    if regime.originals:
        train = train.subset(torch.arange(regime.originals))
    if regime.copies > 1:
        train = with_near_duplicates(train, regime.copies)
    stores = (train, run.splits.val, run.splits.test)
    raw = [run.inference.embed(store.images, "embedding").float().cpu() for store in stores]
    mean, std = raw[0].mean(0), raw[0].std(0).clamp_min(1e-6)
    pool, val, test = ((values - mean) / std for values in raw)
    return Features(
        (pool, train.labels),
        (val, run.splits.val.labels),
        (test, run.splits.test.labels),
        len(run.splits.class_names),
    )


def train_head(embeddings: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Logistic regression: weights float32 [D + 1, classes], the bias in the last row."""
    inputs = F.pad(embeddings, (0, 1), value=1.0)
    weights = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weights, labels) + PENALTY * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def logits(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Logits float32 [n, classes]."""
    return embeddings @ weights[:-1] + weights[-1]


def run_once(features: Features, regime: Regime, strategy: str, seed: int) -> dict[str, Any]:
    """Run one strategy with one seed; returns a row as `benchmarks.label_efficiency` writes it."""
    started, query_seconds = time.process_time(), 0.0
    embeddings, labels = features.pool
    n = len(labels)
    first = torch.randperm(n, generator=make_generator(seed, "first"))[: regime.first]
    labelled = torch.zeros(n, dtype=torch.bool)
    labelled[first] = True
    curves: dict[str, list[str]] = {"labels": [], "val_accuracy": [], "test_accuracy": []}
    while True:
        labelled_indices = labelled.nonzero()[:, 0]
        weights = train_head(
            embeddings[labelled_indices], labels[labelled_indices], features.classes
        )
        curves["labels"].append(str(len(labelled_indices)))
        for split, (inputs, truth) in (("val", features.val), ("test", features.test)):
            accuracy = (logits(inputs, weights).argmax(1) == truth).float().mean()
            curves[f"{split}_accuracy"].append(f"{accuracy:.5f}")
        if len(labelled_indices) >= regime.budget:
            break
        before = time.process_time()
        temperature = fit_temperature(logits(features.val[0], weights), features.val[1])
        scores = _scores(
            embeddings, labelled, weights, temperature, regime, (seed, len(labelled_indices))
        )
        generator = make_generator(seed, "query", len(labelled_indices))
        labelled[
            get_strategy(strategy, PREFILTER_FACTOR).select(scores, regime.query, generator)
        ] = True
        query_seconds += time.process_time() - before
    texts = {name: " ".join(values) for name, values in curves.items()}
    seconds = time.process_time() - started
    return {
        "strategy": strategy, "seed": seed, **texts, "val_auc": "", "test_auc": "",
        "query_seconds": f"{query_seconds:.2f}", "seconds": f"{seconds:.2f}",
    }  # fmt: skip


def _scores(
    embeddings: Tensor,
    labelled: Tensor,
    weights: Tensor,
    temperature: float,
    regime: Regime,
    seed: tuple[int, int],
) -> PoolScores:
    """The scores of the candidates; all strategies of a seed get the same dropout masks."""
    generator = make_generator(seed[0], "candidates", seed[1])
    unlabelled = (~labelled).nonzero()[:, 0]
    count = max(CANDIDATES, PREFILTER_FACTOR * regime.query)
    order = torch.randperm(len(unlabelled), generator=generator)[: int(count)]
    candidates = unlabelled[order].sort().values
    inputs = embeddings[candidates]
    kept = torch.rand(PASSES, 1, inputs.shape[1], generator=generator) >= DROPOUT
    masks = kept / (1 - DROPOUT)
    probabilities = torch.stack([logits(inputs * mask, weights).softmax(1) for mask in masks])
    return PoolScores(candidates, probabilities, inputs, embeddings[labelled], temperature)


def do_missing_runs(arguments: argparse.Namespace) -> None:
    """Perform the runs that the studies do not have yet."""
    torch.set_num_threads(1)
    run = open_run(arguments.run, data_dir=arguments.data_dir)
    studies = {}
    for regime in REGIMES:
        folder = arguments.output / regime.name
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "dataset": f"{run.splits.name}, frozen features",
            "architecture": run.hp.architecture,
            "feature_labels": len(run.pool.labelled),
            **{name: value for name, value in vars(regime).items() if name != "name"},
        }
        machine = {"device": "cpu", "python": platform.python_version(), "torch": torch.__version__}
        content = json.dumps({"hyperparameters": settings, **machine}, indent=2)
        write_atomically(folder / "study.json", content + "\n")
        rows = read_records(folder / "runs.csv")
        studies[regime.name] = (regime, embedded(run, regime), rows)
    entries = [
        (seed, name, strategy)
        for seed in range(arguments.seeds)
        for name in studies
        for strategy in STRATEGIES
    ]
    for count, (seed, name, strategy) in enumerate(entries, start=1):
        regime, features, rows = studies[name]
        if any(row["strategy"] == strategy and int(row["seed"]) == seed for row in rows):
            continue
        rows.append(run_once(features, regime, strategy, seed))
        write_records(arguments.output / name / "runs.csv", COLUMNS, rows)
        text = f"{count} of {len(entries)} runs are finished"
        write_atomically(arguments.output / "progress.txt", text + "\n")
        print(f"{text}: {name}, {strategy}, seed {seed}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run", type=Path, required=True, help="the run whose network embeds the images"
    )
    parser.add_argument("--data-dir", type=Path, help="overrides the run's data_dir")
    parser.add_argument("--output", type=Path, required=True, metavar="STUDIES")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args(argv)
    return exit_status(lambda: do_missing_runs(arguments))


if __name__ == "__main__":
    sys.exit(main())
