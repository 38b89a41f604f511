"""Measures the time and the memory that each query strategy needs for one query of a large pool.

    python -m benchmarks.strategy_cost --output strategy_cost.csv
    python -m benchmarks.strategy_cost --candidates 20000 --picks 1000 --strategies badge k_center

The synthetic embeddings resemble those of a trained network: one cluster per class, rectified, of
low rank plus noise. Each strategy runs in a new process. On a CPU it uses one thread; the figures
are CPU seconds and the growth of resident memory during the query, without the scores. On a GPU the
figures are wall-clock seconds and the allocated GPU memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from query_strategies import STRATEGIES, PoolScores, get_strategy
from reporting.files import csv_text, write_atomically
from training.seeds import make_generator

DIMENSIONS, CLASSES, PASSES, LABELLED = 2048, 9, 20, 1000
RANK, BLOCK = 64, 2000
COLUMNS = ("strategy", "candidates", "picks", "device", "seconds", "megabytes")


def made_up_scores(count: int, device: str, dimensions: int = DIMENSIONS) -> PoolScores:
    """Scores of `count` candidates and `LABELLED` labelled images, in half precision."""
    generator = make_generator(0, "strategy cost", device=device)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    centres, basis = normal(CLASSES, dimensions), normal(RANK, dimensions) / RANK**0.5
    total = count + LABELLED
    owner = torch.randint(0, CLASSES, (total,), generator=generator, device=device)
    embeddings = torch.empty(total, dimensions, dtype=torch.float16, device=device)
    for rows in torch.arange(total, device=device).split(BLOCK):
        low_rank = centres[owner[rows]] + normal(len(rows), RANK) @ basis
        embeddings[rows] = (low_rank + 0.3 * normal(len(rows), dimensions)).relu().half()
    probabilities = torch.empty(PASSES, count, CLASSES, device=device)
    class_logits = 2 * torch.nn.functional.one_hot(owner[:count], CLASSES) + normal(count, CLASSES)
    for one_pass in probabilities:
        one_pass.copy_((class_logits + normal(count, CLASSES)).softmax(1))
    candidates = torch.arange(count, device=device)
    return PoolScores(candidates, probabilities, embeddings[:count], embeddings[count:])


def measure(name: str, count: int, picks: int, device: str) -> dict[str, Any]:
    """Measure one strategy. Call this once per process, because it reads the process's peak."""
    torch.set_num_threads(1)
    strategy = get_strategy(name, prefilter_factor=10)
    picks = min(picks, strategy.largest_query or picks)
    scores = made_up_scores(count, device)
    generator = make_generator(0, "query", device=device)
    on_gpu = device != "cpu"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    held_before, started = _bytes_held(on_gpu), clock()
    chosen = strategy.select(scores, picks, generator).cpu()
    seconds = clock() - started
    if len(chosen.unique()) != picks:
        raise RuntimeError(f"{name} chose {len(chosen.unique())} images of {picks}")
    values = (name, count, picks, device, f"{seconds:.1f}", f"{_peak(on_gpu) - held_before:.0f}")
    return dict(zip(COLUMNS, values, strict=True))


def _bytes_held(on_gpu: bool) -> float:
    """Memory in use now, in megabytes."""
    if on_gpu:
        return torch.cuda.memory_allocated() / 1e6
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def _peak(on_gpu: bool) -> float:
    """Peak memory use so far, in megabytes."""
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux: kilobytes


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=90_000)
    parser.add_argument("--picks", type=int, default=4430)
    parser.add_argument("--strategies", nargs="+", choices=sorted(STRATEGIES), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, metavar="CSV")
    arguments = parser.parse_args(argv)
    rows = []
    for name in arguments.strategies or STRATEGIES:
        work = (name, arguments.candidates, arguments.picks, arguments.device)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, *work).result())
        print(", ".join(f"{column} {rows[-1][column]}" for column in COLUMNS), flush=True)
        if arguments.output is not None:
            table = [[row[column] for column in COLUMNS] for row in rows]
            write_atomically(arguments.output, csv_text(COLUMNS, table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
