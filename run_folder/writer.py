"""The folder that a run off the cluster writes, and goes on from.

config.yaml               the experiment configuration used, searched values drawn
run.json                  data set, seed, versions: what a resumed run must agree with; classes,
                          image size and statistics: what predictions need besides the weights; at
                          the end, why it ended
metrics.csv               one row per round, all metrics, those of single classes too
queries.csv               round, dataset index, label given, true label and uncertainty of every
                          labelled image
learning_curve.png        accuracy and AUC against labels
queried_round_*.png       what the round asked for
self_supervision.csv      step, loss and learning rate before the first round, where asked for
backbone.safetensors      what came of that; self_supervision.pth while it lasts
tensorboard/              event files, with each round's pictures unless switched off
checkpoints/              the last two and the best; checkpoints.json lists them, by round
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from errors import UserError
from reporting.figures import learning_curve
from reporting.files import csv_text, write_atomically
from reporting.tile_sheet import contact_sheet
from training.stopping import StopReason

FORMAT = 1
# What reading a damaged JSON or CSV file raises.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error)
QUERY_COLUMNS = ("round", "index", "label", "class", "true_label", "uncertainty")

logger = logging.getLogger(__name__)


class RunFolder:
    """Reads and writes one run folder; see the module's first lines for what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics: dict[int, dict[str, Any]] = {}
        self._queries: list[tuple[str, ...]] = []
        self.checkpoint_entries: list[dict[str, Any]] = []

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunFolder:
        """A new folder at `path`, which must be empty or absent.

        Raises:
            UserError: it holds something, or cannot be written.
        """
        folder = cls(path)
        try:
            if path.exists() and (not path.is_dir() or not _empty(path)):
                raise UserError(
                    f"--output-dir {path}: exists and is not empty; name a new folder, or go on "
                    f"with that run by --resume {path}"
                )
            path.mkdir(parents=True, exist_ok=True)
            # First of all, so that a run killed from here on can be gone on with.
            write_atomically(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
            folder._make_subfolders()
        except OSError as error:
            raise UserError(
                f"--output-dir {path}: cannot be written ({error.strerror}); name another folder"
            ) from error
        return folder

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, dict[str, Any]]:
        """The existing run at `path` and its configuration.

        Raises:
            UserError: there is no run, a damaged one, or one of a newer format.
        """
        try:
            config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise UserError(
                f"--resume {path}: not a run folder ({_one_line(error)}); name one that a run has "
                "written"
            ) from error
        if not isinstance(config, dict) or not isinstance(config.get("hyperparameters"), dict):
            raise UserError(
                f"--resume {path}: config.yaml has no mapping `hyperparameters`; start a new run"
            )
        folder = cls(path)
        for name, read in (
            ("run.json", folder._check_format),
            ("metrics.csv", folder._read_metrics),
            ("queries.csv", folder._read_queries),
            ("checkpoints.json", folder._read_checkpoints),
        ):
            file = path / name
            try:
                if file.exists():
                    read(file)
            except UserError:
                raise
            except DAMAGE as error:
                raise UserError(
                    f"--resume {path}: {name} is damaged ({_one_line(error)}); put it back as the "
                    "run wrote it, or start a new run"
                ) from error
        try:
            folder._make_subfolders()
        except OSError as error:
            raise UserError(
                f"--resume {path}: cannot be written ({error.strerror}); change its permissions, "
                "or copy it"
            ) from error
        return folder, config

    def _check_format(self, file: Path) -> None:
        run = json.loads(file.read_text(encoding="utf-8"))
        if run["format"] > FORMAT:
            raise UserError(
                f"--resume {self.path}: format {run['format']}, written by a newer version; "
                f"this one reads up to {FORMAT}: go on with the newer one"
            )

    def _make_subfolders(self) -> None:
        self.checkpoints.mkdir(exist_ok=True)
        (self.path / "tensorboard").mkdir(exist_ok=True)

    def check_identity(self, identity: Mapping[str, Any], network: Mapping[str, Any]) -> None:
        """Write down what this run is about, or compare with what was written down at its start.

        Args:
            identity: what a resumed run must agree with.
            network: what it takes, besides configuration and weights, to use the network without
                the data set; it follows from `identity`.

        Raises:
            UserError: the run was started with something else, such as another data set.
        """
        file = self.path / "run.json"
        if not file.exists():
            versions = {"torch": torch.__version__}
            content = {
                "format": FORMAT, **identity, "network": network, "started_with": versions
            }  # fmt: skip
            write_atomically(file, json.dumps(content, indent=2) + "\n")
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        for name, value in identity.items():
            if before.get(name) != value:
                raise UserError(
                    f"--resume {self.path}: {name} was {before.get(name)!r} and is {value!r} now; "
                    "resume with what the run was started with"
                )
        if "network" not in before:  # an older version did not write it
            content = {**before, "network": network}
            write_atomically(file, json.dumps(content, indent=2) + "\n")

    def discard_unless_begun(self) -> None:
        """Remove a new run that was refused, so that its name is free for the next attempt."""
        if not (self.path / "run.json").exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def record_end(self, uuid: str, reason: StopReason, rounds: int, labels: int) -> None:
        """Note in run.json that the run ended with checkpoint `uuid`, and why."""
        end = {
            "stopped_by": reason.rule,
            "reason": reason.text,
            "rounds": rounds,
            "labeled_samples": labels,
            "checkpoint": uuid,
        }
        self._write_end(end)

    def reason_of_end(self, uuid: str | None) -> str | None:
        """Why the run ended with checkpoint `uuid`; None if that is not its end."""
        file = self.path / "run.json"
        end = json.loads(file.read_text(encoding="utf-8")).get("end") if file.exists() else None
        return str(end["reason"]) if end and end["checkpoint"] == uuid else None

    def _write_end(self, end: Mapping[str, Any] | None) -> None:
        file = self.path / "run.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("end") != end:
            content["end"] = end
            write_atomically(file, json.dumps(content, indent=2) + "\n")

    # --- tables and pictures ---------------------------------------------------------------

    def record_metrics(self, round_: int, metrics: Mapping[str, Any]) -> None:
        """Add `metrics` to the round's row of metrics.csv."""
        self._metrics.setdefault(round_, {"round": round_}).update(metrics)
        columns = list(dict.fromkeys(name for row in self._metrics.values() for name in row))
        rows = [[row.get(name, "") for name in columns] for row in self._metrics.values()]
        write_atomically(self.path / "metrics.csv", csv_text(columns, rows))

    def record_self_supervision(self, metrics: Mapping[str, float]) -> None:
        """Put `metrics`, with their `step`, into self_supervision.csv.

        Steps that a kill made vain are taken again, and end the same: they replace themselves.
        """
        file = self.path / "self_supervision.csv"
        rows: dict[int, Mapping[str, Any]] = {int(row["step"]): row for row in _read_csv(file)}
        rows[int(metrics["step"])] = metrics
        write_atomically(file, csv_text(list(metrics), [list(rows[s].values()) for s in rows]))

    def record_query(
        self,
        round_: int,
        indices: Tensor,
        labels: Tensor,
        true_labels: Tensor,
        uncertainty: Tensor | None,
        images: Tensor,
        class_names: tuple[str, ...],
    ) -> None:
        """Add a round's query to queries.csv and draw it.

        Args:
            indices, labels, true_labels: int64 [k]; labels are as given, which may be wrong.
            uncertainty: float [k], nats, or None.
            images: uint8 [k, C, H, W], the queried ones.
        """
        values = [""] * len(indices) if uncertainty is None else uncertainty.tolist()
        for index, label, truth, value in zip(
            indices.tolist(), labels.tolist(), true_labels.tolist(), values, strict=True
        ):
            text = value if value == "" else f"{value:.6f}"
            self._queries.append(
                (str(round_), str(index), str(label), class_names[label], str(truth), text)
            )
        write_atomically(self.path / "queries.csv", csv_text(QUERY_COLUMNS, self._queries))
        picture = contact_sheet(images, labels, class_names, f"Round {round_}: queried images")
        write_atomically(self.path / f"queried_round_{round_:02d}.png", picture)

    def draw_learning_curve(self) -> None:
        """Draw learning_curve.png anew from the rounds that have been evaluated."""
        rows = [row for row in self._metrics.values() if "val_accuracy" in row]
        title = self.path.name
        write_atomically(self.path / "learning_curve.png", learning_curve(rows, title))

    def rewind(self, rounds: int) -> None:
        """Forget what was written of rounds from `rounds` on; they are about to be run again.

        Files that a kill has left half-written go too.
        """
        self._metrics = {r: row for r, row in self._metrics.items() if r < rounds}
        self._queries = [row for row in self._queries if int(row[0]) < rounds]
        self.checkpoint_entries = [e for e in self.checkpoint_entries if e["round"] < rounds]
        self._write_end(None)
        self._delete_unlisted()
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()

    def _read_metrics(self, file: Path) -> None:
        for row in _read_csv(file):
            self._metrics[int(row["round"])] = {
                name: _number(text) for name, text in row.items() if text != ""
            }

    def _read_queries(self, file: Path) -> None:
        rows = _read_csv(file)
        self._queries = [tuple(row.get(name, "") for name in QUERY_COLUMNS) for row in rows]
        for row in self._queries:
            int(row[0])

    def _read_checkpoints(self, file: Path) -> None:
        entries = json.loads(file.read_text(encoding="utf-8"))
        self.checkpoint_entries = [
            {
                "uuid": str(entry["uuid"]),
                "round": int(entry["round"]),
                "val_loss": float(entry["val_loss"]),
                "blake2b": dict(entry["blake2b"]),
            }
            for entry in entries
        ]

    # --- checkpoints -----------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are written, a folder each, named by its id."""
        return self.path / "checkpoints"

    def record_checkpoint(self, uuid: str, round_: int, val_loss: float) -> None:
        """Take checkpoint `uuid` into the books, and delete all but the last two and the best.

        The last but one is there for the day when the last, written just before the power went,
        turns out not to be whole.
        """
        digests = folder_digests(self.checkpoints / uuid)
        entry = {"uuid": uuid, "round": round_, "val_loss": val_loss, "blake2b": digests}
        known = [*self.checkpoint_entries, entry]
        best = min(known, key=lambda one: one["val_loss"])
        self.checkpoint_entries = [one for one in known if one is best or one in known[-2:]]
        write_atomically(
            self.path / "checkpoints.json", json.dumps(self.checkpoint_entries, indent=2) + "\n"
        )
        self._delete_unlisted()

    def latest_checkpoint(self) -> str | None:
        """Id of the newest checkpoint that is whole; None if the run has yet to write one.

        The log says which one that is, and what is wrong with newer ones.

        Raises:
            UserError: checkpoints were written and none of them is whole.
        """
        for entry in sorted(self.checkpoint_entries, key=lambda one: one["round"], reverse=True):
            name = f"{entry['uuid']} of round {entry['round']}"
            damage = damaged_files(self.checkpoints / entry["uuid"], entry["blake2b"])
            if not damage:
                logger.info("newest whole checkpoint: %s", name)
                return str(entry["uuid"])
            files = ", ".join(damage)
            logger.warning("checkpoint %s is damaged (%s); trying the one before", name, files)
        if self.checkpoint_entries:
            raise UserError(
                f"--resume {self.path}: its checkpoints are missing or damaged; start a new run"
            )
        return None

    def _delete_unlisted(self) -> None:
        """Remove checkpoints that are no longer needed, or were cut off while written."""
        listed = {entry["uuid"] for entry in self.checkpoint_entries}
        for folder in self.checkpoints.iterdir():
            if folder.name not in listed:
                shutil.rmtree(folder)


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
    """Names of the files that `folder_digests` found there once and would not find now."""
    found = folder_digests(folder) if folder.is_dir() else {}
    return [name for name, digest in expected.items() if found.get(name) != digest]


def _empty(folder: Path) -> bool:
    """Whether nothing is in `folder` but what a start that was killed at once has left."""
    return all(path.match(".*.tmp") for path in folder.iterdir())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(text: str) -> float | int:
    return int(text) if text.lstrip("-").isdigit() else float(text)
