"""Checks, before training starts, whether torch.compile works on this machine."""

from __future__ import annotations

import torch

from errors import UserError


def check_compilation(device: torch.device) -> None:
    """Compile and run a small function on `device`, which takes a few seconds.

    Raises:
        UserError: that failed, for example because there is no C++ compiler.
    """
    try:
        torch.compile(_small_function)(torch.ones(16, device=device))
    # Errors of the compiler, its toolchain and the file system all mean the same here.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"hyperparameters.compile: true, but torch.compile fails on this machine ({reason}); "
            "install a C++ compiler (such as g++) and Python's headers, or set compile: false"
        ) from error


def _small_function(values: torch.Tensor) -> torch.Tensor:
    return values.sin() + 1
