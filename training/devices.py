"""Whether the GPUs that a run asks for are there: known before anything is read or trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from errors import UserError

NONE_ASKED = ("", "-1")  # of CUDA_VISIBLE_DEVICES: the usual ways to ask for no GPU


def check_devices(environment: Mapping[str, str], assigned: int, processes: int) -> None:
    """Refuse a run that asks for GPUs which PyTorch cannot give it.

    Such a run would fail at its first tensor, or train on the CPU for as long as nobody looks.

    Args:
        environment: of the process; CUDA_VISIBLE_DEVICES names the GPUs that the user asks for.
        assigned: GPUs that a cluster has given to this task; 0 off a cluster.
        processes: of the run, on this machine; each needs a GPU of its own.

    Raises:
        UserError: GPUs are asked for or assigned and absent, or fewer than processes.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES", "").strip()
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if assigned and not found:
        raise UserError(
            f"resources.slots_per_trial: {assigned} GPUs assigned, none that torch "
            f"{torch.__version__} can use; take a task image whose torch fits the driver"
        )
    if named not in NONE_ASKED and not found:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES: {named}, and torch {torch.__version__} finds no such GPU; "
            "correct it, or unset it to run on the CPU"
        )
    if found and processes > found:
        raise UserError(
            f"--nproc-per-node: {processes} processes and {found} GPUs; start one for each GPU, "
            'or set CUDA_VISIBLE_DEVICES="" to run on the CPU'
        )
