"""How much does self-supervised learning on the pool gain at 50, 100, 200 and 500 labels?

    python -m benchmarks.self_supervision --data-dir data --seeds 0 1 2 --output results.csv

For each seed, a backbone learns once from all training images of the blood cells, without labels.
Then networks train on the same random labels for the same number of steps, from this backbone and
from random weights. The learning rate comes from configs/const.yaml, everything else from
configs/bloodmnist.yaml. The script appends one row per trained network to --output. It skips
networks that already have a row, and continues a backbone whose training was interrupted. The test
split chooses nothing: each network is evaluated at the end of its training.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import tools.pretrain
from active_learning import ActiveLearner, run
from training.experiment_config import load
from training.hyperparameters import Hyperparameters
from training.loading import load_data
from training.oracle import SimulatedOracle

CONFIG = Path("configs/bloodmnist.yaml")
COLUMNS = (
    *("architecture", "self_supervised_steps", "labels", "steps", "seed"),
    *("val_accuracy", "test_accuracy", "test_auc"),
)
KEY = COLUMNS[:5]


def backbone(arguments: argparse.Namespace, seed: int) -> Path:
    """The file of the seed's backbone, which is trained first if the file does not exist."""
    name = f"{arguments.architecture}-{arguments.self_supervised_steps}-{seed}.safetensors"
    path: Path = arguments.backbones / name
    if not path.exists():
        settings = [
            f"hyperparameters.architecture={arguments.architecture}",
            f"reproducibility.experiment_seed={seed}",
        ]
        steps = str(arguments.self_supervised_steps)
        words = ["--config", CONFIG, "--steps", steps, "--output", path, "--set", *settings]
        words += ["--data-dir", arguments.data_dir]
        if tools.pretrain.main([str(word) for word in words]):
            sys.exit(2)
    return path


def train(arguments: argparse.Namespace, labels: int, start: str, seed: int) -> dict[str, float]:
    """Validation and test metrics after training on `labels` random labels from `start`."""
    values = load(CONFIG)["hyperparameters"] | {
        "architecture": arguments.architecture,
        "learning_rate": load(Path("configs/const.yaml"))["hyperparameters"]["learning_rate"],
        "pretrained_backbone": start,
        "batches_per_round": arguments.steps,
        "initial_labeled_size": labels,
        "label_budget": labels,
        "rounds": 1,
        "evaluation_size": 0,
    }
    hp = Hyperparameters.from_mapping(values)
    splits = load_data(hp, arguments.data_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    oracle = SimulatedOracle(splits.train.labels)
    learner = ActiveLearner(hp, splits.train.to(device), seed)
    (evaluation,) = run(learner, oracle, splits.val.to(device), splits.test.to(device))
    return {
        "val_accuracy": evaluation.val["accuracy"],
        "test_accuracy": evaluation.test["accuracy"],
        "test_auc": evaluation.test["auc"],
    }


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the CSV file; an empty list if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, Any]) -> None:
    """Append one row; a new file gets the header first."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def summary(rows: list[dict[str, str]]) -> str:
    """Markdown table of test accuracy and gain: mean and standard deviation over seeds."""
    lines = [
        "| network | labels | seeds | from random weights | self-supervised first | gain |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    groups = sorted({(row["architecture"], int(row["labels"])) for row in rows})
    for architecture, labels in groups:
        by_start = [
            {row["seed"]: float(row["test_accuracy"]) for row in rows
             if (row["architecture"], int(row["labels"])) == (architecture, labels)
             and (row["self_supervised_steps"] != "0") is pretrained}
            for pretrained in (False, True)
        ]  # fmt: skip
        seeds = sorted(by_start[0].keys() & by_start[1].keys())
        if len(seeds) < 2:
            continue
        random, pretrained = ([by_seed[seed] for seed in seeds] for by_seed in by_start)
        gain = [after - before for before, after in zip(random, pretrained, strict=True)]
        cells = [f"{mean(group):.3f} ± {stdev(group):.3f}" for group in (random, pretrained)]
        cells.append(f"{mean(gain):+.3f} ± {stdev(gain):.3f}")
        lines.append(f"| {architecture} | {labels} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train the missing networks, and print the table of all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--architecture", default="small_cnn")
    parser.add_argument("--self-supervised-steps", type=int, default=400)
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 100, 200, 500])
    parser.add_argument("--steps", type=int, default=400, help="supervised steps of 32 images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--backbones", type=Path, default=Path("runs"), help="folder for the backbones"
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.backbones.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for without_labels in (0, arguments.self_supervised_steps):
            for labels in arguments.labels:
                key = (arguments.architecture, without_labels, labels, arguments.steps, seed)
                recorded = [tuple(row[name] for name in KEY) for row in read(arguments.output)]
                if tuple(map(str, key)) in recorded:
                    continue
                start = str(backbone(arguments, seed)) if without_labels else "none"
                figures = train(arguments, labels, start, seed)
                row = dict(zip(KEY, key, strict=True))
                append(arguments.output, {**row, **{k: f"{v:.4f}" for k, v in figures.items()}})
                print(row, figures, flush=True)
    print(summary(read(arguments.output)))


if __name__ == "__main__":
    main()
