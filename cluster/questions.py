"""People label a trial's images outside the cluster: questions travel in checkpoints.

A round that people have to label is a checkpoint of its own, which holds the folder `labelling` of
the labelling protocol and the id of the checkpoint that the trial continues from. The trial then
pauses its experiment. `python -m tools.label --experiment ID` downloads the question, puts the
answers into the checkpoint's metadata, and activates the experiment; the trial finds them there.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from determined import core
from determined.experimental import client

from active_learning import ActiveLearner
from cluster.master import Master
from data import Splits
from errors import UserError
from labelling.batch import FOLDER_NAME, IMAGES, batch_folders
from labelling.log import ANSWERS_FILE, CLOSED_FILE
from labelling.oracle import PeopleOracle
from labelling.outcome import is_closed
from labelling.settings import settings_path
from labelling.uploads import FOLDER as UPLOADS
from labelling.uploads import Uploads
from run_folder.description import read_description

LABELLING = "labelling"  # the folder in a checkpoint, and the key in its metadata
# Says in that folder which trial it belongs to and, where people are asked, what to continue from.
QUESTION = "question.json"
# What the experiment's description says while people are asked; the outside looks for it.
ASKS = "waiting for labels, checkpoint "
ASKED_CHECKPOINT = re.compile(re.escape(ASKS) + r"([0-9a-f-]{36})")
SECONDS_FOR_PAUSE = 300.0
LARGEST_UPLOADS = 2**25  # bytes of text; a master's requests may have 96 MiB

logger = logging.getLogger("active_learning")


class AwaitingLabelsError(Exception):
    """Leaves the Trainer: the round waits for people. It is no failure."""


class Questions:
    """Asks people on behalf of one trial, and takes their answers over.

    Args:
        context: Determined's.
        master: pauses the experiment.
        run: an empty folder of this process, for the labelling protocol's files.
        origin: names experiment and trial.
    """

    def __init__(
        self, context: core.Context, master: Master, run: Path, origin: Mapping[str, int]
    ) -> None:
        self._context = context
        self._master = master
        self._run = run
        self._origin = dict(origin)
        self._is_first = context.distributed.rank == 0

    def oracle(self, learner: ActiveLearner, splits: Splits) -> PeopleOracle:
        """The oracle that reads and writes this trial's labelling files."""
        share = self._context.distributed.broadcast
        return PeopleOracle(self._run, learner, splits, self._is_first, share)

    def restore(self, checkpoint: str | None) -> str | None:
        """Take over the labelling files of the trial's newest checkpoint, and people's answers.

        Returns:
            The checkpoint to continue from: `checkpoint`, or the one before it if that is a
            question.
        """
        if checkpoint is None:
            return None
        with self._context.checkpoint.restore_path(
            checkpoint, core.DownloadMode.LocalWorkersShareDownload, selector=_is_ours
        ) as folder:
            source = folder / LABELLING
            if not source.is_dir():
                return checkpoint
            values = json.loads((source / QUESTION).read_text())
            if values["origin"] != self._origin:  # a warm start: its labels are another pool's
                return checkpoint
            shutil.copytree(source, self._run / LABELLING, dirs_exist_ok=True)
        if not values["asks"]:
            return checkpoint
        if self._is_first:
            metadata = client.get_checkpoint(checkpoint).metadata or {}
            write_texts(self._run, metadata.get(LABELLING) or {})
            self._master.describe_experiment(values["description"])
        return values["continues"]

    def ask(self, continues: str | None, steps: int, tables: Mapping[str, str]) -> None:
        """Store the open batch, pause the experiment, and return when the master says so.

        Args:
            continues: the checkpoint that the trial continues from.
            steps: optimizer steps so far.
            tables: text files of the run so far, by name, for the page's report.
        """
        if self._is_first:
            with self._context.checkpoint.store_path({"steps_completed": steps}) as (folder, name):
                self.store(folder, continues=continues, asks=True)
                for file, text in tables.items():
                    (folder / file).write_text(text, encoding="utf-8")
            self._master.pause_experiment(f"{ASKS}{name}")
            logger.info(
                "waiting for labels: python -m tools.label --experiment %d",
                self._origin["experiment_id"],
            )
        # The master restarts a trial that ends after it was asked to pause; another end is final.
        deadline = time.monotonic() + SECONDS_FOR_PAUSE
        while not self._context.preempt.should_preempt() and time.monotonic() < deadline:
            time.sleep(1)

    def store(self, folder: Path, continues: str | None = None, asks: bool = False) -> None:
        """Copy the labelling files into a checkpoint's `folder`.

        Of the pictures, those of open batches and of uploads are still needed.
        """
        target = folder / LABELLING
        if (self._run / LABELLING).is_dir():
            hidden = shutil.ignore_patterns(IMAGES, ".*")
            shutil.copytree(self._run / LABELLING, target, ignore=hidden)
            kept = [batch.name for batch in batch_folders(self._run) if not is_closed(batch)]
            if (self._run / LABELLING / UPLOADS / IMAGES).is_dir():
                kept.append(UPLOADS)
            for name in kept:
                shutil.copytree(self._run / LABELLING / name / IMAGES, target / name / IMAGES)
        target.mkdir(exist_ok=True)
        values = {
            "origin": self._origin,
            "asks": asks,
            "continues": continues,
            "description": self._master.description() if asks else "",
        }
        (target / QUESTION).write_text(json.dumps(values))


def texts(run: Path) -> dict[str, str]:
    """The files that people's work changes, by their path below `labelling`.

    Raises:
        UserError: the corrected uploads are more than a master takes.
    """
    paths = [settings_path(run)]
    for batch in batch_folders(run):
        paths += [batch / ANSWERS_FILE, batch / CLOSED_FILE]
    files = {
        str(path.relative_to(run / LABELLING)): path.read_text(encoding="utf-8")
        for path in paths
        if path.exists()
    }
    size = 0
    if (run / LABELLING / UPLOADS).is_dir():
        size = read_description(run)[0].settings["image_size"]
    uploads = Uploads(run).texts(size)
    total = sum(map(len, uploads.values()))
    if total > LARGEST_UPLOADS:
        raise UserError(
            f"{run / LABELLING / UPLOADS}: {total / 2**20:.0f} MiB of corrected uploads at "
            f"{size} pixels, and the master takes {LARGEST_UPLOADS / 2**20:.0f}; move some out"
        )
    return {**files, **uploads}


def write_texts(run: Path, files: Mapping[str, str]) -> None:
    """Put what `texts` returned into `run`.

    The texts come from outside, so no path is trusted: only files that `texts` names are written,
    and of batches only into those that are there.
    """
    Uploads(run).write_texts(files)
    for path, text in files.items():
        parts = path.split("/")
        known = parts == [settings_path(run).name] or (
            len(parts) == 2
            and FOLDER_NAME.fullmatch(parts[0])
            and parts[1] in (ANSWERS_FILE, CLOSED_FILE)
        )
        target = run / LABELLING / path
        if known and target.parent.is_dir():
            target.write_text(text, encoding="utf-8")


def _is_ours(path: str) -> bool:
    # A storage that finds none of the files takes it for an error; metadata.json is always there.
    return path.split("/")[0] == LABELLING or path == "metadata.json"
