"""Do class-balanced batches or a class-weighted loss help where classes are unbalanced?

    python -m benchmarks.class_balance --data-dir data --output class_balance.csv

Trains once on some labels of the blood cells, per seed: drawn at random, or so that the classes'
numbers fall evenly on a log scale until the last class has a RATIO-th of the first's (a "long
tail", Cui et al. 2019, arXiv 1901.05555). Draw and initial weights are the same for all settings of
a seed. Prints accuracy and balanced accuracy (mean recall) on the validation split, which is as the
pool is. All else is as in configs/bloodmnist.yaml, the learning rate as in const.yaml.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from active_learning import ActiveLearner, label_round
from data import Splits, channel_statistics
from training.experiment_config import load
from training.hyperparameters import Hyperparameters
from training.inference import Inference
from training.loading import load_data
from training.oracle import SimulatedOracle
from training.seeds import make_generator

SETTINGS: dict[str, dict[str, Any]] = {
    "neither": {},
    "balanced batches": {"class_balanced_batches": True},
    "weighted loss": {"class_weighted_loss": True},
}
COLUMNS = (
    *("architecture", "labels", "ratio", "setting", "seed"),
    *("val_accuracy", "val_balanced_accuracy", "val_rarest_recall"),
)


def draw(labels: Tensor, count: int, ratio: float, seed: int) -> Tensor:
    """About `count` positions in `labels`: at random for a ratio of 0, else with a long tail."""
    order = torch.randperm(len(labels), generator=make_generator(seed, "class_balance"))
    if not ratio:
        return order[:count]
    classes = int(labels.max()) + 1
    shares = torch.tensor([ratio ** (-c / (classes - 1)) for c in range(classes)])
    sizes = (count * shares / shares.sum()).round().int().tolist()
    return torch.cat([order[labels[order] == c][:size] for c, size in enumerate(sizes)])


def run(
    splits: Splits, values: dict[str, Any], setting: str, ratio: float, seed: int
) -> dict[str, Any]:
    """Train once; returns the row."""
    chosen = draw(splits.train.labels, values["initial_labeled_size"], ratio, seed)
    train = splits.train.subset(chosen)
    size = {"initial_labeled_size": len(train), "label_budget": len(train)}
    hp = Hyperparameters.from_mapping({**values, **size, **SETTINGS[setting]})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner = ActiveLearner(hp, train.to(device), seed)
    label_round(learner, SimulatedOracle(train.labels))
    for _ in range(hp.batches_per_round):
        learner.train_step()
    mean, std = (value.to(device) for value in channel_statistics(train.images))
    network = learner.network.eval()
    inference = Inference(network, mean, std, learner.compute_dtype, hp.scoring_batch_size)
    logits = inference.logits(inference.embed(splits.val.images, "validation"))
    right = logits.argmax(1).cpu() == splits.val.labels
    recall = [float(right[splits.val.labels == c].float().mean()) for c in range(train.num_classes)]
    rarest = int(train.labels.bincount(minlength=train.num_classes).argmin())
    figures = (float(right.float().mean()), statistics.mean(recall), recall[rarest])
    row = (hp.architecture, len(train), ratio, setting, seed, *(f"{x:.4f}" for x in figures))
    return dict(zip(COLUMNS, row, strict=True))


def main() -> None:
    """Run what the command line asks for, print a row for each run and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--architecture", default="small_cnn")
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0, 20], help="0: as they come")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    values = load(Path("configs/bloodmnist.yaml"))["hyperparameters"] | {
        "architecture": arguments.architecture,
        "learning_rate": load(Path("configs/const.yaml"))["hyperparameters"]["learning_rate"],
        "initial_labeled_size": arguments.labels,
        "label_budget": arguments.labels,
        "rounds": 1,
        "batches_per_round": arguments.steps,
    }
    splits = load_data(Hyperparameters.from_mapping(values), arguments.data_dir)
    rows = []
    for ratio in arguments.ratios:
        for seed in range(arguments.seeds):
            for setting in SETTINGS:
                rows.append(run(splits, values, setting, ratio, seed))
                print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    with arguments.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print("mean (standard deviation):")
    for ratio in arguments.ratios:
        for setting in SETTINGS:
            mine = [row for row in rows if row["ratio"] == ratio and row["setting"] == setting]
            shown = []
            for name in COLUMNS[-3:]:
                found = [float(row[name]) for row in mine]
                spread = statistics.stdev(found) if len(found) > 1 else float("nan")
                shown.append(f"{name} {statistics.mean(found):.3f} ({spread:.3f})")
            print(f"ratio {ratio:g}, {setting}: {', '.join(shown)}")


if __name__ == "__main__":
    main()
