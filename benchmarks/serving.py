"""Load test of the prediction service, with and without batching, compared with the bare model.

    python -m benchmarks.serving EXPORTED [EXPORTED ...] [--output results.csv]

The test starts a service for each setting. Clients in one thread of this process send PNG images of
random pixels over open connections; each sends its next request when the last one is answered. So
clients and service share the cores, and `client_cpu_ms` is what the clients take of them.

The bare model is ONNX Runtime without HTTP, with the same settings as in the service: one thread
a worker, and batches of as many images as the service accepts. It predicts one image at a time,
too: overhead is the median time of the service with one client minus the median time of that.
The rows with two workers compare both on two cores. Two further rows compare one client that pauses
before each request with the bare model after the same pause, in which the processor's caches lose
the code of both. All rows of a folder come from one run. Each figure is the median of several
rounds that measure all settings in turn, because a machine that others share changes its speed
within seconds.
`cpu_ms` is the processor time per image, of the service and its decoders together; other work on
the machine hardly changes it.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import psutil

from benchmarks.service_clients import http_request, load, png, random_pixels, running_service
from errors import exit_status
from serving.engine import OnnxEngine
from serving.exported import read_exported
from serving.service import MAX_BATCH

CLIENTS = (1, 8, 32)
ROUNDS = 3
SECONDS = 2.0
WARM_UP_SECONDS = 0.5
PAUSE_SECONDS = 0.01
BARE_SINGLE, BARE, SERVICE = "bare model, single images", "bare model", "service"
PAUSING = f", {1000 * PAUSE_SECONDS:.0f} ms apart"


@dataclass(frozen=True)
class Row:
    """One row of the results. Times are in milliseconds; both kinds of `cpu_ms` are per image."""

    model: str
    setting: str
    workers: int
    clients: int
    images_per_second: float
    p50: float
    p95: float
    p99: float
    cpu_ms: float
    client_cpu_ms: float


def measure(folder: Path, rounds: int, seconds: float, rest: float) -> list[Row]:
    """The medians of several rounds."""
    measured = [measure_round(folder, seconds, rest) for _ in range(rounds)]
    return [median_row(rows) for rows in zip(*measured, strict=True)]


def median_row(rows: Sequence[Row]) -> Row:
    """The median of each figure in rows of the same setting."""
    figures = [
        field.name for field in fields(Row) if isinstance(getattr(rows[0], field.name), float)
    ]
    medians = {name: statistics.median(getattr(row, name) for row in rows) for name in figures}
    return replace(rows[0], **{name: round(value, 3) for name, value in medians.items()})


def measure_round(folder: Path, seconds: float, rest: float) -> list[Row]:
    """Measure the bare model and the service, without and with batching, for each `CLIENTS`."""
    model = read_exported(folder)
    name = f"{model.architecture}, {model.image_size} px"
    pixels = random_pixels(model)
    requests = [http_request(png(image)) for image in pixels]
    rows = []
    for setting, batch, workers, pause in (
        (BARE_SINGLE, 1, 1, 0.0),
        (BARE_SINGLE + PAUSING, 1, 1, PAUSE_SECONDS),
        (BARE, MAX_BATCH, 1, 0.0),
        (BARE, MAX_BATCH, 2, 0.0),
    ):
        rows.append(bare(name, setting, folder, pixels, batch, workers, seconds, pause))
        time.sleep(rest)
    for setting, max_batch, workers, numbers, pause in (
        (SERVICE + ", no batching", 1, 1, CLIENTS, 0.0),
        (SERVICE, MAX_BATCH, 1, CLIENTS, 0.0),
        (SERVICE + PAUSING, MAX_BATCH, 1, CLIENTS[:1], PAUSE_SECONDS),
        (SERVICE, MAX_BATCH, 2, CLIENTS[-1:], 0.0),
    ):
        options = ("--max-batch", str(max_batch), "--workers", str(workers))
        with running_service(folder, *options) as (process, port):
            for clients in numbers:
                before, own = cpu_seconds(process), time.process_time()
                times, total = load(port, requests, clients, seconds, WARM_UP_SECONDS, pause)
                used, clients_used = cpu_seconds(process) - before, time.process_time() - own
                rows.append(
                    summary(
                        name, setting, workers, clients, times, len(times) / seconds,
                        used / total, clients_used / total,
                    )
                )  # fmt: skip
                time.sleep(rest)
    return rows


def bare(
    name: str,
    setting: str,
    folder: Path,
    pixels: np.ndarray,
    batch: int,
    workers: int,
    seconds: float,
    pause: float,
) -> Row:
    """Measure ONNX Runtime alone, with `batch` images at a time in each of `workers` threads.

    Each thread pauses for `pause` seconds before each run.
    """
    engine = OnnxEngine(folder)
    images = np.stack([pixels[index % len(pixels)] for index in range(batch)])
    times: list[float] = []
    calls: list[int] = []
    cpu = time.process_time()
    end = time.perf_counter() + seconds + WARM_UP_SECONDS

    def work() -> None:
        count = 0
        while time.perf_counter() < end:
            if pause:
                time.sleep(pause)
            start = time.perf_counter()
            engine.run(images)
            count += 1
            now = time.perf_counter()
            if now > end - seconds:
                times.append(now - start)
        calls.append(count)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = (time.process_time() - cpu) / (sum(calls) * batch)
    rate = batch * workers * len(times) / (sum(times) + pause * len(times))
    return summary(name, setting, workers, 0, times, rate, used, 0.0)


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a service and its children so far."""
    family = [process, *process.children()]
    return sum(sum(member.cpu_times()[:2]) for member in family)


