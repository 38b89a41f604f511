"""Writes the tables of README.md and docs/, and the figure at the top of README.md.

    python -m benchmarks.tables

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is one of `TABLES`. The
tables come from the registry of query strategies, the settings and benchmarks/results. Run this
command after a change to any of them; a test checks that the documents are up to date.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev

from benchmarks import annotators, few_labels, first_labels, frozen_features
from benchmarks.comparison import difference_table
from benchmarks.records import read_records
from benchmarks.speed import rows as speed_rows
from query_strategies import BALANCED, STRATEGIES, Strategy
from reporting.files import write_atomically
from tools.compare.comparison import compare
from tools.compare.figures import comparison_figure
from tools.compare.runs import find_runs
from tools.compare.tables import accuracy_table, markdown, saving_table
from training.hyperparameters import Hyperparameters

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"<!-- table: (.+?) -->\n(.*?)<!-- end -->", re.DOTALL)


def documents() -> list[Path]:
    """README.md and the pages in docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str) -> str:
    """Replace every marked table in `text` by its current version."""
    return MARKED.sub(
        lambda match: f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->", text
    )


def strategies() -> str:
    """Every query strategy: its name, the images it chooses, and the scores it reads."""
    lines = [
        [f"`{name}`", _summary(strategy), _reads(strategy)] for name, strategy in STRATEGIES.items()
    ]
    lines.append([f"`{BALANCED}NAME`", "Any of these, spread over the predicted classes", ""])
    return markdown((["`query_strategy`", "chooses", "reads"], lines))


def _summary(strategy: Strategy) -> str:
    return (strategy.select.__doc__ or "").splitlines()[0].rstrip(".")


def _reads(strategy: Strategy) -> str:
    parts = ["probabilities"] * strategy.probabilities + ["embeddings"] * strategy.embeddings
    return ", ".join(parts)


def main_settings() -> str:
    """The settings that most users change: default, unit and meaning."""
    fields = {field.name: field for field in dataclasses.fields(Hyperparameters)}
    rows = []
    for name in MAIN_SETTINGS:
        field = fields[name]
        default = str(field.default).lower() if field.type == "bool" else str(field.default)
        value = f"`{default}` {field.metadata.get('unit', '')}".strip()
        rows.append([f"`{name}`", value, field.metadata["does"]])
    return markdown((["setting", "default", "what it does"], rows))


def accuracy(study: str) -> str:
    """Test accuracy of each strategy at a few budgets."""
    return markdown(accuracy_table(compare(find_runs([_study(study)]))))


def savings(study: str, targets: Sequence[float]) -> str:
    """Label savings of each strategy at a few accuracies."""
    return markdown(saving_table(compare(find_runs([_study(study)])), targets))


def _study(name: str) -> Path:
    return RESULTS / "label_efficiency" / name


def frozen() -> str:
    """Strategies compared with margin on a frozen network, in three studies."""
    studies = [RESULTS / "frozen_features" / regime.name for regime in frozen_features.REGIMES]
    return markdown(difference_table(studies, "test", frozen_features.MARGIN))


def hybrids(split: str) -> str:
    """Candidates for a hybrid default compared with margin, in six studies."""
    studies = [_study(name) for name in HYBRID_STUDIES]
    return markdown(difference_table(studies, split, frozen_features.MARGIN))


def first_images() -> str:
    """How well 16 labels, chosen without a network that has seen one, label the pool."""
    header = ["embeddings", "strategy", "seeds", "accuracy", "CPU seconds"]
    return markdown((header, first_labels.summary(_records("first_labels.csv"))))


def annotator_table(file: str) -> str:
    """A cheap annotator, an expert and both, at equal minutes."""
    header = [
        *("data", "wrong labels", "expert's time", "who labels", "seeds", "labels"),
        *("wrong at the end", "mean accuracy", "accuracy at the end"),
        *("gain of both, mean", "gain of both, end"),
    ]
    return markdown((header, annotators.summary(_records(file))))


def forecasts() -> str:
    """How often the intervals of forecasts contain the later accuracy."""
    columns = ("study", "rounds_ahead", "forecasts", "coverage", "mean_width", "mean_error")
    header = ["study", "rounds ahead", "forecasts", "coverage", "mean width", "mean error"]
    return markdown(
        (header, [[row[column] for column in columns] for row in _records("forecast.csv")])
    )


def speed() -> str:
    """The speed on each machine, in two tables."""
    return speed_rows.tables(read_records(RESULTS / "speed.csv"))


def strategy_cost() -> str:
    """Seconds and memory of one query by each strategy."""
    rows = [
        [
            row["strategy"],
            f"{int(row['candidates']):,}",
            row["picks"],
            row["seconds"],
            row["megabytes"],
        ]
        for row in _records("strategy_cost.csv")
    ]
    return markdown((["strategy", "candidates", "picks", "CPU seconds", "MB"], rows))


def recipe() -> str:
    """Validation accuracy of two networks and two optimizers."""
    names = {"adamw": "AdamW, 0.001", "sgd": "SGD, 0.1"}
    rows = [
        [
            row["architecture"],
            names[row["recipe"]],
            row["labels"],
            row["val_accuracy"],
            row["val_loss"],
        ]
        for row in _records("recipe.csv")
    ]
    return markdown((["network", "optimizer", "labels", "val accuracy", "val loss"], rows))


