"""Chooses the number type that a device computes in fastest."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

CPU_FLAGS_FILE = Path("/proc/cpuinfo")
CPU_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware, faster than float32 ones.

    On CPUs without the instructions PyTorch emulates bfloat16, several times slower than float32.
    A CPU therefore counts only if Linux lists them.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and platform.machine() == "x86_64" and CPU_FLAGS_FILE.exists():
        return not CPU_BFLOAT16_FLAGS.isdisjoint(CPU_FLAGS_FILE.read_text().split())
    return False


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that autocast computes in; `precision` is auto, bfloat16 or float32."""
    if precision == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]
