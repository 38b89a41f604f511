"""Measures the outlier flag: false alarms on the model's own data, detection on other data.

    python -m benchmarks.outliers EXPORTED [EXPORTED ...] --own bloodmnist.npz \\
        --other pathmnist.npz mednist/ ... [--output results.csv]

Each exported folder yields one row for each array or folder of images. A row gives the share of
flagged images, with its 95 % Wilson interval, and the network's mean confidence.
`flagged_at_length_1` is the share that the same rule flags on embeddings normalised to length 1
(Sun et al. 2022). Its threshold comes from the same validation images, `val_images` of --own. The
training images of --own are left out. Give the folders of several seeds to see the spread.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from errors import UserError, exit_status
from serving.engine import OnnxEngine
from serving.exported import ExportedModel, read_exported, read_references
from serving.outliers import Neighbours
from serving.predictions import softmax
from tools.image_inputs import find_inputs, read_batches

Embeddings = NDArray[np.float32]
BATCH_SIZE = 128
Z = 1.96  # normal quantile of a 95 % interval


@dataclass(frozen=True)
class Row:
    """One line of the results; shares are from 0 to 1."""

    model: str
    seed: int
    images_of: str
    images: int
    flagged: float
    low: float
    high: float
    flagged_at_length_1: float
    mean_confidence: float


@dataclass(frozen=True)
class Outputs:
    """The network's outputs for a group of images: logits [n, classes], embeddings [n, D]."""

    logits: NDArray[np.float32]
    embeddings: Embeddings


def outputs_of(model: ExportedModel, engine: OnnxEngine, path: Path) -> dict[str, Outputs]:
    """The network's outputs by name: one entry per array of a file, or one for a folder."""
    parts: dict[str, list[tuple[Embeddings, ...]]] = {}
    files = find_inputs([path])
    for batch in read_batches(files, model.image_size, model.channels, BATCH_SIZE):
        name = path.name
        if not path.is_dir():
            array = batch.names[0].removeprefix(f"{path}:").rpartition("[")[0]
            name = f"{path.stem}:{array}"
        parts.setdefault(name, []).append(engine.run(batch.images.contiguous().numpy()))
    return {
        name: Outputs(*(np.concatenate(column) for column in zip(*batches, strict=True)))
        for name, batches in parts.items()
        if not name.endswith(":train_images") or path.is_dir()
    }


def measure(folder: Path, own: Path, others: Sequence[Path]) -> list[Row]:
    """The rows of one exported folder.

    Raises:
        UserError: the exported folder has no outlier rule, or --own has no validation images.
    """
    model = read_exported(folder)
    references = read_references(folder, model)
    if model.outliers is None or references is None:
        raise UserError(f"{folder}: exported without its data; export it with them")
    engine = OnnxEngine(folder)
    outputs_by_name = outputs_of(model, engine, own)
    val = outputs_by_name.get(f"{own.stem}:val_images")
    if val is None:
        raise UserError(f"--own {own}: has no array val_images; give the training data set")
    for path in others:
        outputs_by_name |= outputs_of(model, engine, path)
    neighbours = Neighbours(references, model.outliers.neighbours)
    unit_neighbours = Neighbours(length_1(references), model.outliers.neighbours)
    unit_distances = unit_neighbours.distances(length_1(val.embeddings))
    unit_threshold = float(np.percentile(unit_distances, model.outliers.percentile))
    rows = []
    for name, outputs in outputs_by_name.items():
        flagged = neighbours.distances(outputs.embeddings) > model.outliers.threshold
        unit_flagged = unit_neighbours.distances(length_1(outputs.embeddings)) > unit_threshold
        confidence = softmax(outputs.logits / model.temperature).max(1)
        rows.append(
            Row(
                model=model.architecture,
                seed=model.training.seed,
                images_of=name,
                images=len(flagged),
                flagged=round(float(flagged.mean()), 4),
                low=round(wilson(flagged)[0], 4),
                high=round(wilson(flagged)[1], 4),
                flagged_at_length_1=round(float(unit_flagged.mean()), 4),
                mean_confidence=round(float(confidence.mean()), 4),
            )
        )
    return rows


def length_1(embeddings: Embeddings) -> Embeddings:
    """Embeddings [n, D], each divided by its length."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(lengths, 1e-12)


def wilson(flagged: NDArray[np.bool_]) -> tuple[float, float]:
    """The 95 % interval of the flagged share (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    n, share = len(flagged), float(flagged.mean())
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return float(centre - half), float(centre + half)


def run(arguments: argparse.Namespace) -> None:
    """Measure all folders; print the rows and write them to --output."""
    rows = [
        row
        for folder in arguments.folders
        for row in measure(folder, arguments.own, arguments.other)
    ]
    names = [field.name for field in fields(Row)]
    print("  ".join(f"{name:>20}" for name in names))
    for row in rows:
        print("  ".join(f"{value!s:>20}" for value in asdict(row).values()))
    if arguments.output:
        with arguments.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="EXPORTED")
    parser.add_argument("--own", type=Path, required=True, metavar="NPZ", help="data trained on")
    parser.add_argument("--other", type=Path, nargs="*", default=[], help="arrays or folders")
    parser.add_argument("--output", type=Path, metavar="CSV")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
