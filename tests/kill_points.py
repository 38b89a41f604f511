"""Places in a run at which a process ends itself with SIGKILL; tests/test_resume.py resumes.

A kill from outside comes at random; this one comes in the middle of exactly the call that is
named, and nothing - no handler, no `finally` - runs after it.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KillPoint:
    """The `call`th call, in the process armed, of the function at `place`.

    Args:
        where: "before" the call, "after" it, or "within" it, for which see `_WITHIN`.
        file: counts only calls whose last positional argument is a path of that name.
    """

    place: str  # module:qualified.name
    call: int = 1
    where: str = "before"
    file: str | None = None

    def __str__(self) -> str:
        what = self.place.partition(":")[2] + (f" of {self.file}" if self.file else "")
        return f"{self.where} call {self.call} of {what}"

    def arm(self) -> None:
        """Have this process killed there."""
        module, _, name = self.place.partition(":")
        *parents, last = name.split(".")
        owner: Any = importlib.import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        function = getattr(owner, last)
        calls = 0

        def killing(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            if self.file is None or Path(arguments[-1]).name == self.file:
                calls += 1
                if calls == self.call:
                    if self.where == "within":
                        _WITHIN[self.place](*arguments)
                    elif self.where == "after":
                        function(*arguments, **options)
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        setattr(owner, last, killing)


def _half_a_save(content: Any, path: str) -> None:
    import torch

    whole = io.BytesIO()
    torch.serialization.save(content, whole)
    Path(path).write_bytes(whole.getvalue()[: whole.tell() // 2])


def _half_a_removal(folder: Path) -> None:
    sorted(Path(folder).iterdir())[0].unlink()


# What is left of a call that is cut off halfway.
_WITHIN: dict[str, Callable[..., None]] = {
    "torch:save": _half_a_save,
    "shutil:rmtree": _half_a_removal,
}
