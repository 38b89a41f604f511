"""Serves the page on which people label what a run asks for.

    python -m tools.label RUN
    python -m tools.label RUN --annotators ann,ben,cat --overlap 0.2 --blind
    python -m tools.label --experiment 12    # of a cluster: see DET_MASTER and `det user login`

RUN is a run with `oracle: people`. The page keeps every answer in RUN/labelling before it says that
it is saved. Stop it with Ctrl-C and start it again at any time.

An experiment's question is downloaded into runs/experiment-ID, or into RUN. "Train the next round"
sends the answers and activates the experiment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from errors import UserError, exit_status
from labelling.batch import batch_folders
from labelling.settings import LabellingSettings, read_settings, write_settings
from web.access import Access
from web.server import add_address_arguments, address, listen, serve, token_from_environment

if TYPE_CHECKING:
    from tools.label.training import Rounds

PORT = 8700
MAX_BODY_BYTES = 16 << 20  # a file of labels to import


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.label",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", type=Path, nargs="?", metavar="RUN", help="folder of a run with oracle: people"
    )
    parser.add_argument(
        "--experiment", type=int, metavar="ID", help="label what this paused experiment asks"
    )
    parser.add_argument("--annotators", help="names, with commas between; kept in the run")
    parser.add_argument(
        "--overlap", type=float, help="share of each batch that every annotator labels, 0 to 1"
    )
    parser.add_argument(
        "--blind",
        action=argparse.BooleanOptionalAction,
        help="hide suggestions and the answers of others",
    )
    add_address_arguments(parser, PORT)
    options = parser.parse_args(arguments)
    if options.run is None and options.experiment is None:
        parser.error("name a RUN, or an experiment by --experiment ID")
    return exit_status(lambda: label(options))


def label(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    run, rounds = _run_and_rounds(options)
    if not batch_folders(run):
        raise UserError(
            f"{run}: asks for no labels; name a run with oracle: people that has written its first "
            "batch"
        )
    write_settings(run, _settings(options, run))
    # A second of imports, which --help does without.
    from tools.label.api import label_application
    from tools.label.desk import Desk

    access = Access.for_address(
        options.host, options.port, token_from_environment(), MAX_BODY_BYTES
    )
    listener, access = listen(access)
    print(f"label here: {address(access)} (Ctrl-C ends the page; answers are kept)", flush=True)
    serve(label_application(Desk(run), rounds, access), listener)


def _run_and_rounds(options: argparse.Namespace) -> tuple[Path, Rounds]:
    """The folder that is labelled, and what trains its next round."""
    if options.experiment is None:
        from tools.label.training import Training

        return options.run, Training(options.run)
    try:
        from cluster.outside import Experiment
    except ModuleNotFoundError as error:
        raise UserError(
            f"--experiment {options.experiment}: needs the package determined ({error}); install it"
        ) from error
    run = options.run or Path("runs") / f"experiment-{options.experiment}"
    return run, Experiment(options.experiment, run)


def _settings(options: argparse.Namespace, run: Path) -> LabellingSettings:
    """What the run keeps, changed by the options that were given."""
    kept = read_settings(run)
    names = kept.annotators
    if options.annotators is not None:
        names = tuple(name.strip() for name in options.annotators.split(",") if name.strip())
    return LabellingSettings(
        names,
        kept.overlap if options.overlap is None else options.overlap,
        kept.blind if options.blind is None else options.blind,
    )


if __name__ == "__main__":
    sys.exit(main())
