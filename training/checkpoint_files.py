"""What it takes to read Determined's checkpoint files without running code that is in them."""

from __future__ import annotations

import numpy as np
import torch


def allow_numpy_random_state() -> None:
    """Let `torch.load(weights_only=True)` read numpy's random state in Determined's checkpoints.

    Determined saves it there and, from torch 2.6 on, could not read its own checkpoints otherwise.
    """
    if not hasattr(torch.serialization, "add_safe_globals"):
        return  # torch before 2.4
    core_module = getattr(np, "_core", None) or np.core  # numpy 2 has renamed it
    torch.serialization.add_safe_globals(
        [core_module.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype("uint32"))]
    )
