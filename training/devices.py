"""Checks, before anything is read or trained, whether the GPUs that a run asks for exist."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from errors import UserError

NO_GPU = ("", "-1")  # the usual values of CUDA_VISIBLE_DEVICES that ask for no GPU


def check_devices(environment: Mapping[str, str], assigned: int, processes: int) -> None:
    """Refuse a run that asks for GPUs which PyTorch cannot use.

    Such a run would fail at its first tensor, or train on the CPU without anybody noticing.

    Args:
        environment: of the process; CUDA_VISIBLE_DEVICES names the GPUs that the user asks for.
        assigned: number of GPUs that a cluster has assigned to this task; 0 off a cluster.
        processes: number of processes of the run on this machine; each needs a GPU of its own.

    Raises:
        UserError: a GPU that is asked for or assigned is missing, or there are more processes
            than GPUs.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").strip()
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if assigned and not available:
        raise UserError(
            f"resources.slots_per_trial: {assigned} GPUs are assigned, but torch "
            f"{torch.__version__} can use none; take a task image whose torch fits the driver"
        )
    if visible not in NO_GPU and not available:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES: {visible}, but torch {torch.__version__} finds no such GPU; "
            "correct it, or unset it to run on the CPU"
        )
    if available and processes > available:
        raise UserError(
            f"--nproc-per-node: {processes} processes but {available} GPUs; start one per GPU, "
            'or set CUDA_VISIBLE_DEVICES="" to run on the CPU'
        )