def summary(
    name: str,
    setting: str,
    workers: int,
    clients: int,
    times: Sequence[float],
    rate: float,
    cpu: float,
    client_cpu: float,
) -> Row:
    """The row for request times in seconds; `cpu` and `client_cpu` are seconds per image."""
    p50, p95, p99 = (1000 * np.percentile(times, (50, 95, 99))).round(2).tolist()
    figures = (round(rate, 1), p50, p95, p99, round(1000 * cpu, 3), round(1000 * client_cpu, 3))
    return Row(name, setting, workers, clients, *figures)


def run(arguments: argparse.Namespace) -> None:
    """Measure all folders and print the rows."""
    rows = [
        row
        for folder in arguments.folders
        for row in measure(folder, arguments.rounds, arguments.seconds, arguments.rest)
    ]
    for row in rows:
        print(
            "  ".join(
                f"{value!s:>26}" if i < 2 else f"{value!s:>8}"
                for i, value in enumerate(asdict(row).values())
            )
        )
    for name in dict.fromkeys(row.model for row in rows):
        print(f"{name}: {verdict([row for row in rows if row.model == name])}")
    if arguments.output:
        with arguments.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


def verdict(rows: Sequence[Row]) -> str:
    """The main figures of one model, as text."""
    found = {(row.setting, row.workers, row.clients): row for row in rows}
    overhead, pausing = (
        found[SERVICE + when, 1, 1].p50 - found[BARE_SINGLE + when, 1, 0].p50
        for when in ("", PAUSING)
    )
    text = (
        f"overhead {overhead:.2f} ms at the median, {pausing:.2f} ms with requests{PAUSING}; "
        f"at {CLIENTS[-1]} clients"
    )
    for workers in (1, 2):
        service, limit = found[SERVICE, workers, CLIENTS[-1]], found[BARE, workers, 0]
        text += (
            f" {service.images_per_second / limit.images_per_second:.0%} of the bare model's "
            f"{limit.images_per_second:.0f} images/s with {workers} worker{'s'[: workers - 1]},"
        )
    more = found[SERVICE, 1, CLIENTS[-1]].cpu_ms - found[BARE, 1, 0].cpu_ms
    return f"{text} {more:.2f} ms more processor time per image"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="EXPORTED")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which medians are taken")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="duration of each measurement in a round"
    )
    parser.add_argument(
        "--rest",
        type=float,
        default=0.0,
        help="seconds of pause between measurements, for other users of the machine",
    )
    parser.add_argument("--output", type=Path, metavar="CSV")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
