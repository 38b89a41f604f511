"""Divides work among data-parallel ranks, and puts their shares together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among `size` processes; (0, 1) without data parallelism."""

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> slice:
        """The slice of `count` items that this rank processes."""
        each = -(-count // self.size)
        return slice(min(count, self.rank * each), min(count, (self.rank + 1) * each))

    def gather(self, part: Tensor, count: int) -> Tensor:
        """One tensor [count, ...] of all ranks' parts [share, ...], divided as `share` does."""
        if self.size == 1:
            return part
        each = -(-count // self.size)
        # Parts come from inference mode, and torch 2.3 gathers only ordinary tensors.
        with torch.inference_mode(False):
            padded = part.new_zeros(each, *part.shape[1:])
            padded[: len(part)] = part
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            torch.distributed.all_gather(parts, padded)
        return torch.cat(parts)[:count]

    def gather_with_gradient(self, part: Tensor) -> Tensor:
        """All ranks' parts [b, ...] in the order of ranks; only this rank's carries gradients."""
        if self.size == 1:
            return part
        rows = len(part)
        whole = self.gather(part.detach(), rows * self.size)
        begin = self.rank * rows
        return torch.cat([whole[:begin], part, whole[begin + rows :]])

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace this rank's gradients by the sum over all ranks."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(together)
        for gradient, values in zip(
            gradients, together.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(values.view_as(gradient))

    def total(self, values: Tensor) -> Tensor:
        """The sum of all ranks' `values`, on every rank."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def agree(self, tensor: Tensor) -> Tensor:
        """The first rank's `tensor` on every rank; all have the same shape and type."""
        if self.size > 1:
            torch.distributed.broadcast(tensor, src=0)
        return tensor


ALONE = Ranks()
