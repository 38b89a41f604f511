"""Measures the speed of training, scoring, selection and a whole round, and the device's limit.

    python -m benchmarks.speed                            # or: make bench
    python -m benchmarks.speed --only training scoring
    python -m benchmarks.speed --table                    # the tables of docs/speed.md

The benchmark compares each figure with a straightforward implementation of the same job
(benchmarks/speed/baseline.py, naive.py). Both are timed in turns on the same data: synthetic images
of PathMNIST's shape, or PathMNIST from --data-dir. It downloads nothing. Sections:

    limit       rate of a large matrix product, in the package's and the baseline's precision
    training    images/s of optimizer steps
    scoring     candidates/s of a query with 6 Monte Carlo passes
    round       seconds of a round: query, training, evaluation
    selection   seconds of the query strategies over 10,000 to 90,000 candidates
    memory      resident memory of model_def.py on a data set of PathMNIST's size (10 minutes on
                two cores, nearly all of it scoring)

It prints the rows, writes them to benchmarks/results/speed.csv in place of older rows of the same
machine, and draws images/speed.png. Times are medians of several runs, with the extremes. Shares
are relative to the limit, measured in the same run; the limit is in bfloat16 if the hardware has
it. Everything runs on the GPU if there is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.records import read_records
from benchmarks.speed import memory as speed_memory
from benchmarks.speed import network as speed_network
from benchmarks.speed import rows as speed_rows
from benchmarks.speed import selection as speed_selection
from benchmarks.speed.rows import Row
from benchmarks.speed.timing import machine, versions
from reporting.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent.parent
SECTIONS = ("limit", "training", "scoring", "round", "selection", "memory")
CPU = speed_network.Size(
    architecture="resnet50",
    image_size=28,
    batch=64,
    steps=6,
    baseline_steps=3,
    scored=1024,
    baseline_scored=128,
    round_part=100,
    product=4096,
    runs=3,
)
GPU = speed_network.Size(
    architecture="resnet50",
    image_size=28,
    batch=256,
    steps=50,
    baseline_steps=50,
    scored=65_536,
    baseline_scored=16_384,
    round_part=1,
    product=8192,
    runs=3,
)
TINY = speed_network.Size(
    architecture="resnet18",
    image_size=28,
    batch=4,
    steps=1,
    baseline_steps=1,
    scored=8,
    baseline_scored=4,
    round_part=10_000,
    product=64,
    runs=1,
)
SELECTION_SIZES = [(n, d) for d in (512, 2_048) for n in (10_000, 30_000, 90_000)]
# Settings with which the memory section takes seconds; its figure is then meaningless.
TINY_MEMORY = {
    "architecture": "small_cnn",
    "batch_size": 4,
    "initial_labeled_size": 4,
    "samples_to_label": 8,
    "label_budget": 12,
    "evaluation_size": 20,
}


def sections(arguments: argparse.Namespace, device: torch.device) -> Iterator[list[Row]]:
    """Measure the chosen sections; yields the rows of each measurement."""
    quick, wanted = arguments.quick, arguments.only
    size = TINY if quick else GPU if device.type == "cuda" else CPU
    compiled = not (quick or arguments.no_compile)
    if {"limit", "training", "scoring", "round"} & set(wanted):
        train = speed_network.store(arguments.data_dir, size, device)
        yield speed_network.limit(train, size, device)
    if "training" in wanted:
        yield from speed_network.training(train, size, device, compiled)
    if "scoring" in wanted:
        yield from speed_network.scoring(train, size, device, compiled)
    if "round" in wanted:
        yield from speed_network.whole_round(train, size, device)
    if "selection" in wanted:
        sizes = [(300, 32)] if quick else SELECTION_SIZES
        yield from speed_selection.selection(sizes, size.runs, device)
    if "memory" in wanted:
        yield from speed_memory.memory(*((200, TINY_MEMORY) if quick else (1, {})), device)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or print the recorded rows with --table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument(
        "--data-dir", type=Path, help="read PathMNIST from here, not synthetic images"
    )
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to test the benchmark itself"
    )
    parser.add_argument("--table", action="store_true", help="print the CSV file as Markdown")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "results" / "speed.csv")
    parser.add_argument("--plot", type=Path, default=ROOT / "images" / "speed.png")
    arguments = parser.parse_args(argv)
    if arguments.table:
        print(speed_rows.tables(read_records(arguments.csv)))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = machine(device)
    print(f"{name}; {versions()}", flush=True)
    records: list[dict[str, str]] = []
    for rows in sections(arguments, device):
        fresh = [row.record(name, versions()) for row in rows]
        print(speed_rows.table(fresh).split("| --- |\n")[-1], flush=True)
        records += fresh
        everything = speed_rows.merge(arguments.csv, records)
        write_atomically(arguments.plot, speed_rows.plot(everything, name))


if __name__ == "__main__":
    main()
