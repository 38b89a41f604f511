"""What the page shows of a run's batches and how it saves answers; one object serves all requests.

The files of the labelling protocol are the only state. This module reads what is new in them and
keeps it counted, so that a request costs the same for the first answer and the ten thousandth.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from errors import UserError
from labelling.batch import (
    BATCH_FILE,
    FOLDER_NAME,
    BatchImage,
    batch_folders,
    image_path,
    read_batch,
)
from labelling.log import ADJUDICATOR, Answer, AnswerLog
from labelling.outcome import (
    DISPUTED,
    LABELLED,
    WAITING,
    Outcome,
    Tally,
    current_outcomes,
    is_closed,
    read_answers,
)
from labelling.settings import LabellingSettings, check_annotator, read_settings

if TYPE_CHECKING:
    from labelling.agreement import Agreement

MOST_ANSWERS = 2000  # in one request
EXAMPLES = 6  # of each class
THUMBNAIL_PIXELS = 256
THUMBNAILS_KEPT = 4000


class BatchDesk:
    """One batch: its images, and the answers so far. Every method may be called by any thread."""

    def __init__(self, folder: Path, settings: LabellingSettings) -> None:
        self.folder = folder
        self.batch = read_batch(folder)
        self.settings = settings
        self.version = hashlib.sha256(
            str(folder.resolve()).encode() + (folder / BATCH_FILE).read_bytes()
        ).hexdigest()[:16]
        self.suggested = {
            item.index: self.batch.class_names[item.suggested]
            for item in self.batch.images
            if item.suggested is not None
        }
        self._images = {item.index for item in self.batch.images}
        self._everyone = settings.shared_by_all(self.batch)
        self._assigned = settings.assigned(self.batch)
        self._lock = threading.Lock()
        self._log = AnswerLog(folder)
        self._lines: list[Answer] = []
        self._tally = Tally(self.batch, settings)

    def lines(self) -> list[Answer]:
        """All lines of the log up to now."""
        with self._lock:
            self._refresh()
            return list(self._lines)

    def describe(self, annotator: str, role: str) -> dict[str, Any]:
        """All that a page needs to begin: the images, the answers of `annotator`, the outcomes."""
        with self._lock:
            self._refresh()
            batch = self.batch
            return {
                "batch": self.folder.name,
                "version": self.version,
                "round": batch.round,
                "strategy": batch.strategy,
                "split": batch.split,
                "classes": batch.class_names,
                "images": [self._image(item, annotator) for item in batch.images],
                "closed": self.closed,
                **self._changes(annotator, role, 0),
                "outcomes": self._outcomes(self._images, annotator, role),
            }

    def changes(self, annotator: str, role: str, since: int) -> dict[str, Any]:
        """What has happened after the first `since` lines of the log."""
        with self._lock:
            self._refresh()
            changed = {line.image for line in self._lines[since:]}
            return {
                **self._changes(annotator, role, since),
                "outcomes": self._outcomes(changed, annotator, role),
                "closed": self.closed,
            }

    def save(self, answers: Sequence[Answer]) -> None:
        """Put `answers` on the disk.

        Raises:
            ClosedError: the batch's answers are in training already.
            UserError: an image is not in the batch, a class is not in the list, others are named as
                annotators, or a write fails.
        """
        self._check(answers)
        names = self.settings.annotators
        for answer in answers:
            if names and answer.role != ADJUDICATOR and answer.annotator not in names:
                raise UserError(
                    f"annotator {answer.annotator!r}: does not label this run; give one of "
                    f"{', '.join(names)}, or name them again with --annotators"
                )
        with self._lock:
            self._log.append(answers)

    def correct(self, answers: Sequence[Answer], old: Mapping[int, str]) -> None:
        """Put corrections of a closed batch on the disk; `old` are the labels until now.

        Raises:
            UserError: as `save`, or an image was never labelled, or no class is given.
        """
        self._check(answers)
        lines = []
        for answer in answers:
            if answer.image not in old or answer.answer is None:
                raise UserError(
                    f"image {answer.image}: only a label can be corrected, and only to another "
                    "class; choose a class"
                )
            lines.append(replace(answer, old=old[answer.image]))
        with self._lock:
            self._log.append(lines, corrections=True)

    @property
    def closed(self) -> bool:
        """Whether the answers are in training already."""
        return is_closed(self.folder)

    def agreement(self) -> Agreement | None:
        """How well the named annotators agree; of those who answered, where none are named."""
        from labelling.agreement import agreement  # NumPy is half of the start-up time

        lines = self.lines()
        names = self.settings.annotators or tuple(
            sorted({line.annotator for line in lines if line.role != ADJUDICATOR})
        )
        return agreement(self.batch, lines, names)

    def image_file(self, index: int) -> Path:
        """The image at its original resolution.

        Raises:
            LookupError: the batch has no such image.
        """
        if index not in self._images:
            raise LookupError(index)
        return image_path(self.folder, index)

    def class_counts(self) -> dict[str, int]:
        """How many images have each class as their outcome."""
        with self._lock:
            self._refresh()
            return dict(Counter(o.answer for o in self._tally.outcomes.values() if o.answer))

    def _check(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            if answer.image not in self._images:
                raise UserError(
                    f"image {answer.image}: is not in {self.folder.name}; reload the page"
                )
            if answer.answer is not None:
                self.batch.class_index(answer.answer)

    def _refresh(self) -> None:
        lines = self._log.read()
        if len(lines) < len(self._lines):  # somebody has put back an older file
            self._lines, self._tally = [], Tally(self.batch, self.settings)
        for line in lines[len(self._lines) :]:
            self._tally.add(line)
        self._lines = lines

    def _image(self, item: BatchImage, annotator: str) -> list[Any]:
        """[index, source, suggested, probability, uncertainty, turn, earlier label]."""
        names = self.batch.class_names
        suggested = None if item.suggested is None or self.settings.blind else names[item.suggested]
        turn = "all" if item.index in self._everyone else self._assigned.get(item.index, annotator)
        return [
            item.index,
            item.source,
            suggested,
            None if suggested is None else item.probability,
            item.uncertainty,
            turn,
            None if item.label is None else names[item.label],
        ]

    def _changes(self, annotator: str, role: str, since: int) -> dict[str, Any]:
        own = [
            {
                "image": line.image,
                "answer": line.answer,
                "skip": line.skip,
                "event": line.event,
                "action": line.action,
                "undoes": line.undoes,
                "time": line.time,
                "old": line.old,
            }
            for line in self._lines[since:]
            if line.annotator == annotator and line.role == role
        ]
        states = Counter(outcome.state for outcome in self._tally.outcomes.values())
        return {"position": len(self._lines), "own": own, "states": states}

    def _outcomes(
        self, images: Sequence[int] | set[int], annotator: str, role: str
    ) -> list[list[Any]]:
        """[index, state, answer, skip, votes] of each image; votes are for the adjudicator."""
        rows = []
        for index in sorted(images & self._tally.outcomes.keys()):
            outcome: Outcome = self._tally.outcomes[index]
            votes = self._tally.votes[index]
            hidden = self.settings.blind and role != ADJUDICATOR and (role, annotator) not in votes
            shown: list[list[str]] = []
            if role == ADJUDICATOR:
                given = [(n, v) for (r, n), v in votes.items() if r != ADJUDICATOR]
                shown = [
                    ["" if self.settings.blind else name, vote.answer or f"skipped: {vote.skip}"]
                    for name, vote in given
                ]
            rows.append(
                [
                    index,
                    outcome.state,
                    None if hidden else outcome.answer,
                    None if hidden else outcome.skip,
                    shown,
                ]
            )
        return rows


class Desk:
    """All batches of one run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._desks: dict[str, BatchDesk] = {}
        self.thumbnail = lru_cache(THUMBNAILS_KEPT)(_thumbnail)

    @property
    def settings(self) -> LabellingSettings:
        """Who labels, and how; read anew each time, as another process may change it."""
        return read_settings(self.run)

    def names(self) -> list[str]:
        """Names of all batches, in the order in which they were asked."""
        return [folder.name for folder in batch_folders(self.run)]

    def current(self) -> str | None:
        """The batch to label now: the first that is open, else the last one; None: none yet."""
        folders = batch_folders(self.run)
        if not folders:
            return None
        return next((folder.name for folder in folders if not is_closed(folder)), folders[-1].name)

    def batch(self, name: str) -> BatchDesk:
        """The desk of one batch.

        Raises:
            LookupError: there is no such batch.
        """
        folder = self.run / "labelling" / name
        if not FOLDER_NAME.fullmatch(name) or not (folder / BATCH_FILE).is_file():
            raise LookupError(name)
        settings = self.settings
        with self._lock:
            desk = self._desks.get(name)
            if desk is None or desk.settings != settings:
                desk = self._desks[name] = BatchDesk(folder, settings)
            return desk

    def overview(self) -> list[dict[str, Any]]:
        """One entry per batch: name, round, size, whether it is closed, images in each state."""
        entries = []
        for name in self.names():
            desk = self.batch(name)
            states = desk.changes("", "", 0)["states"]
            entries.append(
                {
                    "name": name,
                    "round": desk.batch.round,
                    "split": desk.batch.split,
                    "size": len(desk.batch.images),
                    "closed": desk.closed,
                    "waiting": states.get(WAITING, 0),
                    "disputed": states.get(DISPUTED, 0),
                }
            )
        return entries

    def complete(self) -> bool:
        """Whether the batch to label now has all its answers and waits to be trained on."""
        name = self.current()
        if name is None:
            return False
        folder = self.run / "labelling" / name
        return not is_closed(folder) and read_answers(folder).complete

    def corrected_labels(self, split: str) -> dict[int, tuple[str, str]]:
        """Of the labels in training: dataset index -> batch that holds it, class name now."""
        return {
            index: (current.folder.name, current.outcome.answer)
            for index, current in current_outcomes(self.run, split).items()
            if current.outcome.answer is not None
        }

    def examples(self) -> dict[str, list[tuple[str, int]]]:
        """A few labelled images of each class: (batch, dataset index), those of early rounds first.

        Those that the network also took for their class come first: they are typical ones.
        """
        ranked: dict[str, list[tuple[bool, str, int]]] = {}
        for split in ("pool", "validation"):
            for index, current in current_outcomes(self.run, split).items():
                outcome = current.outcome
                if outcome.state == LABELLED and outcome.answer is not None:
                    desk = self.batch(current.folder.name)
                    agrees = desk.suggested.get(index) == outcome.answer
                    ranked.setdefault(outcome.answer, []).append(
                        (not agrees, current.folder.name, index)
                    )
        return {
            name: [(folder, index) for _, folder, index in sorted(found, key=lambda e: e[0])][
                :EXAMPLES
            ]
            for name, found in ranked.items()
        }


