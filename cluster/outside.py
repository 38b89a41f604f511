"""A paused experiment seen from outside the cluster: its question comes here, the answers go back.

It uses Determined's public client, which knows master and user from `det user login` or from the
environment (DET_MASTER, DET_USER, DET_PASS).
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from determined.experimental import client

from cluster.questions import ASKED_CHECKPOINT, LABELLING, texts
from errors import UserError
from labelling.batch import batch_folders
from labelling.outcome import close_batch, is_closed, read_answers
from labelling.uploads import FOLDER as UPLOADS
from run_folder.names import DESCRIPTION, METRICS

SECONDS_BETWEEN_LOOKS = 5.0


class Experiment:
    """Downloads what an experiment asks into `run`, and sends the answers back.

    Raises:
        UserError: the master cannot be reached or has no such experiment.
    """

    def __init__(self, identifier: int, run: Path) -> None:
        self._identifier = identifier
        self._run = run
        self._question: client.Checkpoint | None = None
        self._lock = threading.Lock()
        self._status: dict[str, Any] = {"state": "idle", "text": ""}
        self._looked = time.monotonic()
        self.fetch()

    def fetch(self) -> None:
        """Download the question that the experiment is paused at, unless it is here."""
        try:
            experiment = client.get_experiment(self._identifier)
            state = experiment.state.name if experiment.state else ""
            found = ASKED_CHECKPOINT.search(experiment.description or "")
            if found and state == "PAUSED":
                if self._question is None or self._question.uuid != found[1]:
                    self._download(found[1])
                self._status = {"state": "idle", "text": ""}
            elif state in ("COMPLETED", "STOPPING_COMPLETED"):
                self._status = {"state": "finished", "text": "the experiment is completed"}
            elif state in ("ERROR", "CANCELED", "DELETED"):
                text = f"the experiment ended as {state}: {experiment.description}"
                self._status = {"state": "failed", "text": text}
            else:
                self._status = {"state": "running", "text": ""}
        # The client raises its own, requests' and urllib3's errors.
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"--experiment {self._identifier}: {reason}; check the number, DET_MASTER, and "
                "`det user login`"
            ) from error

    def start(self) -> None:
        """Send the answers and activate the experiment.

        Raises:
            UserError: images still wait, or the master cannot be reached.
        """
        with self._lock:
            for folder in batch_folders(self._run):
                if not is_closed(folder) and read_answers(folder).complete:
                    close_batch(folder)
            assert self._question is not None
            try:
                self._question.reload()
                self._question.add_metadata({LABELLING: texts(self._run)})
                client.get_experiment(self._identifier).activate()
            except Exception as error:  # as in `fetch`
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise UserError(
                    f"--experiment {self._identifier}: the answers cannot be sent ({reason}); they "
                    f"are kept in {self._run}: try again"
                ) from error
            self._status = {"state": "running", "text": ""}
            self._looked = time.monotonic()

    def status(self) -> dict[str, Any]:
        """`state`: idle while people label, then running, finished or failed; `text` says why."""
        with self._lock:
            if time.monotonic() - self._looked > SECONDS_BETWEEN_LOOKS:
                self._looked = time.monotonic()
                threading.Thread(target=self._look, daemon=True).start()
            return self._status

    def _look(self) -> None:
        try:
            self.fetch()
        except UserError as error:  # the page says so and looks again
            self._status = {"state": self._status["state"], "text": str(error)}

    def _download(self, identifier: str) -> None:
        question = client.get_checkpoint(identifier)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(question.download(str(Path(name) / "checkpoint")))
            (self._run / LABELLING).mkdir(parents=True, exist_ok=True)
            for batch in batch_folders(folder):  # whose images are there
                target = self._run / LABELLING / batch.name
                if not target.exists():
                    # In two steps, so that nobody sees half a batch.
                    temporary = target.with_name(f".{target.name}.tmp")
                    shutil.copytree(batch, temporary, dirs_exist_ok=True)
                    temporary.rename(target)
            uploads = self._run / LABELLING / UPLOADS
            if (folder / LABELLING / UPLOADS).is_dir() and not uploads.exists():
                shutil.copytree(folder / LABELLING / UPLOADS, uploads)
            for file in (METRICS, DESCRIPTION):
                if (folder / file).exists():
                    shutil.copy(folder / file, self._run / file)
        self._question = question
