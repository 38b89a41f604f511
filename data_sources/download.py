"""Downloads a file once per machine: under a lock, MD5-checked, and never visible half-written."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from data_sources.raw import describe_os_error
from errors import DownloadError

CONNECT_SECONDS = 10  # also the longest silence between two reads
LOCK_SECONDS = 3600  # another process may be downloading a large file over a slow line
BLOCK_BYTES = 1 << 20

logger = logging.getLogger(__name__)


def download_once(url: str, md5: str, target: Path) -> None:
    """Download `url` to `target`, unless another process has done so before.

    Raises:
        DownloadError: the file cannot be downloaded or saved, or is not the one of that `md5`. It
            comes within seconds where there is no network, and says what to download by hand.
    """
    by_hand = f"download {url} by hand and save it as {target}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f".{target.name}.lock")
        # Other users of the machine may lock the file too, where they share the folder.
        with FileLock(lock, timeout=LOCK_SECONDS, mode=0o666):
            if not target.exists():
                _fetch(url, md5, target)
    except Timeout as error:
        raise DownloadError(
            f"{error.lock_file}: held by another process for over {LOCK_SECONDS} s; "
            f"end that process, or {by_hand}"
        ) from error
    # NotImplementedError: the file system has no locks. ValueError: another file was served.
    except (OSError, http.client.HTTPException, NotImplementedError, ValueError) as error:
        raise DownloadError(
            f"{target}: could not be downloaded ({_why(error)}); {by_hand}"
        ) from error


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        return describe_os_error(error.reason)  # rather than urllib's wrapping of it
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}"  # a folder that cannot be written, say
    return " ".join(str(error).split()) or type(error).__name__


def _fetch(url: str, md5: str, target: Path) -> None:
    logger.info("downloading %s to %s", url, target)
    # The lock makes this the only writer, so the name can be fixed: what a killed process left is
    # overwritten, and is never taken for the file itself.
    partial = target.with_name(f".{target.name}.part")
    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})
    try:
        with (
            urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as response,
            partial.open("wb") as file,
        ):
            expected = int(response.headers.get("Content-Length") or 0)
            with tqdm(
                total=expected or None,
                desc=target.name,
                unit="B",
                unit_scale=True,
                disable=None,  # quiet when stderr is not a terminal
            ) as bar:
                while block := response.read(BLOCK_BYTES):
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
            received = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if received < expected:
            raise ValueError(f"the connection closed after {received} of {expected} bytes")
        if digest.hexdigest() != md5:
            raise ValueError(f"the file served has MD5 {digest.hexdigest()}, expected {md5}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
