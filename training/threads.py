"""How many threads torch uses on the CPU, so that runs on one machine do not slow each other down.

Two runs with two threads each on two cores take four times as long as one run, because torch's
threads wait for each other while they spin (`python -m benchmarks.side_by_side` measures it). So
all runs together never use more threads than the machine has free cores.

- The cores are those that this process may use: its affinity mask and its control group's quota.
- Every run holds a lock on a file in a folder that all runs on the machine share, and the runs
  share the cores equally. The system drops the lock when a process ends, however it ends.
- A run that is alone leaves the cores to other processes that they keep busy.
- A container on a cluster sees the other containers only if the agent's folder is mounted
  (`bind_mounts` in config.yaml). Without that folder and without a quota it uses one thread.

`OMP_NUM_THREADS` overrides all this. Set it to compare weights bit by bit: sums of floats depend on
the number of threads in their last digits.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
import time
from pathlib import Path

import psutil
import torch
from joblib import cpu_count

MEASURED_SECONDS = 0.2  # the shortest time over which other processes' load is measured

logger = logging.getLogger(__name__)


def choose_threads() -> int:
    """Set torch's number of threads for the CPU and return it.

    Call it when a run starts and again in every round, because other runs come and go. A call
    takes about a millisecond, the first one up to MEASURED_SECONDS.
    """
    folder = runs_folder()
    runs = _membership.join(folder) if folder else None
    busy = _load.of_others()
    if "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available():
        return torch.get_num_threads()
    # torch's default leaves out hyperthreads, which do not help it.
    cores = min(cpu_count(), _default_threads)
    # Containers have a quota each; runs outside of containers share theirs.
    shared = min(len(_own_cpus()), _default_threads) if _in_container() else cores
    threads = share_of_cores(cores, shared, runs, busy)
    if threads != torch.get_num_threads():
        logger.info(
            "torch uses %d of %d cores (runs on this machine: %s; other processes use %.1f cores)",
            *(threads, cores, runs or "unknown", busy),
        )
        torch.set_num_threads(threads)
    return threads


def adapt_to_other_runs() -> None:
    """Choose again if a run on this machine has started or ended since the last choice.

    Call it within rounds, which may be long: until it is called, a new run beside this one finds
    all cores in use. A call takes about a millisecond. Unlike `choose_threads`, it does not follow
    the load of other processes, so that few rounds change their number of threads.
    """
    folder, before = runs_folder(), _membership.runs
    if folder and _membership.join(folder) != before:
        choose_threads()


def share_of_cores(cores: int, shared: int, runs: int | None, busy: float) -> int:
    """The number of threads for one of several runs.

    Args:
        cores: how many this run may use.
        shared: how many all runs together may use, at least `cores`.
        runs: how many runs share them, this one included; None if that cannot be known.
        busy: how many cores all other processes use on average.
    """
    if runs is None:
        return cores if cores < shared else 1  # with a quota, the system shares out the cores
    if runs > 1:  # the other runs are in `busy`, and each of them gets the same share
        return max(1, min(cores, shared // runs))
    return max(1, min(cores, shared - round(busy)))


def _in_container() -> bool:
    """Whether this is a trial in a container of a cluster."""
    return "DET_TRIAL_ID" in os.environ


def runs_folder() -> Path | None:
    """The folder that all runs on this machine share, or None if there is none."""
    if agent_folder := os.environ.get("AGENT_FOLDER"):  # startup-hook.sh sets it
        return Path(agent_folder, "running")
    if _in_container():  # its /tmp is its own
        return None
    return Path(tempfile.gettempdir(), "active_learning_running")


class Membership:
    """This process's locked file among those of the other runs.

    Attributes:
        runs: how many there are, as last counted.
    """

    def __init__(self) -> None:
        self.runs = 0
        self._process: int | None = None
        self._file = -1  # the lock lasts as long as this descriptor is open

    def join(self, folder: Path) -> int:
        """Lock a file in `folder`, once per process, and count the runs there, this one included.

        Files of processes that have ended are removed. A folder that cannot be used counts as one
        run.
        """
        try:
            if self._process != os.getpid():
                self._file = _lock_new_file(folder)
                self._process = os.getpid()
            self.runs = max(1, sum(_is_locked(path) for path in folder.glob("run-*")))
        except OSError as error:
            logger.debug("%s: cannot be used (%s)", folder, error)
            self.runs = 1
        return self.runs


def _lock_new_file(folder: Path) -> int:
    """The descriptor of a new file in `folder` that this process alone has locked."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # another user has made it
        folder.chmod(0o1777)
    descriptor, name = tempfile.mkstemp(prefix="new-", dir=folder)
    os.fchmod(descriptor, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Others see the file only under its final name, and so never before it is locked.
    path = Path(name)
    path.rename(path.with_name(path.name.replace("new-", "run-", 1)))
    return descriptor


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock on `path`. The file is removed if none does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        with contextlib.suppress(OSError):
            path.unlink()
        return False
    finally:
        os.close(descriptor)


class Load:
    """The cores that other processes use, measured from one call to the next."""

    def __init__(self) -> None:
        self._since = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds: the clock's, those that all processes computed, and those of this process."""
        own = _own_cpus()
        idle = sum(
            times.idle + getattr(times, "iowait", 0.0)
            for cpu, times in enumerate(psutil.cpu_times(percpu=True))
            if cpu in own
        )
        clock = time.monotonic()
        return clock, clock * len(own) - idle, time.process_time()

    def of_others(self) -> float:
        """Cores that other processes used on average since the last call."""
        if (waited := time.monotonic() - self._since[0]) < MEASURED_SECONDS:
            time.sleep(MEASURED_SECONDS - waited)
        before, self._since = self._since, self._now()
        clock, computed, ours = (now - then for now, then in zip(self._since, before, strict=True))
        return max(0.0, (computed - ours) / clock)


def _own_cpus() -> set[int]:
    """The numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


_default_threads = torch.get_num_threads()
_membership = Membership()
_load = Load()
