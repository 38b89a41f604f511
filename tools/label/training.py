"""Runs the next round in a process of its own, so that training never holds up a save."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from errors import UserError

ROOT = Path(__file__).resolve().parents[2]
IDLE, RUNNING, FINISHED, FAILED = "idle", "running", "finished", "failed"
LOG_FILE = "training.log"
TAIL_BYTES, TAIL_LINES = 4000, 6
DONE = (0, 3)  # exit statuses: the run is over, or it asks for the next labels
NICENESS = 5  # the page comes first


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
            if self._process is not None and self._process.poll() is None:
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
        """`state`, and the last lines of the output as `text`."""
        with self._lock:
            process = self._process
        if process is None:
            return {"state": IDLE, "text": ""}
        code = process.poll()
        state = RUNNING if code is None else FINISHED if code in DONE else FAILED
        return {"state": state, "text": self._tail()}

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
