"""Serves an exported folder: `python -m serving FOLDER`, as the exported Dockerfile does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import exit_status
from serving.threads import use_one_thread


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    use_one_thread()  # before anything loads numpy
    from serving.command import PORT, add_service_arguments, run_service
    from web.access import Access

    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("folder", type=Path, help="that tools.export wrote")
    parser.add_argument(
        "command", nargs="?", choices=("serve",), help="what SageMaker adds; changes nothing"
    )
    parser.add_argument(
        "--container",
        action="store_true",
        help=f"listen on all addresses at port {PORT}, without a token: whoever runs the "
        "container decides who reaches it",
    )
    add_service_arguments(parser)
    arguments = parser.parse_args(argv)
    access = Access("0.0.0.0", PORT, None, any_host=True) if arguments.container else None
    return exit_status(lambda: run_service(arguments.folder, arguments, access))


if __name__ == "__main__":
    sys.exit(main())