def answers_from_json(values: Any, annotator: str, role: str) -> list[Answer]:
    """The answers in a request's JSON list.

    Raises:
        UserError: a value is missing, of another type, or not allowed.
    """
    check_annotator(annotator)
    if not isinstance(values, list):
        raise UserError("answers: is no list; send a list of answers")
    if len(values) > MOST_ANSWERS:
        raise UserError(f"answers: {len(values)} at once; send at most {MOST_ANSWERS}")
    answers = []
    for value in values:
        if not isinstance(value, dict):
            raise UserError("answers: holds something that is no answer; send objects")
        image = value.get("image")
        if not isinstance(image, int) or isinstance(image, bool):
            raise UserError(f"image: {image!r} is no dataset index; send a whole number")
        texts = {}
        for name in ("answer", "skip", "event", "action", "undoes"):
            text = value.get(name)
            if text is not None and not isinstance(text, str):
                raise UserError(f"{name}: {text!r} is no text; send text")
            texts[name] = text
        seconds = value.get("seconds")
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, int | float)
        ):
            raise UserError(f"seconds: {seconds!r} is no number; send a number")
        answers.append(
            Answer(
                annotator=annotator,
                image=image,
                answer=texts["answer"],
                skip=texts["skip"],
                seconds=None if seconds is None else round(float(seconds), 3),
                event=texts["event"] or "",
                action=texts["action"] or "",
                undoes=texts["undoes"] or "",
                role=role,
            )
        )
    return answers


def _thumbnail(path: Path, version: str) -> tuple[bytes, str]:
    """A small picture of the image for the grid, and its media type."""
    with Image.open(path, formats=("PNG",)) as image:
        if max(image.size) <= THUMBNAIL_PIXELS:
            return path.read_bytes(), "image/png"
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.BOX)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), "image/jpeg"
