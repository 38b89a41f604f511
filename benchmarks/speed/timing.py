"""Measures times, memory and the device's limit for `benchmarks.speed`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from training.precision import compute_dtype

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Spread:
    """Median and extremes of several measurements."""

    median: float
    low: float
    high: float
    runs: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Median and extremes of `values`."""
        return Spread(statistics.median(values), min(values), max(values), len(values))

    def per(self, amount: float) -> Spread:
        """`amount` divided by each, to turn seconds into a rate; the extremes swap."""
        return Spread(amount / self.median, amount / self.high, amount / self.low, self.runs)

    def times(self, factor: float) -> Spread:
        """Each value multiplied by `factor`."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.runs)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes until the device has finished."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def in_turns(
    works: dict[str, Callable[[], object]], runs: int, device: torch.device
) -> dict[str, Spread]:
    """Time all of `works` in turns, `runs` times each; returns their seconds.

    Other load on the machine then affects all of them equally.
    """
    times_by_name: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            times_by_name[name].append(seconds(work, device))
    return {name: Spread.of(values) for name, values in times_by_name.items()}


def synchronise(device: torch.device) -> None:
    """Wait until `device` has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(dtype: torch.dtype, size: int, device: torch.device) -> float:
    """Floating-point operations a second in a product of two square matrices, best of five."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(seconds(lambda: left @ right, device) for _ in range(6))
    return 2 * size**3 / best


def fast_dtype(device: torch.device) -> torch.dtype:
    """The type in which the device multiplies fastest, as `precision: auto` chooses it."""
    return compute_dtype("auto", device)


def peak_memory(work: Callable[[], object], device: torch.device) -> float | None:
    """Peak bytes of `work` above the memory in use before; None if unknown.

    On a GPU this is the allocator's count, on Linux the process's resident memory.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    give_back_memory()
    try:
        CLEAR_REFS.write_text("5", encoding="ascii")  # resets the peak
    except OSError:
        work()
        return None
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def give_back_memory() -> None:
    """Make glibc return freed memory; work that reuses it would seem to need none."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def run_with_peak(command: Sequence[str | Path]) -> int:
    """Run `command` to its end; returns its peak resident memory in bytes.

    Raises:
        RuntimeError: the command failed; the message holds its output.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"{command} failed:\n{output.read().decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit


def machine(device: torch.device) -> str:
    """The device's name; for a CPU also its threads in use and whether it has bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    arithmetic = "bfloat16" if fast_dtype(device) == torch.bfloat16 else "no bfloat16"
    return f"{name}, {torch.get_num_threads()} threads, {arithmetic}"


def versions() -> str:
    """The versions of Python and torch, as text."""
    return f"Python {platform.python_version()}, torch {torch.__version__}"
