"""`det experiment create`, the real command, against a server: what it sends to a master."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

TOKEN = "the-user's-token"
# What `det` needs to read in the answer to a new experiment.
CREATED = {
    "config": {},
    "experiment": {
        "id": 7,
        "name": "experiment",
        "archived": False,
        "config": {},
        "jobId": "job",
        "labels": [],
        "numTrials": 0,
        "originalConfig": "",
        "projectId": 1,
        "projectOwnerId": 1,
        "searcherType": "adaptive_asha",
        "startTime": "2026-01-01T00:00:00Z",
        "state": "STATE_QUEUED",
        "username": "determined",
    },
}


class Master(ThreadingHTTPServer):
    """Remembers the experiments that it is asked to create, and what it did not understand."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: list[dict[str, Any]] = []
        self.refused: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Master

    def answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = 200
        body: dict[str, Any] = {}
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if (self.command, self.path) == ("GET", "/info"):
            body = {"version": "0.38.1", "cluster_id": "c", "master_id": "m"}
        elif known and (self.command, self.path) == ("GET", "/api/v1/me"):
            body = {"user": {"username": "determined", "admin": False, "active": True}}
        elif known and (self.command, self.path) == ("POST", "/api/v1/experiments"):
            self.server.created.append(json.loads(content))
            body = CREATED
        else:
            status = 404
            self.server.refused.append(f"{self.command} {self.path} {dict(self.headers)}")
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def master() -> Iterator[Master]:
    with Master() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of this project, and what working in it leaves beside them."""
    folder = tmp_path / "checkout"
    left_out = shutil.ignore_patterns(
        ".venv", ".git", "runs", "data", "__pycache__", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, folder, ignore=left_out)
    for name in (
        "data/pathmnist.npz",
        "runs/quick-1/checkpoints/id/state_dict.pth",
        ".git/config",
        ".venv/bin/python",
        "__pycache__/data.cpython-311.pyc",
        "tools/__pycache__/evaluate.cpython-311.pyc",
        ".hypothesis/examples",
        ".mypy_cache/3.10",
        ".pytest_cache/README.md",
        ".ruff_cache/content",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not for the cluster")
    return folder


def test_config_and_the_right_files_are_sent(master: Master, checkout: Path) -> None:
    home = checkout.parent
    done = subprocess.run(
        [sys.executable, "-m", "determined.cli", "experiment", "create", "config.yaml", "."],
        cwd=checkout,
        env={
            **os.environ,
            "DET_MASTER": f"http://127.0.0.1:{master.server_port}",
            "DET_USER": "determined",
            "DET_USER_TOKEN": TOKEN,
            "HOME": str(home),
            "DET_DEBUG_CONFIG_PATH": str(home / "determined"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.stdout, done.stderr, master.refused)
    assert master.refused == []
    assert "Created experiment 7" in done.stdout
    (sent,) = master.created
    assert sent["activate"] is True
    # The text as it stands, comments and all, is what the WebUI will show.
    assert sent["config"] == (ROOT / "config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(sent["config"])["searcher"]["time_metric"] == "epochs"
    files = {
        item["path"]: base64.b64decode(item.get("content") or "")
        for item in sent["modelDefinition"]
        if not item["path"].endswith("/") and item["type"] != ord("5")
    }
    # What a trial has no use for: tests, measurements, documents, data, and the tools' web pages.
    left_out = {
        *(".ci", "benchmarks", "data", "docs", "images", "runs", "tests"),
        *("segmentation", "serving", "web"),
    }
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    wanted = {
        path: (ROOT / path).read_bytes()
        for path in tracked
        if path.split("/")[0] not in left_out
        and not path.startswith("tools/label/")
        and path != ".detignore"
    }
    assert sorted(files) == sorted(wanted)
    assert files == wanted
    assert sum(map(len, files.values())) < 1_000_000  # the limit is 95 MB
