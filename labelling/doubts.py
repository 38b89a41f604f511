"""Labels that somebody doubts: the next batch asks them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from errors import UserError
from reporting.files import write_atomically


def ask_again(run: Path, indices: Sequence[int]) -> None:
    """Put the labelled images with these dataset indices into the next batch."""
    path = _path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(sorted(set(indices))) + "\n")


def read_doubts(run: Path) -> list[int]:
    """Dataset indices that the next batch asks again, ascending.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return [int(index) for index in json.loads(_path(run).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{_path(run)}: damaged ({error}); remove it and ask again") from error


def forget_doubts(run: Path) -> None:
    """A batch asks them now."""
    _path(run).unlink(missing_ok=True)


def _path(run: Path) -> Path:
    return run / "labelling" / "doubts.json"
