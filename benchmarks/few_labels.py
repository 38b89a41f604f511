"""What raises the accuracy that 250 labels give, of the blood cells or other images?

    python -m benchmarks.few_labels --data-dir data --output few_labels.csv --seeds 0 1 2 3 4

Every recipe, a change of `COMMON`, runs with every seed until 250 images are labelled. The network
of the last round is then evaluated in four ways: with its last weights or with the mean of its
weights over the last part of the round, and on the images as they stand or as a mean over their
four orientations. The validation split chooses the recipe; the test split is only reported.

Each run adds its rows to --output. The command can be stopped at any time; when started again, it
performs only the missing runs. Seconds are those of the CPU, with one thread.
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
from torch.optim.swa_utils import AveragedModel

from active_learning import ActiveLearner, label_round
from benchmarks.learner_variants import CutMix, HerdingFirst, Mixup, PseudoLabels
from benchmarks.records import read_records, write_records
from data import ImageStore, Splits
from errors import UserError, exit_status
from resnet_custom import SplitNetwork
from tools.compare.statistics import half_width
from tools.compare.tables import markdown
from training.experiment_config import load
from training.hyperparameters import Hyperparameters
from training.inference import Inference
from training.loading import load_data
from training.oracle import Oracle, SimulatedOracle
from training.seeds import derive_seed

# Unless a recipe says otherwise: 100 random labels, then 50 a round.
COMMON: dict[str, Any] = {
    "rounds": 4,
    "initial_labeled_size": 100,
    "samples_to_label": 50,
    "query_strategy": "margin",
    "batches_per_round": 200,
    "between_rounds": "keep",
    "average_rotations": False,
}
GROWING: dict[str, Any] = {
    "batches_per_round": 400,
    "rounds": 6,
    "initial_labeled_size": 50,
    "samples_to_label": 25,
    "query_growth": 1.3,
    "label_budget": 250,
}
TYPICAL_FIRST: dict[str, Any] = {"batches_per_round": 400, "initial_pool": "network_embeddings"}
RECIPES: dict[str, dict[str, Any]] = {
    "rounds of 200 steps": {},
    "rounds of 400 steps": {"batches_per_round": 400},
    "rounds of 800 steps": {"batches_per_round": 800},
    "rounds of 400 steps, typical first images": TYPICAL_FIRST,
    "rounds of 400 steps, MaxHerding first": TYPICAL_FIRST,
    "6 growing queries, 400 steps each": GROWING,
    "6 growing queries, typical first images": {**GROWING, "initial_pool": "network_embeddings"},
    "rounds of 400 steps, mixup": {"batches_per_round": 400},
    "rounds of 400 steps, CutMix": {"batches_per_round": 400},
    "rounds of 400 steps, strong augmentation": {
        "batches_per_round": 400,
        "crop_padding": 4,
        "colour_jitter": 0.3,
        "stain_jitter": 0.2,
    },
    "rounds of 400 steps, dropout of 0.5": {"batches_per_round": 400, "dropout": 0.5},
    "rounds of 400 steps, pseudo-labels": {"batches_per_round": 400},
    "rounds of 400 steps, three networks": {"batches_per_round": 400},
    "typical first images, three networks": TYPICAL_FIRST,
}
LEARNERS: dict[str, type[ActiveLearner]] = {
    "rounds of 400 steps, MaxHerding first": HerdingFirst,
    "rounds of 400 steps, mixup": Mixup,
    "rounds of 400 steps, CutMix": CutMix,
    "rounds of 400 steps, pseudo-labels": PseudoLabels,
}
# How many networks vote, by the mean of their probabilities; one in all other recipes.
NETWORKS = {"rounds of 400 steps, three networks": 3, "typical first images, three networks": 3}
NO_BACKBONE = "none"
AVERAGED_SHARE = 0.3  # of the last round's steps
KEY = ("recipe", "backbone", "seed", "weights", "inference")
COLUMNS = (*KEY, "labels", "val_accuracy", "test_accuracy", "run_seconds", "images_per_second")
Row = dict[str, str]
BySeed = dict[str, Row]
State = Mapping[str, Tensor]


def run_once(
    config: Path, recipe: str, backbone: Path | None, seed: int, splits: Splits
) -> list[Row]:
    """Run one recipe with one seed, and evaluate its last network in four ways; one row each."""
    values = load(config)["hyperparameters"] | COMMON | RECIPES[recipe]
    values |= {"seed": seed, "pretrained_backbone": str(backbone or NO_BACKBONE)}
    hp = Hyperparameters.from_mapping(values)
    started = time.process_time()
    learner = LEARNERS.get(recipe, ActiveLearner)(hp, splits.train, seed)
    networks = [trained(learner, SimulatedOracle.of_trial(learner, splits.train))]
    for member in range(1, NETWORKS.get(recipe, 1)):
        networks.append(trained_on_same_labels(learner, member))
    seconds = time.process_time() - started
    rows = []
    for weights, states in zip(("last", "averaged"), zip(*networks, strict=True), strict=True):
        for inference in ("upright", "rotations"):
            started = time.process_time()
            found = [
                accuracy(learner, states, inference == "rotations", store)
                for store in (splits.val, splits.test)
            ]
            rate = (len(splits.val) + len(splits.test)) / (time.process_time() - started)
            figures = [str(len(learner.pool.labelled)), *(f"{one:.5f}" for one in found)]
            figures += [f"{seconds:.1f}", f"{rate:.0f}"]
            cells = (recipe, _name(backbone), str(seed), weights, inference, *figures)
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def trained(learner: ActiveLearner, oracle: Oracle) -> tuple[State, State]:
    """Finish the run; returns the last weights, and their mean over the end of the last round."""
    hp = learner.hp
    while not learner.finished:
        label_round(learner, oracle)
        # Izmailov et al. 2018, arXiv 1803.05407; BatchNorm's statistics are averaged as well.
        average = AveragedModel(learner.network, use_buffers=True)
        first = learner.step + round((1 - AVERAGED_SHARE) * hp.batches_per_round)

        def average_from_first(average: AveragedModel = average, first: int = first) -> None:
            if learner.step > first:
                average.update_parameters(learner.network)

        learner.train(average_from_first)
    return learner.network.state_dict(), average.module.state_dict()


def trained_on_same_labels(learner: ActiveLearner, member: int) -> tuple[State, State]:
    """`trained`, for a fresh network that learns from the labels of `learner` in one round.

    It takes as many steps as `learner` took in all its rounds.
    """
    labelled = learner.pool.labelled
    values = learner.hp.resolved() | {
        "rounds": 1,
        "initial_labeled_size": len(labelled),
        "label_budget": len(labelled),
        "batches_per_round": learner.step,
    }
    hp = Hyperparameters.from_mapping(values)
    other = ActiveLearner(hp, learner.train_store, derive_seed(learner.seed, "member", member))
    other.pool.ask(labelled, 0, None)
    return trained(other, SimulatedOracle.of_trial(other, learner.train_store))


def _name(backbone: Path | None) -> str:
    return backbone.stem if backbone else NO_BACKBONE


def accuracy(
    learner: ActiveLearner, states: Sequence[State], average_rotations: bool, store: ImageStore
) -> float:
    """Accuracy on `store` of the mean probabilities of the learner's network with each weights."""
    network = SplitNetwork(
        learner.hp.architecture,
        store.num_classes,
        store.channels,
        torch.Generator(),
        average_rotations=average_rotations,
    )
    probabilities = torch.zeros(len(store), store.num_classes)
    for state in states:
        network.load_state_dict(state)
        inference = Inference(
            network.to(memory_format=torch.channels_last).eval(),
            learner.mean,
            learner.std,
            learner.compute_dtype,
            learner.hp.scoring_batch_size,
        )
        embeddings = inference.embed(store.images, "evaluating")
        probabilities += inference.logits(embeddings).softmax(1) / len(states)
    return float((probabilities.argmax(1) == store.labels).float().mean())


