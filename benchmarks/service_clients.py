"""A running service and clients that send it requests; for the load test, the soak and tests."""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from errors import UserError
from serving.exported import ExportedModel

IMAGES = 64  # different images, sent in turn
RECEIVED_BYTES = 2**16
HEAD_END = b"\r\n\r\n"
LENGTH = re.compile(rb"content-length: (\d+)")


def random_pixels(model: ExportedModel) -> np.ndarray:
    """`IMAGES` images of random pixels, uint8 [n, C, S, S]."""
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


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[tuple[psutil.Process, int]]:
    """Start `python -m ARGUMENTS --port 0`, one of the servers here; yields its process and port.

    Raises:
        UserError: it does not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port_match = re.search(r":(\d+)/", process.stdout.readline())
        if port_match is None:
            command = " ".join(arguments)
            raise UserError(f"{command}: does not start; run python -m {command} to see why")
        yield psutil.Process(process.pid), int(port_match[1])
    finally:
        process.terminate()
        process.wait()


def running_service(
    folder: Path, *options: str
) -> contextlib.AbstractContextManager[tuple[psutil.Process, int]]:
    """Start a service of an exported folder, as `running` does."""
    return running("tools.serve", str(folder), *options)


class Client:
    """One open connection that sends a request after the other.

    Args:
        requests: complete requests, sent in turn.
        first: the position of the first one that this client sends.
    """

    def __init__(self, port: int, requests: Sequence[bytes], first: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = requests
        self._position = first
        self._received = b""
        self.sent_at = 0.0

    def send(self) -> None:
        """Send the next request."""
        self.sent_at = time.perf_counter()
        self.socket.sendall(self._requests[self._position % len(self._requests)])
        self._position += 1
        self._received = b""

    def receive(self) -> int:
        """Read what has come; returns the status once the answer is complete, and 0 before.

        Raises:
            UserError: the service ended the connection.
        """
        part = self.socket.recv(RECEIVED_BYTES)
        if not part:
            raise UserError("the service ended a connection; see its log")
        self._received += part
        end = self._received.find(HEAD_END)
        if end < 0:
            return 0
        length = LENGTH.search(self._received, 0, end)
        assert length is not None
        if len(self._received) < end + len(HEAD_END) + int(length[1]):
            return 0
        return int(self._received[9:12])


def load(
    port: int,
    requests: Sequence[bytes],
    clients: int,
    seconds: float,
    warm_up: float,
    pause: float = 0.0,
) -> tuple[list[float], int]:
    """Send requests from `clients` connections at the same time, each when its last is answered.

    One thread serves all connections, which costs a tenth of what the service needs. So a `pause`
    before each request, in seconds, is meant for a single client.

    Returns the seconds of each request after the warm-up, at least one, and the number of all
    requests.
    """
    times: list[float] = []
    total = 0
    begin = time.perf_counter() + warm_up
    end = begin + seconds
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        waiting = 0
        for number in range(clients):
            client = Client(port, requests, number)
            stack.enter_context(client.socket)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send()
            waiting += 1
        while waiting:  # answers that are under way are waited for, so that none is left behind
            for key, _ in selector.select():
                client = key.data
                status = client.receive()
                if not status:
                    continue
                if status != 200:
                    raise UserError(f"the service answered {status}; see its log")
                now = time.perf_counter()
                total += 1
                if now >= begin and (now < end or not times):
                    times.append(now - client.sent_at)
                if now < end:
                    if pause:  # sleeping for no time takes longer than the rest of this loop
                        time.sleep(pause)
                    client.send()
                else:
                    waiting -= 1
    return times, total
