"""Data-parallel ranks: who does which share of a sweep, and putting the shares together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process's `rank` among `size`; (0, 1) is a run without data parallelism."""

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> slice:
        """The consecutive part of `count` items that falls to this rank."""
        each = -(-count // self.size)
        return slice(min(count, self.rank * each), min(count, (self.rank + 1) * each))

    def gather(self, part: Tensor, count: int) -> Tensor:
        """All ranks' `part`s [share, ...], cut as by `share`, as one tensor [count, ...]."""
        if self.size == 1:
            return part
        each = -(-count // self.size)
        padded = part.new_zeros(each, *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(parts, padded)
        return torch.cat(parts)[:count]

    def agree(self, tensor: Tensor) -> Tensor:
        """The first rank's `tensor`, on every rank; all bring one of the same shape and type."""
        if self.size > 1:
            torch.distributed.broadcast(tensor, src=0)
        return tensor


ALONE = Ranks()
