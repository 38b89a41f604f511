"""Chooses the number type that a device computes in fastest, and what float16 and TF32 need."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

CPU_FLAGS_FILE = Path("/proc/cpuinfo")
CPU_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
BFLOAT16_CAPABILITY = (8, 0)  # Ampere
FLOAT16_CAPABILITY = (7, 0)  # Volta, the first GPUs with tensor cores

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that autocast computes in; `precision` is auto, bfloat16, float16 or float32."""
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return fastest_gpu_dtype(torch.cuda.get_device_capability(device))
    if device.type == "cpu" and platform.machine() == "x86_64" and CPU_FLAGS_FILE.exists():
        return fastest_cpu_dtype(CPU_FLAGS_FILE.read_text().split())
    return torch.float32


def fastest_gpu_dtype(capability: tuple[int, int]) -> torch.dtype:
    """The type that an NVIDIA GPU multiplies fastest in hardware: bfloat16 where it has it.

    Args:
        capability: of the GPU, as `torch.cuda.get_device_capability` gives it.
    """
    if capability >= BFLOAT16_CAPABILITY:
        return torch.bfloat16
    return torch.float16 if capability >= FLOAT16_CAPABILITY else torch.float32


def fastest_cpu_dtype(flags: Collection[str]) -> torch.dtype:
    """The type that a CPU multiplies fastest.

    On CPUs without the instructions PyTorch emulates bfloat16, several times slower than float32.
    A CPU therefore counts only if Linux lists them.

    Args:
        flags: the words of /proc/cpuinfo.
    """
    return torch.float32 if CPU_BFLOAT16_FLAGS.isdisjoint(flags) else torch.bfloat16


def gradient_scaler(dtype: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """The scaler of the loss, which does nothing unless `dtype` is float16.

    Small gradients are 0 in float16. The scaler therefore multiplies the loss, and divides the
    gradients before the optimizer's step. It skips a step whose gradients are not finite, and then
    takes a smaller factor (Micikevicius et al. 2018, arXiv 1710.03740). Its state belongs to a
    run's checkpoint.
    """
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Have NVIDIA GPUs compute float32 products in TF32, or exactly, while the block runs.

    PyTorch keeps the choice for the whole process, and one for convolutions that is on by default.
    Both are as before after the block, so that nothing else, such as the distances of a query
    strategy, is rounded to TF32's 10 bits.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
