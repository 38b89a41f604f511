"""Runs the next round in a process of its own, so that training never holds up a save."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Protocol

from errors import AWAITING_LABELS, OK, UserError
from labelling.batch import batch_folders
from labelling.outcome import is_closed
from run_folder import names

ROOT = Path(__file__).resolve().parents[2]
# No process works on the run; one waits for labels; one trains; ours has ended well, or not.
IDLE, WAITING, RUNNING, FINISHED, FAILED = "idle", "waiting", "running", "finished", "failed"
LOG_FILE = "training.log"
TAIL_BYTES, TAIL_LINES = 4000, 6
NICENESS = 5  # the page comes first


class Rounds(Protocol):
    """Whoever trains the next round."""

    def start(self) -> None:
        """Start it, unless it is running."""

    def status(self) -> dict[str, Any]:
        """`state`, one of the above, `text`, and `done` of `total` steps where they are known."""


class Training:
    """`model_def.py --resume RUN`, started from the page; its output goes to RUN/labelling."""

    def __init__(self, run: Path) -> None:
        self.run = run.resolve()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What the process has written."""
        return self.run / "labelling" / LOG_FILE

    def start(self) -> None:
        """Start the next round, unless it is running.

        Raises:
            UserError: the process cannot be started.
        """
        with self._lock:
            if self._is_ours_running() or _is_locked(self.run):
                return
            command = [sys.executable, str(ROOT / "model_def.py"), "--resume", str(self.run)]
            try:
                with self.log.open("wb") as log:
                    self._process = subprocess.Popen(
                        command,
                        cwd=ROOT,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C in the page's terminal does not end it
                    )
                os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
            except OSError as error:
                raise UserError(
                    f"training: cannot be started ({error.strerror}); see {self.log}"
                ) from error

    def status(self) -> dict[str, Any]:
        """`state`; while a round is in training `done` of `total` steps; the output's end."""
        with self._lock:
            process, ours = self._process, self._is_ours_running()
        if ours or _is_locked(self.run):
            open_batches = [one for one in batch_folders(self.run) if not is_closed(one)]
            if not ours and open_batches:
                return {"state": WAITING, "text": ""}
            text = self._tail() if ours else ""
            return {"state": RUNNING, "text": text, **self._steps()}
        if process is None:
            return {"state": IDLE, "text": ""}
        ended_well = process.poll() in (OK, AWAITING_LABELS)
        return {"state": FINISHED if ended_well else FAILED, "text": self._tail()}

    def _is_ours_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _steps(self) -> dict[str, int]:
        """How many steps of the round in training are done, as metrics.csv had it last."""
        try:
            settings = json.loads((self.run / names.DESCRIPTION).read_text("utf-8"))["settings"]
            per_round = int(settings["batches_per_round"])
            with (self.run / names.METRICS).open(newline="", encoding="utf-8") as file:
                row = list(csv.DictReader(file))[-1]
            if row.get("val_accuracy"):  # the next round has not begun
                return {"done": 0, "total": per_round}
            done = int(row.get("steps") or 0) - int(row["round"]) * per_round
            return {"done": max(0, done), "total": per_round}
        except (OSError, ValueError, LookupError):
            return {}  # no round has begun

    def _tail(self) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        # A progress bar overwrites its line by carriage returns; the last state is what counts.
        lines = [line.rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
        return "\n".join([line for line in lines if line][-TAIL_LINES:])


def _is_locked(run: Path) -> bool:
    """Whether some process works on the run."""
    try:
        with (run / names.LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file: nothing has run here
        return False
    return False
