"""The baseline of every comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from .scores import PoolScores, pick_count


def random(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Candidates drawn uniformly without replacement.

    Cost: O(n).
    """
    count = pick_count(scores, k)
    candidates = scores.candidates
    order = torch.randperm(len(candidates), generator=generator, device=candidates.device)
    return candidates[order[:count]]
