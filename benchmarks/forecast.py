"""Back-test of `reporting.forecast`: how often do its intervals contain the later accuracy?

    python -m benchmarks.forecast benchmarks/results/label_efficiency/* --output FILE.csv

After each round of each recorded run, it forecasts the accuracies one, two and five rounds later
from the rounds so far. Each row of the CSV file gives, for one study and one distance, the number
of forecasts, the share of accuracies inside their 90 % interval, the mean width of the interval,
and the mean of forecast minus accuracy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from errors import exit_status
from reporting.files import csv_text, write_atomically
from reporting.forecast import forecast
from tools.compare.runs import find_runs

DISTANCES = (1, 2, 5)  # rounds
COLUMNS = ("study", "rounds_ahead", "forecasts", "coverage", "mean_width", "mean_error")


def back_test(folder: Path) -> list[tuple[object, ...]]:
    """The rows of the CSV file for one study."""
    rows: list[tuple[object, ...]] = []
    runs = [run for run in find_runs([folder]) if not run.is_upper]
    for ahead in DISTANCES:
        inside, widths, errors = [], [], []
        for run in runs:
            for last in range(len(run.labels) - ahead):
                labels, later = run.labels[: last + 1], run.val[last + ahead]
                new_labels = run.labels[last + ahead] - run.labels[last]
                expected = forecast(labels, run.val[: last + 1], new_labels)
                if expected is not None:
                    inside.append(expected.low <= later <= expected.high)
                    widths.append(expected.high - expected.low)
                    errors.append(expected.accuracy - later)
        if inside:
            numbers = (np.mean(inside), np.mean(widths), np.mean(errors))
            texts = (f"{number:.4f}" for number in numbers)
            rows.append((folder.name, ahead, len(inside), *texts))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY")
    parser.add_argument("--output", type=Path, required=True, metavar="CSV")
    arguments = parser.parse_args(argv)

    def work() -> None:
        rows = [row for folder in arguments.studies for row in back_test(folder)]
        write_atomically(arguments.output, csv_text(COLUMNS, rows))
        print(arguments.output.read_text(encoding="utf-8"), end="")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
