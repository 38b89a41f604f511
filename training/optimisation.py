"""The optimizer, the learning rate of every step, and shrink-and-perturb between rounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

# Takes a step with the gradients that are there, and removes them.
StepOptimizer = Callable[[torch.optim.Optimizer, torch.amp.GradScaler], None]

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def make_optimizer(network: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), fused where torch supports it.

    Weight decay applies to matrices and kernels only, because shrinking biases or the scales of
    norms does not regularise the function that the network computes. Frozen parameters are left
    out. The learning rate is 0 until the first step sets it.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # Before torch 2.4, CPUs have no fused optimizer.
    fused = next(network.parameters()).is_cuda or TORCH >= (2, 4)
    return torch.optim.AdamW(groups, lr=0.0, fused=fused, foreach=not fused)


def step_and_zero(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Take the optimizer's step through the scaler, which may skip it."""
    scaler.step(optimizer)
    optimizer.zero_grad()


def learning_rate(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
    """The rate of step `step` of `steps`: a linear warm-up to `peak`, then a cosine to 0.

    It is a closed form of the step, so checkpoints need not hold it.
    """
    warmup = max(1, round(warmup_fraction * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@torch.no_grad()
def shrink_and_perturb(network: nn.Module, fresh: nn.Module, shrink: float, perturb: float) -> None:
    """Set every trainable weight to `shrink * weight + perturb * fresh weight`.

    Ash & Adams 2020 (arXiv 1910.08475): the network keeps the direction that it has learnt, and
    regains the ability to learn from new labels, which a converged network has lost.
    """
    for parameter, new in zip(network.parameters(), fresh.parameters(), strict=True):
        if parameter.requires_grad:
            parameter.mul_(shrink).add_(new, alpha=perturb)
