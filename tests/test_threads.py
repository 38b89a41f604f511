"""The number of torch's threads, and the locked files by which runs on one machine count each
other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from training import threads
from training.threads import Membership, choose_threads, runs_folder, share_of_cores


@pytest.mark.parametrize(
    ("cores", "shared", "runs", "busy", "expected"),
    [
        (2, 2, 1, 0.0, 2),  # alone
        (2, 2, 2, 0.0, 1),  # two runs on two cores
        (2, 2, 5, 0.0, 1),  # more runs than cores
        (16, 16, 3, 16.0, 5),  # the load is the other runs' own
        (16, 16, 1, 3.6, 12),  # other processes
        (16, 16, 1, 0.3, 16),  # a desktop at rest
        (2, 2, 1, 7.9, 1),
        (4, 64, 1, 0.0, 4),  # a container with a quota of 4 of 64 cores
        (4, 64, 32, 64.0, 2),
        (4, 64, None, 64.0, 4),
        (64, 64, None, 0.0, 1),  # a container without a quota that cannot see the others
    ],
)
def test_all_runs_together_use_no_more_threads_than_there_are_cores(
    cores: int, shared: int, runs: int | None, busy: float, expected: int
) -> None:
    assert share_of_cores(cores, shared, runs, busy) == expected


RUN = """
import sys
from pathlib import Path
from training.threads import Membership
print(Membership().join(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def start_run(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that joins the runs in `folder` and waits; the number of runs that it counts."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_runs_count_each_other_until_they_end_however_they_end(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    me = Membership()
    assert me.join(folder) == 1
    first, counted = start_run(folder)
    try:
        assert counted == 2
        assert me.join(folder) == 2
        assert me.join(folder) == 2  # a run joins once
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert me.join(folder) == 1
    assert len(list(folder.iterdir())) == 1  # what the killed process left is gone


def test_files_of_other_users_count_and_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "run-ended").touch()
    (tmp_path / "new-unlocked-yet").touch()
    assert Membership().join(tmp_path) == 1
    assert (tmp_path / "new-unlocked-yet").exists()
    assert not (tmp_path / "run-ended").exists()
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777


def test_a_folder_that_cannot_be_used_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Membership().join(tmp_path / "file" / "folder") == 1


@pytest.fixture
def busy_core() -> Iterator[None]:
    """Another process that computes all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    process.kill()
    process.wait()


@pytest.mark.usefixtures("busy_core")
def test_the_load_of_others_leaves_out_this_process() -> None:
    load = threads.Load()
    start, own_start = time.monotonic(), time.process_time()
    while (seconds := time.monotonic() - start) < 1.0:
        sum(range(1000))
    own = (time.process_time() - own_start) / seconds
    assert 0.2 < load.of_others() <= len(threads._own_cpus()) - own + 0.1


def test_a_container_looks_into_the_agents_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENT_FOLDER", raising=False)
    monkeypatch.delenv("DET_TRIAL_ID", raising=False)
    local = runs_folder()
    assert local is not None
    assert local.name == "active_learning_running"
    monkeypatch.setenv("DET_TRIAL_ID", "1")
    assert runs_folder() is None
    monkeypatch.setenv("AGENT_FOLDER", "/agent")
    assert runs_folder() == Path("/agent/running")


def test_the_users_own_number_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads, "runs_folder", lambda: tmp_path)
    monkeypatch.setattr(threads, "_membership", threads.Membership())
    assert os.environ["OMP_NUM_THREADS"] == "1"  # conftest.py
    assert choose_threads() == 1 == torch.get_num_threads()
    assert len(list(tmp_path.glob("run-*"))) == 1  # others count this run all the same


EIGHT_CORES = """
import sys, torch
from pathlib import Path
from training import threads
threads.runs_folder = lambda: Path(sys.argv[1])
threads.cpu_count = lambda: 8
threads._default_threads = 8
for line in sys.stdin:
    function, busy = line.split()
    threads._load.of_others = lambda: float(busy)
    getattr(threads, function)()
    print(torch.get_num_threads(), flush=True)
"""


def test_a_run_gives_way_to_another_and_takes_its_cores_back(tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(
        [sys.executable, "-c", EIGHT_CORES, str(tmp_path)],
        cwd=ROOT,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def threads_after(function: str, busy: float = 0.0) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{function} {busy}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    try:
        assert threads_after("choose_threads") == 8
        # Within a round, only other runs count; between rounds, all load does.
        assert threads_after("adapt_to_other_runs", busy=3.0) == 8
        other, _ = start_run(tmp_path)
        assert threads_after("adapt_to_other_runs") == 4
        other.kill()
        other.wait()
        assert threads_after("adapt_to_other_runs") == 8
        assert threads_after("choose_threads", busy=3.0) == 5
    finally:
        process.kill()
        process.wait()
