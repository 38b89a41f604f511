"""What does learning from the unlabelled pool bring, at 50, 100, 200 and 500 labels?

    python -m benchmarks.self_supervision --data-dir data --seeds 0 1 2 --output results.csv

On the blood cells. Per seed: a backbone learns from all training images without labels, once; then
networks are trained on the same random labels, for the same steps, from that backbone and from
random weights. All else is as in configs/bloodmnist.yaml, the learning rate as in const.yaml. One
row per trained network is appended to --output; rows that are there are not run again, and a
backbone that was cut off is gone on with. The test split chooses nothing: each network is taken as
its training ends.
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
    """The file of the backbone of that seed, made first where it is missing."""
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
    """The rows that are there already."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one row, and the header to a new file."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def summary(rows: list[dict[str, str]]) -> str:
    """Test accuracy as a Markdown table: mean and standard deviation over seeds, and their gain."""
    lines = [
        "| network | labels | seeds | from random weights | self-supervised first | gain |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    groups = sorted({(row["architecture"], int(row["labels"])) for row in rows})
    for architecture, labels in groups:
        found = [
            {row["seed"]: float(row["test_accuracy"]) for row in rows
             if (row["architecture"], int(row["labels"])) == (architecture, labels)
             and (row["self_supervised_steps"] != "0") is learnt}
            for learnt in (False, True)
        ]  # fmt: skip
        seeds = sorted(found[0].keys() & found[1].keys())
        if len(seeds) < 2:
            continue
        plain, learnt = ([one[seed] for seed in seeds] for one in found)
        gain = [after - before for before, after in zip(plain, learnt, strict=True)]
        cells = [f"{mean(one):.3f} ± {stdev(one):.3f}" for one in (plain, learnt)]
        cells.append(f"{mean(gain):+.3f} ± {stdev(gain):.3f}")
        lines.append(f"| {architecture} | {labels} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for, and print the table of all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--architecture", default="small_cnn")
    parser.add_argument("--self-supervised-steps", type=int, default=400)
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 100, 200, 500])
    parser.add_argument("--steps", type=int, default=400, help="supervised, of 32 images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbones", type=Path, default=Path("runs"), help="folder to keep them")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.backbones.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for without_labels in (0, arguments.self_supervised_steps):
            for labels in arguments.labels:
                key = (arguments.architecture, without_labels, labels, arguments.steps, seed)
                done = [tuple(row[name] for name in KEY) for row in read(arguments.output)]
                if tuple(map(str, key)) in done:
                    continue
                start = str(backbone(arguments, seed)) if without_labels else "none"
                figures = train(arguments, labels, start, seed)
                row = dict(zip(KEY, key, strict=True))
                append(arguments.output, {**row, **{k: f"{v:.4f}" for k, v in figures.items()}})
                print(row, figures, flush=True)
    print(summary(read(arguments.output)))


if __name__ == "__main__":
    main()
