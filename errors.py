"""The errors that end the work with one line instead of a traceback.

Every module raises `UserError` for what the user can mend. Command lines run their work through
`exit_status`, so that every tool prints such an error in the same way.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

# Exit statuses of every command of this package.
OK, FAILED, USER_ERROR, AWAITING_LABELS, INTERRUPTED = 0, 1, 2, 3, 130


class UserError(Exception):
    """A mistake that the user can mend; its text is one line: what, which value, what to do."""


class DownloadError(UserError):
    """Data that cannot be fetched from the network."""


class DivergedError(UserError):
    """A loss or metric that is no longer a finite number. In a search, a bad draw."""


def print_error(error: UserError) -> None:
    """Print `error` as every command of this package does."""
    print(f"error: {error}", file=sys.stderr, flush=True)


def exit_status(work: Callable[[], int | None], traceback: bool = False) -> int:
    """Run `work` and return the command's exit status; None from `work` means success.

    A `UserError` becomes one line on the standard error stream and status 2. Any other exception is
    a bug and keeps its traceback. With `traceback`, a `UserError` keeps its own as well.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a letter, or a file name that is no UTF-8, must not end the work.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return work() or OK
    except UserError as error:
        if traceback:
            raise
        print_error(error)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output, such as `head`, wants no more. Python must not flush into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
