"""The command-line arguments of all tools that open a run. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, --checkpoint or --round, and --data-dir."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that a run has written")
    add_checkpoint_arguments(parser)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """--checkpoint or --round, and --data-dir."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--checkpoint",
        default="best",
        help="best (default), last, or 4 or more characters of a checkpoint's id",
    )
    which.add_argument(
        "--round", dest="checkpoint", metavar="N", help="the checkpoint of this round, from 0"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where the run's data set lies now"
    )
