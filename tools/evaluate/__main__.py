"""Measures a finished run on a whole split: table, report.json and report.html.

    python -m tools.evaluate RUN [--checkpoint best|last] [--split val|test] [--output-dir DIR]

The files go into RUN/evaluation_SPLIT_CHECKPOINT unless --output-dir says otherwise. Figures of
the test split are for reporting; choose between runs by the validation split.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import exit_status
from reporting.figures import shorten
from reporting.files import write_atomically
from reporting.measures import Estimate
from run_folder.reader import (
    Run,
    add_run_arguments,
    make_output_folder,
    open_run,
)
from tools.evaluate.measure import SPLITS, Evaluation, evaluate_split, report
from tools.evaluate.report import SCORES, html_report

NAME_WIDTH = 32


def evaluate(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    folder: Path = arguments.output_dir or (
        arguments.run / f"evaluation_{arguments.split}_{arguments.checkpoint}"
    )
    run = open_run(arguments.run, arguments.checkpoint, arguments.data_dir)
    make_output_folder(folder)
    evaluation = evaluate_split(run, arguments.split)
    print(text_table(run, evaluation))
    numbers = json.dumps(report(run, evaluation), indent=2, allow_nan=False)
    write_atomically(folder / "report.json", numbers + "\n")
    write_atomically(folder / "report.html", html_report(run, evaluation))
    print(f"\nwritten: {folder / 'report.html'} and report.json")


def text_table(run: Run, evaluation: Evaluation) -> str:
    """The figures with their 95 % intervals, for a terminal."""
    lines = [
        f"{run.splits.name}, {evaluation.split} split, {len(evaluation.store)} images; "
        f"checkpoint of round {run.round} (the first is 0), {len(run.pool.labelled)} labels; "
        f"temperature {evaluation.temperature:.3f}, fitted on the validation split",
        "",
        f"{'':{NAME_WIDTH}}  value  95 % interval",
    ]
    for name, title in SCORES.items():
        lines.append(f"{title:{NAME_WIDTH}}  {_text(evaluation.scores[name])}")
    columns = {"precision": "precision", "recall": "recall", "f1": "F1", "class_auc": "AUC"}
    header = "".join(f"  {title:21}" for title in columns.values())
    lines += ["", f"{'class':{NAME_WIDTH}}  images{header}".rstrip()]
    for c, name in enumerate(run.splits.class_names):
        values = "".join(f"  {_text(evaluation.class_scores[one][c]):21}" for one in columns)
        images = int(evaluation.confusion[c].sum())
        lines.append(f"{shorten(name, NAME_WIDTH):{NAME_WIDTH}}  {images:6}{values}".rstrip())
    return "\n".join(lines)


def _text(estimate: Estimate) -> str:
    if estimate.value != estimate.value:
        return "not defined"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_arguments(parser)
    parser.add_argument("--split", choices=SPLITS, default="val")
    parser.add_argument("--output-dir", type=Path, help="where the report goes")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: evaluate(arguments))


if __name__ == "__main__":
    sys.exit(main())
