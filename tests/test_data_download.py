"""Downloading, against a real HTTP server on this machine: whole, damaged, absent, contended."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from data import Splits, load_splits
from data_sources import download
from data_sources.medmnist_table import medmnist_sets
from errors import DownloadError

FLAG = "breastmnist"
ROOT = Path(__file__).parents[1]


class Server(ThreadingHTTPServer):
    """Serves `content` at every path but /missing; `promised` is the length it announces."""

    content = b""
    promised = 0
    delay = 0.0
    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        time.sleep(self.server.delay)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(self.server.promised))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *args: object) -> None:
        """Keep the test's output free of the server's log."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with a good file, which medmnist's table points to."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((4, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(4)[:, None] % 2
    np.savez(tmp_path / "served.npz", **arrays)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.content = (tmp_path / "served.npz").read_bytes()
        running.promised = len(running.content)
        monkeypatch.setitem(medmnist_sets()[FLAG], "url", f"{running.url}/file.npz?download=1")
        monkeypatch.setitem(medmnist_sets()[FLAG], "MD5", hashlib.md5(running.content).hexdigest())
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def load(data_dir: Path) -> Splits:
    return load_splits(
        FLAG, data_dir, image_size=28, split_seed=0, validation_fraction=0.1, test_fraction=0.1
    )


def failure(data_dir: Path) -> str:
    """The message of a load that must fail, leaving nothing that could be taken for the file."""
    began = time.monotonic()
    with pytest.raises(DownloadError) as error:
        load(data_dir)
    assert time.monotonic() - began < 5
    left = {path.name for path in data_dir.iterdir()} if data_dir.is_dir() else set()
    assert left <= {f".{FLAG}.npz.lock"}
    message = str(error.value)
    assert "\n" not in message
    assert (
        f"download {medmnist_sets()[FLAG]['url']} by hand and save it as {data_dir / FLAG}.npz"
        in message
    )
    return message


def test_a_missing_file_is_fetched_once(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir = tmp_path / "new" / "data"
    data_dir.mkdir(parents=True)
    (data_dir / f".{FLAG}.npz.part").write_bytes(server.content[:99])  # from a killed process
    assert len(load(data_dir).train) == 4
    assert len(load(data_dir).train) == 4
    assert server.requests == 1
    assert (data_dir / f"{FLAG}.npz").read_bytes() == server.content
    assert not (data_dir / f".{FLAG}.npz.part").exists()
    assert capfd.readouterr().err == ""  # no bar, as this is no terminal


def test_a_file_that_is_there_is_not_held_to_the_checksum(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{FLAG}.npz").write_bytes(server.content)
    medmnist_sets()[FLAG]["MD5"] = "0" * 32
    load(tmp_path)
    assert server.requests == 0


def test_wrong_checksum(server: Server, tmp_path: Path) -> None:
    server.content = server.content[:-1] + b"?"
    assert f"expected {medmnist_sets()[FLAG]['MD5']}" in failure(tmp_path / "data")


def test_connection_lost_halfway(server: Server, tmp_path: Path) -> None:
    server.promised += 1000
    assert f"after {len(server.content)} of {server.promised} bytes" in failure(tmp_path / "data")


def test_file_gone_from_the_server(server: Server, tmp_path: Path) -> None:
    medmnist_sets()[FLAG]["url"] = f"{server.url}/missing"
    assert "HTTP Error 404" in failure(tmp_path / "data")


def test_connection_refused(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    medmnist_sets()[FLAG]["url"] = f"http://127.0.0.1:{port}/file.npz"
    assert "Connection refused" in failure(tmp_path / "data")


def test_silent_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        medmnist_sets()[FLAG]["url"] = f"http://127.0.0.1:{silent.getsockname()[1]}/file.npz"
        assert "timed out" in failure(tmp_path / "data")


def test_lock_held_too_long(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LOCK_SECONDS", 0.1)
    with FileLock(tmp_path / f".{FLAG}.npz.lock"), pytest.raises(DownloadError) as error:
        load(tmp_path)
    assert "held by another process" in str(error.value)


def test_processes_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    server.delay = 0.5
    target = tmp_path / "data" / "file.npz"
    code = (
        "import sys; from pathlib import Path; from data_sources.download import download_once; "
        "download_once(sys.argv[1], sys.argv[2], Path(sys.argv[3]))"
    )
    command = [
        sys.executable,
        "-c",
        code,
        medmnist_sets()[FLAG]["url"],
        medmnist_sets()[FLAG]["MD5"],
        str(target),
    ]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(timeout=30) for process in processes] == [0, 0, 0]
    assert server.requests == 1
    assert target.read_bytes() == server.content
