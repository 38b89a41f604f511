"""Load test of the prediction service, with and without batching, compared with the bare model.

    python -m benchmarks.serving EXPORTED [EXPORTED ...] [--output results.csv]
    python -m benchmarks.serving EXPORTED --soak 3600

The test starts a service for each setting. Clients in this process send PNG images of random pixels
over open connections; each sends its next request when the last one is answered. The bare model is
ONNX Runtime in one thread without HTTP. It predicts one image at a time, then batches of as many
images as the service accepts. Overhead is the median time of the service with one client minus the
median time of the bare model. All rows of a folder come from one run, so they can be compared.
`cpu_ms` is the processor time per image of the service and its decoders together; other work on the
machine hardly changes it.

--soak sends requests from 8 clients for the given number of seconds: single images, forms, arrays
and files that the service refuses. It prints the memory of the service and its children as it
runs, and fails if their sum grows by more than 5 % after the first tenth of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from errors import UserError, exit_status
from serving.engine import OnnxEngine
from serving.exported import ExportedModel, read_exported
from serving.service import MAX_BATCH

CLIENTS = (1, 8, 32)
SECONDS = 6.0
WARM_UP_SECONDS = 1.0
IMAGES = 64  # different images, sent in turn
GROWTH = 0.05
SOAK_CLIENTS = 8
CLIENT_STEP = 7  # distance between the first requests of two clients in the list
RETRY_SECONDS = 0.05  # less than the service asks for, to keep its queue full


@dataclass(frozen=True)
class Row:
    """One row of the results. Times are in milliseconds; `cpu_ms` is per image."""

    model: str
    setting: str
    clients: int
    images_per_second: float
    p50: float
    p95: float
    p99: float
    cpu_ms: float


def measure(folder: Path, seconds: float, rest: float) -> list[Row]:
    """Measure the bare model, then the service without and with batching for each `CLIENTS`."""
    model = read_exported(folder)
    name = f"{model.architecture}, {model.image_size} px"
    pixels = random_pixels(model)
    rows = []
    for batch in (1, MAX_BATCH):
        rows.append(bare(name, folder, pixels, batch, seconds))
        time.sleep(rest)
    requests = [http_request(png(image)) for image in pixels]
    for setting, max_batch in (("service, no batching", 1), ("service", MAX_BATCH)):
        with running_service(folder, "--max-batch", str(max_batch)) as (process, port):
            for clients in CLIENTS:
                before = cpu_seconds(process)
                times, total = asyncio.run(load(port, requests, clients, seconds))
                used = cpu_seconds(process) - before
                rows.append(summary(name, setting, clients, times, seconds, used / total))
                time.sleep(rest)
    return rows


def bare(name: str, folder: Path, pixels: np.ndarray, batch: int, seconds: float) -> Row:
    """Measure ONNX Runtime alone, in one thread, with `batch` images at a time."""
    engine = OnnxEngine(folder)
    images = np.stack([pixels[index % len(pixels)] for index in range(batch)])
    times = []
    calls, cpu = 0, time.process_time()
    end = time.perf_counter() + seconds + WARM_UP_SECONDS
    while (start := time.perf_counter()) < end:
        engine.run(images)
        calls += 1
        now = time.perf_counter()
        if now > end - seconds:
            times.append(now - start)
    used = (time.process_time() - cpu) / (calls * batch)
    row = summary(name, f"bare model, batches of {batch}", 0, times, seconds, used)
    return Row(**{**asdict(row), "images_per_second": round(batch * len(times) / sum(times), 1)})


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a service and its children so far."""
    family = [process, *process.children()]
    return sum(sum(member.cpu_times()[:2]) for member in family)


def summary(
    name: str, setting: str, clients: int, times: Sequence[float], seconds: float, cpu: float
) -> Row:
    """The row for request times in seconds; `cpu` is the processor seconds per image."""
    if not times:
        raise UserError(
            f"--seconds {seconds}: the service answered no request in this time; give more"
        )
    milliseconds = 1000 * np.array(times)
    per_second = round(len(times) / seconds, 1)
    p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99)).round(2).tolist()
    return Row(name, setting, clients, per_second, p50, p95, p99, round(1000 * cpu, 3))


# --- clients -----------------------------------------------------------------------------------


