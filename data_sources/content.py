"""Hashes of files' contents, by which a cache knows that its source is still the same.

Size and modification time are not enough: a file can change with both kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

BLOCK_BYTES = 2**22  # read at a time
SHOWN_AFTER_SECONDS = 2.0


def content_hash(path: Path) -> bytes:
    """SHA-256 of the file's content; OSError where it cannot be read."""
    digest = hashlib.sha256()  # the fastest of hashlib where the CPU has SHA instructions
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def content_hashes(paths: Sequence[Path]) -> list[bytes]:
    """The `content_hash` of each file, with a progress bar where it takes long."""
    with ThreadPoolExecutor() as pool:  # reading and hashing leave Python's global lock
        hashes = pool.map(content_hash, paths, chunksize=1)
        bar = tqdm(
            hashes, total=len(paths), desc="checking files", unit=" files", leave=False,
            delay=SHOWN_AFTER_SECONDS, disable=None,
        )  # fmt: skip
        return list(bar)