def summary(rows: list[Row]) -> str:
    """Markdown table, one line per recipe and backbone: means over seeds and 95 % intervals.

    All gains are in test accuracy, paired by seed.
    """
    groups: dict[tuple[str, str], dict[tuple[str, str], BySeed]] = {}
    for row in rows:
        ways = groups.setdefault((row["recipe"], row["backbone"]), {})
        ways.setdefault((row["weights"], row["inference"]), {})[row["seed"]] = row
    compared = [groups.get((recipe, NO_BACKBONE)) for recipe in list(RECIPES)[:2]]
    lines = []
    for key, ways in groups.items():
        upright, rotations = ways["last", "upright"], ways["last", "rotations"]
        averaged = ways["averaged", "rotations"]
        seconds = np.mean([float(row["run_seconds"]) for row in upright.values()])
        accuracies = [
            _interval([float(row[f"{split}_accuracy"]) for row in by_seed.values()], "{:.4f}")
            for split, by_seed in (("val", rotations), ("test", upright), ("test", rotations))
        ]
        gains = [_gain(rotations, upright), _gain(averaged, rotations)]
        for other in compared:
            if other is None or other is ways:
                gains.append("")
            else:
                gains.append(_gain(rotations, other["last", "rotations"]))
        lines.append([*key, str(len(upright)), *accuracies, *gains, f"{seconds:.0f}"])
    header = ["recipe", "backbone", "seeds", "val, rotations", "test, upright", "test, rotations"]
    header += ["gain of rotations", "gain of averaged weights"]
    header += [*(f"gain over {recipe}" for recipe in list(RECIPES)[:2]), "CPU s"]
    return markdown((header, lines))


def _gain(after: BySeed, before: BySeed) -> str:
    """Gain in test accuracy over the seeds that both have."""
    return _interval(
        [
            float(after[seed]["test_accuracy"]) - float(before[seed]["test_accuracy"])
            for seed in sorted(after.keys() & before.keys())
        ],
        "{:+.4f}",
    )


def _interval(values: list[float], form: str) -> str:
    if not values:
        return ""
    mean = form.format(np.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {half_width(np.array(values)):.4f}"


def measure(arguments: argparse.Namespace) -> None:
    """Perform the missing runs, and print the table of all rows."""
    unknown = [name for name in arguments.recipes if name not in RECIPES]
    if unknown:
        raise UserError(f"--recipes {unknown[0]!r}: unknown; allowed are {', '.join(RECIPES)}")
    torch.set_num_threads(1)
    values = load(arguments.config)["hyperparameters"]
    splits = load_data(Hyperparameters.from_mapping(values), arguments.data_dir)
    rows = read_records(arguments.output)
    for seed in arguments.seeds:
        for recipe in arguments.recipes:
            key = (recipe, _name(arguments.backbone), str(seed))
            if key in {(row["recipe"], row["backbone"], row["seed"]) for row in rows}:
                continue
            rows += run_once(arguments.config, recipe, arguments.backbone, seed, splits)
            write_records(arguments.output, COLUMNS, rows)
            print(rows[-1], flush=True)
    print(summary(rows))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/bloodmnist.yaml"))
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="CSV file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--backbone", type=Path, help="file of tools.pretrain to start from")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
