"""The figures beside the page: accuracy against labels, class counts, agreement of annotators."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path
from typing import Any

from labelling.outcome import current_outcomes
from tools.label.desk import Desk

Z = 1.959964  # standard deviations to either side that hold 95 % of a normal distribution


def progress_report(desk: Desk) -> dict[str, Any]:
    """What the page draws: `curve`, `class_counts` and `agreement`, as JSON values."""
    counts: Counter[str] = Counter()
    for current in current_outcomes(desk.run, "pool").values():
        if current.outcome.answer is not None:
            counts[current.outcome.answer] += 1
    name = desk.current()
    if name is not None and not desk.batch(name).closed:
        counts.update(desk.batch(name).class_counts())
    return {
        "curve": curve(desk.run),
        "class_counts": dict(counts),
        "agreement": [entry for name in desk.names() if (entry := _agreement(desk, name))],
    }


def curve(run: Path) -> list[dict[str, float]]:
    """Labels and validation accuracy with its 95 % interval, one point per round of the run.

    The interval is Wilson's (Journal of the American Statistical Association 22, 1927), for as many
    images as the round evaluated.
    """
    try:
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return []  # no round has ended yet
    points = []
    for row in rows:
        if not row.get("val_accuracy"):  # the round is in training
            continue
        accuracy, images = float(row["val_accuracy"]), float(row["val_images"])
        low, high = wilson_interval(accuracy, images)
        points.append(
            {
                "round": float(row["round"]),
                "labels": float(row["labeled_samples"]),
                "accuracy": accuracy,
                "low": low,
                "high": high,
            }
        )
    return points


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share that was observed in `count` draws."""
    if count <= 0:
        return 0.0, 1.0
    centre = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _agreement(desk: Desk, name: str) -> dict[str, Any] | None:
    found = desk.batch(name).agreement()
    if found is None:
        return None
    numbers = {"kappa": found.kappa, "low": found.low, "high": found.high}
    return {
        "batch": name,
        "statistic": found.statistic,
        "annotators": found.annotators,
        "images": found.images,
        # JSON has no NaN; where there is none, the page says "not defined".
        **{key: None if math.isnan(value) else value for key, value in numbers.items()},
    }
