"""Hashes of files' contents, by which a cache knows that its source is still the same.

Size and modification time are not enough: a file can change and keep both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

BLOCK_BYTES = 2**22  # read at a time
FILES_AT_A_TIME = 64  # that a thread takes
SHOWN_AFTER_SECONDS = 2.0  # of any progress bar


def content_hash(path: Path, title: str | None = None) -> bytes:
    """SHA-256 of the file's content; OSError where it cannot be read.

    With a `title`, a progress bar shows where it takes long.
    """
    digest = hashlib.sha256()  # the fastest of hashlib where the CPU has SHA instructions
    with (
        path.open("rb", buffering=0) as file,
        tqdm(
            desc=title, total=path.stat().st_size, unit="B", unit_scale=True, leave=False,
            delay=SHOWN_AFTER_SECONDS, disable=True if title is None else None,
        ) as bar,
    ):  # fmt: skip
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    return digest.digest()


def content_hashes(paths: Sequence[Path]) -> list[bytes]:
    """The `content_hash` of each file, with a progress bar where it takes long."""
    parts = [paths[i : i + FILES_AT_A_TIME] for i in range(0, len(paths), FILES_AT_A_TIME)]
    hashes: list[bytes] = []
    with (
        ThreadPoolExecutor() as pool,  # reading and hashing leave Python's global lock
        tqdm(
            desc="checking files", total=len(paths), unit=" files", leave=False,
            delay=SHOWN_AFTER_SECONDS, disable=None,
        ) as bar,
    ):  # fmt: skip
        for part in pool.map(lambda part: [content_hash(path) for path in part], parts):
            hashes += part
            bar.update(len(part))
    return hashes
