"""Whether torch.compile works on this machine, found out before anything is trained."""

from __future__ import annotations

import torch

from errors import UserError


def check_compilation(device: torch.device) -> None:
    """Compile and run a trifle on `device`; a few seconds.

    Raises:
        UserError: it failed, as where there is no C++ compiler.
    """
    try:
        torch.compile(_trifle)(torch.ones(16, device=device))
    # Whatever the compiler, the toolchain behind it or the file system raise means the same here.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"hyperparameters.compile: true, but torch.compile fails on this machine ({reason}); "
            "install a C++ compiler (such as g++) and Python's headers, or set compile: false"
        ) from error


def _trifle(values: torch.Tensor) -> torch.Tensor:
    return values.sin() + 1
