"""Which training recipe learns best from few labels, for ResNet-18 and ResNet-50?

    python -m benchmarks.recipe --data-dir data --labels 300 --output recipe.csv

All runs train on the same random labels of the blood cells and see the same number of images. The
script prints one row per run; --output appends the rows to a CSV file. Everything except the recipe
comes from configs/bloodmnist.yaml. Accuracy is on the validation split, because it chooses the
recipe.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch

from active_learning import ActiveLearner, label_round
from training.experiment_config import load
from training.hyperparameters import Hyperparameters
from training.loading import load_data
from training.metrics import classification_metrics
from training.oracle import SimulatedOracle

# The settings that each recipe changes. `adamw` is the recipe of configs/const.yaml. `sgd` is the
# usual recipe for ResNets on small images, with Nesterov momentum 0.9.
RECIPES: dict[str, dict[str, Any]] = {
    "adamw": {"learning_rate": 1e-3, "weight_decay": 0.05},
    "sgd": {"learning_rate": 0.1, "weight_decay": 5e-4},
}
COLUMNS = ("architecture", "recipe", "labels", "images_seen", "seed", "val_accuracy", "val_loss")


def run(architecture: str, recipe: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once; returns the row of the CSV file."""
    values = load(Path("configs/bloodmnist.yaml"))["hyperparameters"]
    steps = arguments.labels * arguments.passes // values["batch_size"]
    values |= RECIPES[recipe] | {
        "architecture": architecture,
        "initial_labeled_size": arguments.labels,
        "label_budget": arguments.labels,
        "rounds": 1,
        "batches_per_round": steps,
    }
    hp = Hyperparameters.from_mapping(values)
    splits = load_data(hp, arguments.data_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, val = splits.train.to(device), splits.val.to(device)
    learner = ActiveLearner(hp, train, arguments.seed)
    oracle = SimulatedOracle.of_trial(learner, splits.train)
    if recipe == "sgd":
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"]}
            for group in learner.optimizer.param_groups
        ]
        learner.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)
    label_round(learner, oracle)
    started = time.perf_counter()
    for step in range(steps):
        learner.train_step()
        if (step + 1) % max(1, steps // 10) == 0:
            loss, correct, count = learner.meter.take().tolist()
            rate = (step + 1) * hp.batch_size / (time.perf_counter() - started)
            print(
                f"{architecture} {recipe}: step {step + 1}/{steps}, loss {loss / count:.3f}, "
                f"accuracy {correct / count:.3f}, {rate:.1f} images/s",
                flush=True,
            )
    metrics = classification_metrics(learner.predict(val), val.labels)
    row = (architecture, recipe, arguments.labels, steps * hp.batch_size, arguments.seed)
    figures = (f"{metrics['accuracy']:.4f}", f"{metrics['loss']:.4f}")
    return dict(zip(COLUMNS, row + figures, strict=True))


def main() -> None:
    """Run all recipes and networks; print and append one row at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--architectures", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    for recipe in arguments.recipes:
        for architecture in arguments.architectures:
            row = run(architecture, recipe, arguments)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            if arguments.output:
                new = not arguments.output.exists()
                with arguments.output.open("a", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    if new:
                        writer.writeheader()
                    writer.writerow(row)


if __name__ == "__main__":
    main()
