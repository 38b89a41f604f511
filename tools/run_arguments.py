"""The command-line arguments of all tools that open a run. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_run_arguments(parser: argparse.ArgumentParser, checkpoint: str = "best") -> None:
    """RUN, --checkpoint, by default `checkpoint`, or --round, and --data-dir."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or checkpoint folder")
    add_checkpoint_arguments(parser, checkpoint)


def add_checkpoint_arguments(parser: argparse.ArgumentParser, default: str = "best") -> None:
    """--checkpoint, by default `default`, or --round, and --data-dir."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--checkpoint",
        default=default,
        help=f"best, last, or 4 or more characters of a checkpoint's id; default: {default}",
    )
    which.add_argument(
        "--round", dest="checkpoint", metavar="N", help="the checkpoint of this round, from 0"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where the run's data set lies now"
    )
