"""The folder that a local run writes, and resumes from. `names.py` lists what is in it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from active_learning import ActiveLearner
from errors import UserError
from reporting.figures import learning_curve
from reporting.files import csv_text, write_atomically
from reporting.tile_sheet import contact_sheet
from run_folder import names
from run_folder.checkpoint import progress_of, write_checkpoint
from run_folder.description import DAMAGE, RunDescription, one_line, read_description
from run_folder.tables import MetricsTable, read_csv
from training.experiment_config import parse_yaml
from training.stopping import StopReason

# A damaged latest checkpoint gives way to the one before.
RESUMABLE_CHECKPOINTS = 2

logger = logging.getLogger(__name__)


class RunFolder:
    """Reads and writes one run folder."""

    def __init__(self, path: Path, description: RunDescription) -> None:
        self.path = path
        self.description = description
        self.checkpoint_entries: list[dict[str, Any]] = []

    @classmethod
    def create(
        cls, path: Path, config: Mapping[str, Any], description: RunDescription, numbered: bool
    ) -> RunFolder:
        """Make a new folder at `path`, whole or not at all; or fill an empty one.

        Args:
            numbered: take the next free name, such as `path`-2, where `path` is in use.

        Raises:
            UserError: `path` is in use or cannot be written.
        """
        try:
            if path.is_dir() and not numbered:
                # It cannot be replaced where its parent is read-only, as a mounted folder's is.
                _fill(path, config, description)
                return cls(path, description)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                temporary.mkdir(parents=True)
                _fill(temporary, config, description)
                return cls(_move_to_free_name(temporary, path, numbered), description)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise UserError(
                f"--output-dir {path}: cannot be written ({error.strerror}); name another folder"
            ) from error

    @staticmethod
    def check_new(path: Path) -> None:
        """Raise UserError where `create` could not make a folder at `path`, before any work."""
        place = path
        try:
            in_use = path.exists() and (not path.is_dir() or any(path.iterdir()))
            while not place.exists() and place != place.parent:
                place = place.parent
            writable = os.access(place, os.W_OK | os.X_OK, effective_ids=True)
        except OSError as error:
            raise UserError(
                f"--output-dir {path}: cannot be read ({error.strerror}); name another folder"
            ) from error
        if in_use:
            raise UserError(
                f"--output-dir {path}: exists and is not empty; name a new folder, or resume that "
                f"run with --resume {path}"
            )
        if not place.is_dir() or not writable:
            reason = "Permission denied" if place.is_dir() else f"{place} is a file"
            raise UserError(
                f"--output-dir {path}: cannot be written ({reason}); name another folder"
            )

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, dict[str, Any]]:
        """The existing run at `path`, and its configuration.

        Raises:
            UserError: there is no run, a damaged one, or one of another format.
        """
        try:
            config = parse_yaml((path / names.CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise UserError(
                f"--resume {path}: not a run folder ({one_line(error)}); name one that a run has "
                "written"
            ) from error
        if not isinstance(config, dict) or not isinstance(config.get("hyperparameters"), dict):
            raise UserError(
                f"--resume {path}: {names.CONFIG} has no mapping `hyperparameters`; start a new run"
            )
        description, _ = read_description(path)
        folder = cls(path, description)
        try:
            folder._read_checkpoint_list()
        except DAMAGE as error:
            raise UserError(
                f"--resume {path}: {names.CHECKPOINT_LIST} is damaged ({one_line(error)}); put it "
                "back as the run wrote it, or start a new run"
            ) from error
        return folder, config

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. The lock of a process that has died is free again.

        On a file system without locks there is a warning in its place.

        Raises:
            UserError: another process holds it, or the folder cannot be written.
        """
        file = self.path / names.LOCK
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"--resume {self.path}: cannot be written ({error.strerror}); change its "
                "permissions, or copy it"
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 300).decode(errors="replace") or "another process"
                raise UserError(
                    f"--resume {self.path}: {holder} works on this run; wait until it ends, or "
                    "stop it"
                ) from None
            except OSError as error:
                logger.warning(
                    "%s: cannot be locked (%s); start no other process on this run",
                    self.path, error.strerror,
                )  # fmt: skip
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            os.close(descriptor)

    # --- tables and pictures ---------------------------------------------------------------

    def write_metrics(self, metrics: MetricsTable) -> None:
        """Write metrics.csv."""
        write_atomically(self.path / names.METRICS, metrics.to_csv())

    def draw_learning_curve(self, metrics: MetricsTable) -> None:
        """Draw learning_curve.png from the rounds that have been evaluated."""
        rows = [row for row in metrics.rows.values() if "val_accuracy" in row]
        write_atomically(self.path / names.LEARNING_CURVE, learning_curve(rows, self.path.name))

    def write_queries(
        self, queries: str, round_: int, images: Tensor, labels: Tensor, classes: tuple[str, ...]
    ) -> None:
        """Write queries.csv, and draw what a round asked for.

        Args:
            queries: the whole table.
            images: uint8 [k, C, H, W], the round's labelled images.
            labels: int64 [k], theirs.
        """
        write_atomically(self.path / names.QUERIES, queries)
        picture = contact_sheet(images, labels, classes, f"Round {round_}: queried images")
        write_atomically(self.path / f"queried_round_{round_:02d}.png", picture)

    def record_self_supervision(self, metrics: Mapping[str, float]) -> None:
        """Put `metrics`, with their `step`, into self_supervision.csv.

        Steps that a kill has undone are taken again and end the same; they replace their rows.
        """
        file = self.path / names.SELF_SUPERVISION_TABLE
        rows: dict[int, Mapping[str, Any]] = {int(row["step"]): row for row in read_csv(file)}
        rows[int(metrics["step"])] = metrics
        write_atomically(file, csv_text(list(metrics), [list(rows[s].values()) for s in rows]))

    # --- the end of the run ----------------------------------------------------------------

    def record_end(self, reason: StopReason, rounds: int, labels: int) -> None:
        """Note in run.json that the run ended with its latest checkpoint, and why."""
        end = {
            "stopped_by": reason.rule,
            "reason": reason.text,
            "rounds": rounds,
            "labeled_samples": labels,
            "checkpoint": self.checkpoint_entries[-1]["uuid"],
        }
        self._write_description({"end": end})

    def end(self) -> dict[str, Any] | None:
        """What `record_end` noted, if the checkpoint of that end is the latest one."""
        _, content = read_description(self.path)
        end = content.get("end")
        latest = self.checkpoint_entries[-1]["uuid"] if self.checkpoint_entries else None
        return dict(end) if end and end["checkpoint"] == latest else None

    def _write_description(self, more: Mapping[str, Any]) -> None:
        write_atomically(self.path / names.DESCRIPTION, self.description.to_json(more))

    # --- checkpoints -----------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, a folder each, named by its id."""
        return self.path / names.CHECKPOINTS

    def save_checkpoint(self, learner: ActiveLearner, metrics: MetricsTable, queries: str) -> None:
        """Write a checkpoint, and delete all but the last two and the best.

        Raises:
            UserError: it cannot be written, such as on a full disk; the others are untouched.
        """
        identifier = str(uuid.uuid4())
        temporary = self.checkpoints / f".{identifier}.tmp"
        try:
            temporary.mkdir()
            write_checkpoint(temporary, self.description, learner, metrics, queries)
            temporary.rename(self.checkpoints / identifier)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise self.not_written("a checkpoint", error) from error
        goal = self.description.goal
        progress = progress_of(learner, metrics, goal.metric)
        entry = {
            "uuid": identifier,
            "round": progress.round,
            "val_loss": progress.val_loss,
            goal.metric: progress.goal_value,
            "blake2b": folder_digests(self.checkpoints / identifier),
        }
        self._keep_latest_and_best([*self.checkpoint_entries, entry])

    def _keep_latest_and_best(self, entries: list[dict[str, Any]]) -> None:
        best = self.description.goal.best(entries)
        latest = entries[-RESUMABLE_CHECKPOINTS:]
        self.checkpoint_entries = [one for one in entries if one is best or one in latest]
        without_optimizer = [one for one in self.checkpoint_entries if one not in latest]
        for one in without_optimizer:
            one["blake2b"].pop(names.OPTIMIZER, None)
        write_atomically(
            self.path / names.CHECKPOINT_LIST, json.dumps(self.checkpoint_entries, indent=2) + "\n"
        )
        for one in without_optimizer:
            (self.checkpoints / one["uuid"] / names.OPTIMIZER).unlink(missing_ok=True)
        self.delete_unlisted()

    def latest_checkpoint(self, log: bool = True) -> Path | None:
        """The newest checkpoint that is whole; None if the run has yet to write one.

        With `log`, the log says which one that is and what is wrong with newer ones. Those are
        forgotten.

        Raises:
            UserError: checkpoints were written and none of them is whole.
        """
        entries = list(self.checkpoint_entries)
        while self.checkpoint_entries:
            entry = self.checkpoint_entries[-1]
            name = f"{entry['uuid']} of round {entry['round']}"
            damaged = damaged_files(self.checkpoints / entry["uuid"], entry["blake2b"])
            resumable = entry in entries[-RESUMABLE_CHECKPOINTS:]
            if not damaged and resumable:
                if log:
                    logger.info("newest whole checkpoint: %s", name)
                return self.checkpoints / str(entry["uuid"])
            if damaged and log:
                files = ", ".join(damaged)
                logger.warning("checkpoint %s is damaged (%s); trying the one before", name, files)
            self.checkpoint_entries.pop()
        if entries:
            raise UserError(
                f"--resume {self.path}: its checkpoints are missing or damaged; start a new run"
            )
        return None

    def restart(self) -> None:
        """Forget the end of the run, and what a kill has left half-written."""
        self._write_description({})
        self.delete_unlisted()
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()

    def delete_unlisted(self) -> None:
        """Remove checkpoints that are no longer needed, or were cut off while being written."""
        listed = {entry["uuid"] for entry in self.checkpoint_entries}
        for entry in self.checkpoints.iterdir():
            # Whatever else lies here is none of ours.
            if entry.name not in listed and entry.is_dir() and is_identifier(entry.name):
                shutil.rmtree(entry)

    def _read_checkpoint_list(self) -> None:
        file = self.path / names.CHECKPOINT_LIST
        if not file.exists():
            return
        for entry in json.loads(file.read_text(encoding="utf-8")):
            if not is_identifier(str(entry["uuid"])):
                raise ValueError(f"{entry['uuid']!r} is not a checkpoint's id")
            self.checkpoint_entries.append(
                {**entry, "round": int(entry["round"]), "blake2b": dict(entry["blake2b"])}
            )

    def not_written(self, what: str, error: OSError) -> UserError:
        """The error for a file that cannot be written."""
        reason = error.strerror or one_line(error)
        return UserError(
            f"{self.path}: {what} cannot be written ({reason}); free some space, then resume with: "
            f"python model_def.py --resume {self.path}"
        )