def random_pixels(model: ExportedModel) -> np.ndarray:
    """`IMAGES` images uint8 [n, C, S, S]."""
    shape = (IMAGES, model.channels, model.image_size, model.image_size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    """An image uint8 [C, S, S] as PNG."""
    picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def http_request(body: bytes, media_type: str = "image/png") -> bytes:
    """The bytes of a complete request to /predict."""
    head = (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def load(
    port: int, requests: Sequence[bytes], clients: int, seconds: float
) -> tuple[list[float], int]:
    """Send requests from `clients` connections at the same time.

    Returns the seconds of each request, without the warm-up, and the number of all requests.
    """
    times: list[float] = []
    total = 0
    begin = time.perf_counter() + WARM_UP_SECONDS
    end = begin + seconds

    async def client(number: int) -> None:
        nonlocal total
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        position = number
        while (start := time.perf_counter()) < end:
            status = await ask(reader, writer, requests[position % len(requests)])
            if status != 200:
                raise UserError(f"the service answered {status}; see its log")
            now = time.perf_counter()
            total += 1
            if begin <= now < end:
                times.append(now - start)
            position += 1
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return times, total


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send a request and read the whole answer; returns its status."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    await reader.readexactly(int(length[1]))
    return int(head[9:12])


@contextlib.contextmanager
def running_service(folder: Path, *options: str) -> Iterator[tuple[psutil.Process, int]]:
    """Start a service of an exported folder; yields its process and port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.serve", str(folder), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port_match = re.search(r":(\d+)/", process.stdout.readline())
        if port_match is None:
            raise UserError(
                f"{folder}: the service does not start; run tools.serve on it to see why"
            )
        yield psutil.Process(process.pid), int(port_match[1])
    finally:
        process.terminate()
        process.wait()


# --- soak --------------------------------------------------------------------------------------


def soak(folder: Path, seconds: float) -> None:
    """Send mixed requests for `seconds`.

    Raises:
        UserError: the memory of the service grows.
    """
    model = read_exported(folder)
    with running_service(folder) as (process, port):
        memory = asyncio.run(_soak(process, port, soak_requests(model), seconds))
    check_growth(memory)


def check_growth(memory: Sequence[float]) -> None:
    """Raise UserError if memory, in MiB over time, grows after the first tenth."""
    settled = memory[max(1, len(memory) // 10)]
    growth = max(memory[-3:]) / settled - 1
    print(f"memory {settled:.1f} MiB after the first tenth, {memory[-1]:.1f} at the end")
    if growth > GROWTH:
        raise UserError(f"memory: grows by {growth:.1%}, more than {GROWTH:.0%}")


def soak_requests(model: ExportedModel) -> list[bytes]:
    """Requests of every kind, most of them single images; the service refuses some."""
    pixels = random_pixels(model)
    images = [png(image) for image in pixels]
    boundary = "limit-of-the-parts"
    part = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{{}}.png"\r\n\r\n'
    )
    form = b"".join(part.format(n).encode() + image + b"\r\n" for n, image in enumerate(images[:8]))
    array = BytesIO()
    np.save(array, pixels.transpose(0, 2, 3, 1))
    requests = [http_request(image) for image in images]
    others = [
        http_request(
            form + f"--{boundary}--".encode(), f"multipart/form-data; boundary={boundary}"
        ),
        http_request(array.getvalue(), "application/x-npy"),
        http_request(images[0][:-20]),
        http_request(b"no image at all", "image/jpeg"),
    ]
    for client, request in enumerate(others):
        requests.insert(client * CLIENT_STEP, request)  # near the start of a client's requests
    return requests


async def _soak(
    process: psutil.Process, port: int, requests: Sequence[bytes], seconds: float
) -> list[float]:
    """Send requests and sample the memory of the service and its children, in MiB, 100 times."""
    end = time.monotonic() + seconds
    statuses: dict[int, int] = {}

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        position = number * CLIENT_STEP
        while time.monotonic() < end:
            status = await ask(reader, writer, requests[position % len(requests)])
            statuses[status] = statuses.get(status, 0) + 1
            position += 1
        writer.close()

    async def watch() -> list[float]:
        memory = []
        while time.monotonic() < end:
            family = [process, *process.children(recursive=True)]
            memory.append(sum(member.memory_info().rss for member in family) / 2**20)
            print(f"{sum(statuses.values())} requests, {memory[-1]:.1f} MiB", flush=True)
            await asyncio.sleep(seconds / 100)
        return memory

    clients = asyncio.gather(*(client(number) for number in range(SOAK_CLIENTS)))
    memory, _ = await asyncio.gather(watch(), clients)
    print(f"answers by status: {dict(sorted(statuses.items()))}")
    return memory


# --- command line ------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    """Run the soak, or measure all folders and print the rows."""
    if arguments.soak:
        for folder in arguments.folders:
            soak(folder, arguments.soak)
        return
    rows = [
        row
        for folder in arguments.folders
        for row in measure(folder, arguments.seconds, arguments.rest)
    ]
    for row in rows:
        print(
            "  ".join(
                f"{value!s:>26}" if i < 2 else f"{value!s:>9}"
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
    """The two main figures of one model, as text."""
    single, batched = rows[0], rows[1]
    alone = next(row for row in rows if row.setting == "service" and row.clients == 1)
    busy = next(row for row in rows if row.setting == "service" and row.clients == CLIENTS[-1])
    limit = max(single.images_per_second, batched.images_per_second)
    return (
        f"overhead {alone.p50 - single.p50:.2f} ms at the median; at {busy.clients} clients "
        f"{busy.images_per_second / limit:.0%} of the bare model's {limit:.0f} images/s, "
        f"{busy.cpu_ms - min(single.cpu_ms, batched.cpu_ms):.2f} ms more processor time per image"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="EXPORTED")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="duration of each measurement"
    )
    parser.add_argument(
        "--rest",
        type=float,
        default=0.0,
        help="seconds of pause between measurements, for other users of the machine",
    )
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="test the memory instead")
    parser.add_argument("--output", type=Path, metavar="CSV")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
