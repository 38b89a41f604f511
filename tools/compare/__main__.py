"""Compares finished runs, grouped by the settings in which they differ.

    python -m tools.compare runs/margin_0 runs/random_0 runs/margin_1 runs/random_1
    python -m tools.compare runs                      # every run in the folder
    python -m tools.compare checkpoints --output grid # checkpoints downloaded from a cluster's grid

Prints tables and writes comparison.png, comparison.html and comparison.csv to --output: learning
curves with intervals, areas under them, label savings over accuracies, paired tests, and what more
labels would gain. Runs that differ only in their seed form a group. Runs must be on the same data,
with the same first and last number of labels, and the groups must have seeds in common.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, exit_status


def write_comparison(arguments: argparse.Namespace) -> None:
    """Compare the runs, print the tables and write the files."""
    from reporting.files import write_atomically
    from tools.compare.comparison import compare
    from tools.compare.figures import comparison_figure
    from tools.compare.page import html_page
    from tools.compare.runs import find_runs
    from tools.compare.tables import (
        accuracy_table,
        comparison_csv,
        forecast_table,
        markdown,
        saving_table,
    )

    comparison = compare(find_runs(arguments.runs), arguments.baseline)
    output: Path = arguments.output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {output}: cannot be made ({error.strerror}); name another folder"
        ) from error
    seeds = ", ".join(map(str, comparison.seeds))
    print(f"{comparison.data}; seeds {seeds}; compared with {comparison.baseline}\n")
    print(markdown(accuracy_table(comparison)), end="\n\n")
    if comparison.others:
        print(markdown(saving_table(comparison, arguments.targets)), end="\n\n")
    print(markdown(forecast_table(comparison)), end="\n\n")
    figure = comparison_figure(comparison)
    write_atomically(output / "comparison.png", figure)
    write_atomically(output / "comparison.html", html_page(comparison, figure))
    write_atomically(output / "comparison.csv", comparison_csv(comparison))
    print(f"written: {output / 'comparison.html'}, comparison.png and comparison.csv")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run, a checkpoint or a folder of them"
    )
    parser.add_argument("--output", type=Path, default=Path("comparison"), metavar="FOLDER")
    parser.add_argument("--baseline", metavar="GROUP", help="random, or else the first run's")
    parser.add_argument(
        "--targets", nargs="+", type=float, metavar="ACCURACY", help="for the table of savings"
    )
    arguments = parser.parse_args(argv)
    return exit_status(lambda: write_comparison(arguments))


if __name__ == "__main__":
    sys.exit(main())
