"""Temperature scaling: one number that calibrates a network's confidence."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

COLDEST, HOTTEST = 0.05, 20.0


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in [0.05, 20] for which softmax(logits / T) has the lowest cross-entropy.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599. The order of
    the classes, and with it every prediction, stays as it is.

    Args:
        logits: [N, C], of the validation split and never of the test split.
        labels: int64 [N].
    """
    from scipy.optimize import minimize_scalar  # slow to import; `--help` needs none of it

    logits, labels = logits.double().cpu(), labels.cpu()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    # The loss is convex in 1 / T, so a bounded search over log T ends at the one minimum.
    bounds = (math.log(COLDEST), math.log(HOTTEST))
    return float(math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
