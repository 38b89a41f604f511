"""One thread for every library that computes, because the service shares out the cores itself."""

from __future__ import annotations

import os

# OpenBLAS, under numpy, would start a thread for each core. They wait for work in a busy loop.
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def use_one_thread() -> None:
    """Tell the libraries that are not loaded yet, unless the user's environment does."""
    for name in VARIABLES:
        os.environ.setdefault(name, "1")
