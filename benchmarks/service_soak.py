"""Soak test of the prediction service: requests of every kind for a long time, memory watched.

    python -m benchmarks.service_soak EXPORTED [--seconds 3600] [--rate 100]

Eight clients send single images, forms, arrays, and files that the service refuses: truncated,
of another kind, two formats in one, an archive, an image of 13,000 x 13,000 pixels, and arrays that
claim more than they hold. They ask for activation maps, too, and some end the connection in the
middle of a request. --rate bounds the requests a second of all clients together; 0: as many as
the service answers. The test prints the memory of the service and its children as it runs, and
fails if their sum grows by more than 5 % after the first tenth of the time.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np

from benchmarks.service_clients import Client, http_request, png, random_pixels, running_service
from errors import UserError, exit_status
from serving.exported import ExportedModel, read_exported

SECONDS, RATE = 3600.0, 100.0
CLIENTS = 8
SAMPLES = 100  # of the memory
GROWTH = 0.05
BOUNDARY = "limit-of-the-parts"
HUGE = 13_000  # pixels a side
BROKEN_EVERY = 500  # a client ends its connection in the middle of every such request


@dataclass
class Counts:
    """What all clients have done so far."""

    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0


def soak(folder: Path, seconds: float, rate: float) -> None:
    """Send mixed requests for `seconds`, at most `rate` a second.

    Raises:
        UserError: the memory of the service grows.
    """
    requests = soak_requests(read_exported(folder))
    counts, memory = Counts(), []
    with running_service(folder) as (process, port):
        end = time.monotonic() + seconds
        pause = CLIENTS / rate if rate else 0.0
        errors: list[UserError] = []

        def work(number: int) -> None:
            try:
                client(port, requests, number, end, pause, counts)
            except UserError as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end and not errors:
            family = [process, *process.children(recursive=True)]
            memory.append(sum(member.memory_info().rss for member in family) / 2**20)
            cpu = sum(sum(member.cpu_times()[:2]) for member in family)
            answered = sum(counts.statuses.values())
            print(f"{answered} answers, {memory[-1]:.1f} MiB, {cpu:.0f} CPU s", flush=True)
            time.sleep(seconds / SAMPLES)
        for thread in threads:
            thread.join()
    print(
        f"answers by status: {dict(sorted(counts.statuses.items()))}; "
        f"{counts.broken} connections ended by the clients"
    )
    if errors:
        raise errors[0]
    check_growth(memory)


def client(
    port: int, requests: Sequence[bytes], number: int, end: float, pause: float, counts: Counts
) -> None:
    """Send requests in turn until `end`, at most one in `pause` seconds."""
    first = number * len(requests) // CLIENTS
    one = Client(port, requests, first)
    due = time.monotonic()
    for turn in range(1, sys.maxsize):
        due = max(due + pause, time.monotonic())
        if due >= end:
            break
        time.sleep(max(0.0, due - time.monotonic()))
        if turn % BROKEN_EVERY == 0:
            one.socket.send(requests[0][:-50])
            one.socket.close()
            counts.broken += 1
            one = Client(port, requests, first + turn)
            continue
        one.send()
        while not (status := one.receive()):
            pass
        counts.statuses[status] += 1
    one.socket.close()


def check_growth(memory: Sequence[float]) -> None:
    """Raise UserError if memory, in MiB over time, grows after the first tenth."""
    settled = memory[max(1, len(memory) // 10)]
    growth = max(memory[-3:]) / settled - 1
    print(
        f"memory {settled:.1f} MiB after the first tenth, {memory[-1]:.1f} at the end, "
        f"{max(memory):.1f} at most"
    )
    if growth > GROWTH:
        raise UserError(f"memory: grows by {growth:.1%}, more than {GROWTH:.0%}")


def soak_requests(model: ExportedModel) -> list[bytes]:
    """Requests of every kind, most of them single images; the service refuses some."""
    pixels = random_pixels(model)
    images = [png(image) for image in pixels]
    array, archive = BytesIO(), BytesIO()
    np.save(array, pixels.transpose(0, 2, 3, 1))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("image.png", images[0])
    claimed = BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 96, 96)}
    np.lib.format.write_array_header_1_0(claimed, header)
    form = http_request(_form(images[:8]), f"multipart/form-data; boundary={BOUNDARY}")
    place = f"/activation?class={model.classes[0]}".encode()
    others = [
        form,
        http_request(array.getvalue(), "application/x-npy"),
        http_request(images[0]).replace(b"/predict", place, 1),
        http_request(images[0][:-20]),
        http_request(b"no image at all", "image/jpeg"),
        http_request(images[0] + archive.getvalue()),
        http_request(archive.getvalue(), "application/x-image"),
        http_request(_huge_png()),
        http_request(claimed.getvalue(), "application/x-npy"),
    ]
    requests = [http_request(image) for image in images]
    for position, request in enumerate(others):
        requests.insert(position * len(images) // len(others), request)
    return requests


def _form(images: Sequence[bytes]) -> bytes:
    part = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{{}}.png"\r\n\r\n'
    )
    parts = [part.format(n).encode() + image + b"\r\n" for n, image in enumerate(images)]
    return b"".join(parts) + f"--{BOUNDARY}--".encode()


def _huge_png() -> bytes:
    """`HUGE` x `HUGE` black pixels in a few hundred kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    size = HUGE.to_bytes(4, "big")
    rows = zlib.compress(bytes((HUGE + 1) * HUGE), 1)
    parts = (
        chunk(b"IHDR", size + size + b"\x08\0\0\0\0"),
        chunk(b"IDAT", rows),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="EXPORTED")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument(
        "--rate", type=float, default=RATE, help="requests a second; 0: as many as are answered"
    )
    arguments = parser.parse_args(argv)
    return exit_status(lambda: soak(arguments.folder, arguments.seconds, arguments.rate))


if __name__ == "__main__":
    sys.exit(main())
