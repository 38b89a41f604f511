"""Writes tables and figures of label-efficiency studies, and penalties over several studies.

    python -m benchmarks.comparison study another_study --output images
    python -m benchmarks.comparison study --output images --targets 0.92 0.94 0.956

For each study it prints the tables of `python -m tools.compare` as Markdown, and writes
`NAME_curves.png`. Over all studies it writes `penalties.png`: the sum over studies of the share of
budgets at which one strategy is better than another (`tools.compare.statistics.penalties`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from errors import UserError, exit_status
from reporting.files import write_atomically
from tools.compare.comparison import Comparison, compare
from tools.compare.figures import comparison_figure, penalty_heatmap
from tools.compare.runs import find_runs
from tools.compare.statistics import Floats, half_width, penalties
from tools.compare.tables import Table, accuracy_table, markdown, plus_minus, saving_table


def summed_penalties(comparisons: Sequence[Comparison]) -> tuple[Floats, list[str]]:
    """The sum of the studies' penalty matrices, for the strategies that all studies have."""
    first = comparisons[0].groups
    common = [name for name in first if all(name in other.groups for other in comparisons)]
    matrices = (
        penalties(study.budgets, {name: study.groups[name].test for name in common})
        for study in comparisons
    )
    return np.sum(list(matrices), axis=0), common


def difference_table(studies: Sequence[Path], split: str, baseline: str) -> Table:
    """AUBC of each strategy minus that of `baseline`, paired by seed; a column per study.

    Cells hold the mean and 95 % interval over the seeds that all strategies of the study have. The
    first row is the AUBC of `baseline`. Rows are sorted by the first column, the best first; a
    strategy that a study does not have has an empty cell.
    """
    header = ["strategy"]
    columns: list[dict[str, Floats]] = []
    for folder in studies:
        comparison = compare(find_runs([folder]), baseline)
        header.append(f"{folder.name}, {len(comparison.seeds)} seeds")
        columns.append(comparison.areas(split))
    rows = [[baseline, *(plus_minus(areas[baseline]) for areas in columns)]]
    names = dict.fromkeys(name for areas in columns for name in areas if name != baseline)
    means = {name: float(columns[0].get(name, np.array([-np.inf])).mean()) for name in names}
    for name in sorted(names, key=lambda name: -means[name]):
        cells = (_difference(areas.get(name), areas[baseline]) for areas in columns)
        rows.append([name, *cells])
    return header, rows


def _difference(areas: Floats | None, baseline: Floats) -> str:
    if areas is None:
        return ""
    values = areas - baseline
    mean = values.mean().round(4) + 0.0  # no -0.0
    return f"{mean:+.4f} ± {half_width(values):.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures")
    parser.add_argument(
        "--targets", nargs="+", type=float, metavar="ACCURACY", help="for the tables of savings"
    )
    arguments = parser.parse_args(argv)
    return exit_status(lambda: write_figures(arguments))


def write_figures(arguments: argparse.Namespace) -> None:
    """Print the tables and write the figures."""
    output: Path = arguments.output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be created ({error.strerror})") from error
    comparisons = [compare(find_runs([folder])) for folder in arguments.studies]
    for folder, study in zip(arguments.studies, comparisons, strict=True):
        print(f"\n{folder.name}: {study.data}, {len(study.seeds)} seeds\n")
        print(markdown(accuracy_table(study)), end="\n\n")
        print(markdown(saving_table(study, arguments.targets)))
        write_atomically(output / f"{folder.name}_curves.png", comparison_figure(study))
    matrix, common = summed_penalties(comparisons)
    means = sorted(zip(matrix.mean(0), common, strict=True))
    listed = ", ".join(f"{name} {mean:.2f}" for mean, name in means)
    print(f"\npenalties over {len(comparisons)} studies, column means: {listed}")
    write_atomically(output / "penalties.png", penalty_heatmap(matrix, common))


if __name__ == "__main__":
    sys.exit(main())
