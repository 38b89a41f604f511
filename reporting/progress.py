"""A progress bar for work that takes more than two seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

DELAY = 2.0  # seconds before a bar appears
LOG_INTERVAL = 15.0  # seconds between the lines of a bar that goes into a file


def progress(items: Sequence[Item], title: str) -> Iterable[Item]:
    """`items`, with a bar on the standard error stream.

    On a terminal the bar vanishes at the end; in a log file it is a line now and then.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        items, desc=title, delay=DELAY, leave=False, mininterval=0.1 if terminal else LOG_INTERVAL
    )
