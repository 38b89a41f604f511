"""Measures a finished run on a whole split: table, report.html, report.json and mistakes.csv.

    python -m tools.evaluate RUN [--round N | --checkpoint best|last] [--split val|test]
                                 [--group-by EXPRESSION_OR_CSV] [--output-dir DIR]

The files go into RUN/evaluation_SPLIT_CHECKPOINT unless --output-dir says otherwise. Figures of
the test split are for reporting; choose between runs by the validation split. Images of one
patient or slide count together in the intervals, and each group has its accuracy, where the run's
setting group_by says which they are, or --group-by: a regular expression on file names, or a CSV
file in the data set's folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import exit_status
from tools.run_arguments import add_run_arguments

SPLITS = ("val", "test")


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure the run and write the report."""
    import json

    from run_folder.reader import make_output_folder, open_run
    from tools.evaluate.measure import evaluate_split, report
    from tools.evaluate.report import html_report
    from tools.evaluate.tables import mistakes_csv, text_table
    from tools.output_folder import write_output

    folder: Path = arguments.output_dir or (
        arguments.run / f"evaluation_{arguments.split}_{arguments.checkpoint}"
    )
    run = open_run(arguments.run, arguments.checkpoint, arguments.data_dir)
    make_output_folder(folder)
    group_by = run.hp.group_by if arguments.group_by is None else arguments.group_by
    evaluation = evaluate_split(run, arguments.split, group_by)
    print(text_table(run, evaluation))
    numbers = json.dumps(report(run, evaluation), indent=2, allow_nan=False)
    write_output(
        folder,
        {
            "report.json": numbers + "\n",
            "mistakes.csv": mistakes_csv(run, evaluation),
            "report.html": html_report(run, evaluation),
        },
    )
    print(f"\nwritten: {folder / 'report.html'}, report.json and mistakes.csv")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate", description=__doc__.splitlines()[0]
    )
    add_run_arguments(parser)
    parser.add_argument("--split", choices=SPLITS, default="val")
    parser.add_argument(
        "--group-by",
        metavar="GROUPS",
        help="expression or CSV: images that belong together",
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="where the report goes")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: evaluate(arguments))


if __name__ == "__main__":
    sys.exit(main())
