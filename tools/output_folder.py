"""Writes the files of a report into the folder that --output-dir names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from errors import UserError
from reporting.files import write_atomically


def write_output(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files`, content by name, into `folder`.

    Raises:
        UserError: one of them cannot be written.
    """
    for name, content in files.items():
        try:
            write_atomically(folder / name, content)
        except OSError as error:
            raise UserError(
                f"--output-dir {folder}: {name} cannot be written ({error.strerror}); name another "
                "folder"
            ) from error
