"""Serves a trained model over HTTP, with a page to drop images on.

    python -m tools.serve RUN_OR_CHECKPOINT_OR_EXPORT [--engine torch] [--port 8080]

A folder that tools.export wrote is served at once. A run folder or a checkpoint's is exported to a
temporary folder first, which takes some seconds; without its data set there is no outlier flag.
docs/serving.md and the service's own /docs say how to call it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from errors import UserError, exit_status
from serving.threads import use_one_thread
from tools.run_arguments import add_checkpoint_arguments

if TYPE_CHECKING:
    from labelling.uploads import Uploads


def serve(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from serving.command import run_service
    from serving.exported import is_exported

    correct = None
    if arguments.corrections is not None:
        correct = _uploads(arguments.corrections).add
    if is_exported(arguments.source):
        run_service(arguments.source, arguments, correct=correct)
        return
    with tempfile.TemporaryDirectory(prefix="served_model_") as temporary:
        folder = Path(temporary) / "exported"
        _export(arguments, folder)
        run_service(folder, arguments, correct=correct)


def _uploads(run: Path) -> Uploads:
    """Where the page's corrections go.

    Raises:
        UserError: `run` is no run folder, or people do not label it.
    """
    from labelling.uploads import Uploads
    from run_folder.description import read_description

    description, _ = read_description(run)
    oracle = description.settings.get("oracle")
    if oracle != "people":
        raise UserError(
            f"--corrections {run}: its oracle is {oracle}, which reads no corrections; name a run "
            "with oracle: people"
        )
    return Uploads(run)


def _export(arguments: argparse.Namespace, folder: Path) -> None:
    from tools.exporting import Source, content_with_data, content_without_data, write_folder

    source = Source(arguments.source, arguments.checkpoint, arguments.data_dir)
    try:
        content = content_with_data(source, evaluated=False)
    except UserError as error:
        content = content_without_data(source)  # raises again where the run is the trouble
        print(f"without its data set, so without outlier flags: {error}", file=sys.stderr)
    write_folder(content, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    use_one_thread()  # before anything loads numpy
    from serving.command import add_service_arguments

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, metavar="FOLDER", help="a run's, a checkpoint's or an exported one"
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--corrections",
        type=Path,
        metavar="RUN",
        help="let people correct classes on the page; the next round of this run trains on them",
    )
    add_service_arguments(parser)
    arguments = parser.parse_args(argv)
    return exit_status(lambda: serve(arguments))


if __name__ == "__main__":
    sys.exit(main())
