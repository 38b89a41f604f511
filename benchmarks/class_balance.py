"""Do class-balanced batches or a class-weighted loss help where classes are unbalanced?

    python -m benchmarks.class_balance --data-dir data --output class_balance.csv

For each seed, draws some labels of the blood cells and trains once on them with each setting. The
labels are drawn at random or with a "long tail" (Cui et al. 2019, arXiv 1901.05555): the class
sizes fall evenly on a log scale until the first class is RATIO times as large as the last. All
settings of a seed share the drawn labels and the initial weights. Prints accuracy and balanced
accuracy (mean recall) on the validation split, which has the class shares of the pool. The learning
rate comes from configs/const.yaml, everything else from configs/bloodmnist.yaml.
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
    """About `count` positions in `labels`: random if `ratio` is 0, otherwise with a long tail."""
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
    """Train once; returns the row of the CSV file."""
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
    """Run all settings; print a row for each run and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--architecture", default="small_cnn")
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--ratios", type=float, nargs="+", default=[0, 20], help="0: drawn at random"
    )
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
            matching = [row for row in rows if row["ratio"] == ratio and row["setting"] == setting]
            summaries = []
            for name in COLUMNS[-3:]:
                figures = [float(row[name]) for row in matching]
                spread = statistics.stdev(figures) if len(figures) > 1 else float("nan")
                summaries.append(f"{name} {statistics.mean(figures):.3f} ({spread:.3f})")
            print(f"ratio {ratio:g}, {setting}: {', '.join(summaries)}")


if __name__ == "__main__":
    main()