def default_path(config: Path) -> Path:
    """Where a new run goes when the user names no folder."""
    return Path("runs") / f"{config.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def folder_digests(folder: Path) -> dict[str, str]:
    """BLAKE2b of each file directly in `folder`, in hexadecimal, by name."""
    digests = {}
    for path in sorted(folder.iterdir()):
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        digests[path.name] = digest.hexdigest()
    return digests


def damaged_files(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Names of the files whose content is no longer what `folder_digests` read."""
    present = folder_digests(folder) if folder.is_dir() else {}
    return [name for name, digest in expected.items() if present.get(name) != digest]


def _fill(folder: Path, config: Mapping[str, Any], description: RunDescription) -> None:
    """Write what a new run folder holds; run.json, which makes it one, comes last."""
    for name in (names.CHECKPOINTS, names.TENSORBOARD):
        (folder / name).mkdir()
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    (folder / names.CONFIG).write_text(text, encoding="utf-8")
    (folder / names.DESCRIPTION).write_text(description.to_json(), encoding="utf-8")


def _move_to_free_name(folder: Path, path: Path, numbered: bool) -> Path:
    for number in range(1, 1000):
        target = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.rename(target)  # onto nothing, or onto an empty folder
        except OSError:
            if numbered and target.exists():
                continue
            raise
        return target
    raise FileExistsError(17, "1,000 runs of this name", str(path))


def is_identifier(name: str) -> bool:
    """Whether `name` is a checkpoint's id, or that of one being written."""
    try:
        uuid.UUID(name.removeprefix(".").removesuffix(".tmp"))
    except ValueError:
        return False
    return True
