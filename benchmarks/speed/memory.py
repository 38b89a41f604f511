"""Resident memory of a real run on a synthetic data set of PathMNIST's size."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.network import CLASSES, CONFIG
from benchmarks.speed.rows import Row
from benchmarks.speed.timing import Spread, run_with_peak

SCRIPT = CONFIG.parent.parent / "model_def.py"
SPLITS = {"train": 89_996, "val": 10_004, "test": 7_180}
SETTINGS = {
    "query_strategy": "uncertainty_diversity",  # needs embeddings as well as probabilities
    "rounds": 2,
    "batches_per_round": 2,
    "reporting_period": 2,
    "samples_to_label": 4_430,
    "label_budget": 200 + 4_430,
    "evaluation_size": 1_000,
}


def memory(shrink: int, settings: dict[str, object], device: torch.device) -> Iterator[list[Row]]:
    """Peak memory of two rounds of model_def.py. The second scores all images and labels 4,430.

    Args:
        shrink: factor by which the splits are smaller than PathMNIST's.
        settings: hyperparameters in addition to configs/const.yaml and `SETTINGS`.
    """
    with tempfile.TemporaryDirectory(prefix="speed_memory_") as name:
        folder = Path(name)
        generator = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        for split, size in SPLITS.items():
            count = size // shrink
            shape = (count, 28, 28, 3)
            arrays[f"{split}_images"] = generator.integers(0, 256, shape, dtype=np.uint8)
            arrays[f"{split}_labels"] = (np.arange(count) % CLASSES)[:, None]
        np.savez(folder / "pathmnist.npz", **arrays)
        values = {**SETTINGS, **settings}
        peak = run_with_peak(
            [
                *(sys.executable, SCRIPT, "--config", CONFIG, "--data-dir", folder),
                *("--output-dir", folder / "run", "--set"),
                *(f"hyperparameters.{name}={value}" for name, value in values.items()),
            ]
        )
    note = (
        f"{SPLITS['train'] // shrink:,} training images made up, "
        f"{settings.get('architecture', 'resnet50')}, two rounds, "
        f"all candidates scored, {values['samples_to_label']:,} labelled in the second"
    )
    if device.type == "cuda":
        note += "; on the host"
    yield [Row("memory", "peak RSS of model_def.py", "GB", Spread.of([peak / 1e9]), note=note)]
