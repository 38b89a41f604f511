"""The data-parallel processes that torchrun has started, if it has."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from torch import nn

from errors import USER_ERROR, UserError, print_error
from training.ranks import ALONE, Ranks

WAIT_FOR_OTHERS = timedelta(seconds=30)

T = TypeVar("T")


def join() -> tuple[Ranks, torch.device]:
    """Join torchrun's process group; this process's place in it, and the device it computes on."""
    has_gpu = torch.cuda.is_available()
    if "RANK" not in os.environ:
        return ALONE, torch.device("cuda" if has_gpu else "cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo")
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size()), device


def leave() -> None:
    """Leave the process group, if this process is in one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def fail_together(error: UserError, ranks: Ranks) -> None:
    """Print a mistake that all ranks meet once, and end them together.

    torchrun ends all ranks as soon as one is gone, so none leaves before the first has printed.
    Returns on a rank that has met the mistake alone.
    """
    if ranks.rank == 0:
        print_error(error)
    try:
        torch.distributed.monitored_barrier(timeout=WAIT_FOR_OTHERS)
    except (RuntimeError, ValueError):  # another rank is elsewhere, or the ranks are on GPUs
        if ranks.rank > 0:
            return
    raise SystemExit(USER_ERROR)


def processes_on_this_machine() -> int:
    """How many data-parallel processes run here."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def parallel(network: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """`network`, wrapped so that gradients are averaged over the ranks."""
    if ranks.size == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=devices)


def from_first_rank(value: T, ranks: Ranks) -> T:
    """The first rank's `value`, on every rank."""
    if ranks.size == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