def class_balance() -> str:
    """Accuracy under unbalanced classes, mean and standard deviation over seeds."""
    measures = ("val_accuracy", "val_balanced_accuracy", "val_rarest_recall")
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in _records("class_balance.csv"):
        drawn = "at random" if float(row["ratio"]) == 0 else "long tail"
        groups.setdefault((drawn, row["setting"]), []).append(row)
    rows = [
        [*group, str(len(records)), *(_spread(records, measure) for measure in measures)]
        for group, records in groups.items()
    ]
    header = ["labels drawn", "setting", "seeds"]
    return markdown(
        ([*header, "accuracy", "balanced accuracy", "recall of the rarest class"], rows)
    )


def _spread(rows: Sequence[dict[str, str]], column: str) -> str:
    values = [float(row[column]) for row in rows]
    return f"{mean(values):.3f} ± {stdev(values):.3f}"


def recipes_for_few_labels(data: str) -> str:
    """Accuracy at 250 labels by recipe and way of evaluation."""
    return few_labels.summary(read_records(RESULTS / "few_labels" / f"{data}.csv"))


def segmentation() -> str:
    """Recall and precision of the cells found in smears."""
    columns = ("images", "number", "mode", "cells", "recall", "precision", "diameter", "seconds")
    header = ["smears", "images", "search for", "cells", "recall", "precision"]
    rows = [[row[column] for column in columns] for row in _records("segmentation.csv")]
    return markdown(([*header, "diameter, pixels", "CPU s per image"], rows))


def outliers() -> str:
    """Share of images that the outlier flag marks: mean, lowest and highest over seeds."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in _records("outliers.csv"):
        groups.setdefault(row["images_of"], []).append(row)
    rows = [
        [
            name,
            rows[0]["images"],
            *(_percentages(rows, column) for column in ("flagged", "flagged_at_length_1")),
            f"{mean(float(row['mean_confidence']) for row in rows):.2f}",
        ]
        for name, rows in groups.items()
    ]
    header = ["images", "number", "flagged", "flagged, embeddings of length 1", "mean confidence"]
    return markdown((header, rows))


def _percentages(rows: Sequence[dict[str, str]], column: str) -> str:
    values = [100 * float(row[column]) for row in rows]
    return f"{mean(values):.1f} % ({min(values):.1f} to {max(values):.1f})"


def service_load() -> str:
    """Throughput and response times of the service and of the bare model."""
    columns = ("model", "setting", "workers", "clients", "images_per_second", "p50", "p95", "p99")
    rows = [
        [row[column] for column in (*columns, "cpu_ms", "client_cpu_ms")]
        for row in _records("serving.csv")
    ]
    header = ["model", "setting", "workers", "clients", "images/s", "p50, ms", "p95, ms", "p99, ms"]
    return markdown(([*header, "CPU ms per image", "clients' CPU ms"], rows))


def _records(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


MAIN_SETTINGS = (
    *("dataset", "architecture", "query_strategy", "uncertainty", "rounds"),
    *("initial_labeled_size", "samples_to_label", "batches_per_round", "learning_rate"),
    "flips_and_rotations",
)
STUDIES = (
    *("bloodmnist", "bloodmnist_2000", "breastmnist", "pneumoniamnist"),
    *("bloodmnist_resnet50", "bloodmnist_resnet50_margin", "pathmnist_1000_resnet50"),
    *("digits", "mednist", "mednist_full", "pathmnist_1000"),
)
FEW_LABELS = ("bloodmnist", "bloodmnist_float32", "pathmnist_1000", "mednist")
HYBRID_STUDIES = (
    *("bloodmnist", "bloodmnist_again", "queries_600", "queries_1200_from_100"),
    *("queries_1200", "near_duplicates"),
)
TABLES: dict[str, Callable[[], str]] = {
    "strategies": strategies,
    "main settings": main_settings,
    **{f"accuracy, {study}": partial(accuracy, study) for study in STUDIES},
    "savings, bloodmnist": partial(savings, "bloodmnist", (0.9, 0.92, 0.94, 0.956)),
    "savings, bloodmnist_2000": partial(savings, "bloodmnist_2000", (0.9, 0.92, 0.94, 0.956)),
    "savings, mednist_full": partial(savings, "mednist_full", (0.98, 0.99, 0.995, 0.999)),
    "frozen features": frozen,
    "hybrids, validation": partial(hybrids, "val"),
    "hybrids, test": partial(hybrids, "test"),
    "first labels": first_images,
    "annotators": partial(annotator_table, "annotators.csv"),
    "annotator prices": partial(annotator_table, "annotator_prices.csv"),
    "forecasts": forecasts,
    "speed": speed,
    "strategy cost": strategy_cost,
    "recipe": recipe,
    **{f"few labels, {data}": partial(recipes_for_few_labels, data) for data in FEW_LABELS},
    "class balance": class_balance,
    "outliers": outliers,
    "service load": service_load,
    "segmentation": segmentation,
}


def opening_figure() -> bytes:
    """Learning curves of the default and random choice on the blood cells, as PNG."""
    shown = {Hyperparameters().query_strategy, "random"}
    runs = find_runs([_study("bloodmnist")])
    return comparison_figure(compare([r for r in runs if r.settings["query_strategy"] in shown]))


def main() -> None:
    """Write the tables and the figure."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    write_atomically(ROOT / "images" / "default_and_random.png", opening_figure())
    for path in documents():
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            write_atomically(path, new)
            print(f"written: {path}")


if __name__ == "__main__":
    main()
