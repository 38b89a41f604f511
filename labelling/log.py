"""answers.jsonl: an append-only log of one line per answer.

A line is written under a lock and fsynced before anyone hears that it is saved. Nothing is ever
changed or removed: the latest line of an annotator about an image counts, and undoing writes a line
without an answer. A kill in the middle of a write leaves half a line, which nobody was told of; the
next write drops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from errors import UserError
from labelling.settings import check_annotator

ANSWERS_FILE, CLOSED_FILE = "answers.jsonl", "closed.json"
SKIP_REASONS = ("unsure", "unusable", "not in the class list")
ANNOTATOR, ADJUDICATOR = "annotator", "adjudicator"
LONGEST_ID = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One line of the log.

    Attributes:
        annotator: who answered.
        image: dataset index.
        answer: class name; None with `skip` None too: an earlier answer is withdrawn.
        skip: one of `SKIP_REASONS`, in place of an answer.
        seconds: that the annotator spent on the image.
        time: when it was saved, ISO 8601 in UTC.
        event: an id chosen by the sender; a line with an id that is there already is not added.
        action: an id that the answers of one key press or click share, for undoing them together.
        undoes: id of the action that this line takes back.
        role: annotator or adjudicator.
        old: of a correction, the class name that had counted until then.
        imported: id and size of the import that this line belongs to; lines of an import that is
            not complete do not count.
    """

    annotator: str
    image: int
    answer: str | None = None
    skip: str | None = None
    seconds: float | None = None
    time: str = ""
    event: str = ""
    action: str = ""
    undoes: str = ""
    role: str = ANNOTATOR
    old: str | None = None
    imported: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        check_annotator(self.annotator)
        if self.answer is not None and self.skip is not None:
            raise UserError(
                f"image {self.image}: has an answer and a skip reason; give one of them"
            )
        if self.skip is not None and self.skip not in SKIP_REASONS:
            raise UserError(
                f"skip reason {self.skip!r}: is not known; give one of {', '.join(SKIP_REASONS)}"
            )
        if self.role not in (ANNOTATOR, ADJUDICATOR):
            raise UserError(f"role {self.role!r}: is not known; give {ANNOTATOR} or {ADJUDICATOR}")
        if max(len(self.event), len(self.action), len(self.undoes)) > LONGEST_ID:
            raise UserError(f"event: an id is longer than {LONGEST_ID} characters; shorten it")
        # Written as `not <=` so that NaN is refused too.
        if self.seconds is not None and not 0 <= self.seconds <= 86400:
            raise UserError(f"seconds: {self.seconds} is no time for one image; give 0 to 86400")

    @property
    def withdrawn(self) -> bool:
        """Whether the line takes an earlier answer back."""
        return self.answer is None and self.skip is None


class ClosedError(UserError):
    """The batch is closed: what comes now is a correction."""


class AnswerLog:
    """The log of the batch in `folder`. It reads what is new since its last call, and no more.

    Several processes may each have one of the same folder; one object serves one thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / ANSWERS_FILE
        self._forget()

    def append(self, answers: Sequence[Answer], corrections: bool = False) -> list[Answer]:
        """Add `answers`; they are on the disk when this returns.

        Answers whose event id is in the log already are passed over, so a sender may repeat a call
        whose outcome it did not hear of.

        Args:
            corrections: the answers correct a closed batch. Without it, a closed batch refuses.

        Returns:
            The lines that were added, with their time.

        Raises:
            ClosedError: the learner has taken the batch's answers already.
            UserError: the log is damaged or cannot be written.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        try:
            with self.locked() as file:
                if not corrections and (self.folder / CLOSED_FILE).exists():
                    raise ClosedError(
                        f"{self.folder.name}: its answers are in training already; send a "
                        "correction instead"
                    )
                self._read_new(file)
                added = [
                    replace(answer, time=now)
                    for answer in answers
                    if not answer.event or answer.event not in self._events
                ]
                if added:
                    file.write("".join(map(_line, added)).encode())
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); free space, mend the "
                "permissions, or move the run to a file system that has locks"
            ) from error
        return added

    def read(self) -> list[Answer]:
        """All lines that count, in order; empty where nobody has answered.

        Raises:
            UserError: a line is damaged.
        """
        try:
            with self.path.open("rb") as file:
                self._read_new(file)
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from error
        return _complete_imports(self._answers)

    @contextlib.contextmanager
    def locked(self) -> Iterator[BinaryIO]:
        """The file, open for reading and appending; no other process writes to it meanwhile."""
        is_new = not self.path.exists()
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # closing the file releases it
            if is_new:  # the file's name has to outlive a power cut, too
                _sync_folder(self.folder)
            self._drop_half_line(file)
            yield file

    def _forget(self) -> None:
        self._answers: list[Answer] = []
        self._events: set[str] = set()
        self._position = 0  # in the file, after the last line that was read
        self._lines = 0

    def _read_new(self, file: BinaryIO) -> None:
        if file.seek(0, os.SEEK_END) < self._position:  # somebody has put back an older file
            self._forget()
        file.seek(self._position)
        content = file.read()
        # What follows the last newline is no line yet.
        for line in content.split(b"\n")[:-1]:
            self._lines += 1
            try:
                answer = _answer(json.loads(line))
            except (ValueError, TypeError, KeyError, UserError) as error:
                number = self._lines
                self._forget()
                raise UserError(
                    f"{self.path} line {number}: damaged ({error}); put the file back from a copy, "
                    "or remove the line"
                ) from error
            self._answers.append(answer)
            if answer.event:
                self._events.add(answer.event)
        self._position += content.rfind(b"\n") + 1

    def _drop_half_line(self, file: BinaryIO) -> None:
        end = file.seek(0, os.SEEK_END)
        file.seek(min(self._position, end))
        content = file.read()
        whole = end - len(content) + content.rfind(b"\n") + 1
        if whole < end:
            logger.warning("%s: dropped half a line, which nobody was told is saved", self.path)
            file.truncate(whole)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _answer(values: Mapping[str, Any]) -> Answer:
    imported = values.get("imported")
    return Answer(**{**values, "imported": tuple(imported) if imported else None})


def _line(answer: Answer) -> str:
    """The line; what has no value is left out, but for the parts that every line has."""
    always = ("annotator", "image", "answer", "skip", "seconds", "time")
    values = {name: value for name, value in asdict(answer).items() if name in always or value}
    if values.get("role") == ANNOTATOR:
        del values["role"]
    return json.dumps(values, ensure_ascii=False) + "\n"


def _complete_imports(answers: list[Answer]) -> list[Answer]:
    sizes: dict[str, int] = {}
    for answer in answers:
        if answer.imported:
            sizes[answer.imported[0]] = sizes.get(answer.imported[0], 0) + 1
    return [a for a in answers if not a.imported or sizes[a.imported[0]] == a.imported[1]]
