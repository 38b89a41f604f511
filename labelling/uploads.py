"""Images from outside of the pool that a person gave a class, on the service's upload page.

RUN/labelling/uploads/
    images/NUMBER.png     the picture as it was uploaded, numbered from 0
    images/NUMBER.json    its name and the digest of its pixels, written last
    answers.jsonl         one line per answer (`log.py`); the image is its number, the latest counts
    round_NNN.json        what the round trains on, by number; later answers count from the next one

The same picture uploaded again keeps its number, so a change of mind is one more line.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock
from PIL import Image

from data_sources.image_file import read_picture
from errors import UserError
from labelling.log import ANSWERS_FILE, Answer, AnswerLog
from reporting.files import write_atomically

FOLDER, IMAGES = "uploads", "images"
LONGEST_NAME = 300


@dataclass(frozen=True)
class Upload:
    """One picture that has a class.

    Attributes:
        number: from 0, in the order in which they came.
        path: of its PNG.
        source: the name under which it was uploaded.
        class_name: by the latest answer.
        annotator: who gave that.
    """

    number: int
    path: Path
    source: str
    class_name: str
    annotator: str


class Uploads:
    """The uploads of one run. Several processes may each have one.

    Args:
        run: the run folder; nothing is written before the first `add`.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / "labelling" / FOLDER
        self._images = self._folder / IMAGES

    def add(self, png: bytes, source: str, class_name: str, annotator: str) -> int:
        """Give a picture a class; it is on the disk when this returns.

        Args:
            png: the picture, from the service's own decoder.
            source: its name.

        Returns:
            Its number.

        Raises:
            UserError: the annotator's name cannot be used, or the folder cannot be written.
        """
        picture = read_picture(io.BytesIO(png), name=source)
        try:
            self._images.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / ".lock"):
                number = self._number(picture, source)
                answer = Answer(annotator=annotator, image=number, answer=class_name)
                AnswerLog(self._folder).append([answer])
        except OSError as error:
            raise UserError(
                f"{self._folder}: cannot be written ({error.strerror or error}); free space or "
                "mend the permissions"
            ) from error
        return number

    def labelled(self) -> list[Upload]:
        """All uploads whose latest answer is a class, by number.

        Raises:
            UserError: the log or a file beside it is damaged.
        """
        latest = {line.image: line for line in AnswerLog(self._folder).read()}
        return [
            Upload(number, self._path(number), self._facts(number)[0], line.answer, line.annotator)
            for number, line in sorted(latest.items())
            if line.answer is not None
        ]

    def closed(self, round_: int) -> list[Upload]:
        """The uploads that a round trains on: those that had a class when it was first asked.

        Raises:
            UserError: a file is damaged or cannot be written.
        """
        path = self._folder / f"round_{round_:03d}.json"
        if not (self._folder / ANSWERS_FILE).exists():
            return []
        uploads = {one.number: one for one in self.labelled()}
        if not path.exists():
            content = {str(number): one.class_name for number, one in uploads.items()}
            write_atomically(path, json.dumps(content, ensure_ascii=False) + "\n")
        try:
            classes = json.loads(path.read_text(encoding="utf-8"))
            return [
                replace(uploads[int(number)], class_name=name) for number, name in classes.items()
            ]
        except (OSError, ValueError, LookupError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error}); put it back from a copy") from error

    def _number(self, picture: Image.Image, source: str) -> int:
        """The picture's number; it is written first where it is new."""
        digest = hashlib.blake2b(picture.tobytes(), digest_size=16)
        digest.update(repr((picture.mode, picture.size)).encode())
        numbers = sorted(int(path.stem) for path in self._images.glob("*.json"))
        for number in numbers:
            if self._facts(number)[1] == digest.hexdigest():
                return number
        number = len(numbers)
        file = io.BytesIO()
        picture.save(file, "PNG")
        write_atomically(self._path(number), file.getvalue())
        facts = {"source": source[:LONGEST_NAME], "blake2b": digest.hexdigest()}
        write_atomically(self._path(number).with_suffix(".json"), json.dumps(facts) + "\n")
        return number

    def _facts(self, number: int) -> tuple[str, str]:
        """The name and the digest of an upload."""
        path = self._path(number).with_suffix(".json")
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            return str(facts["source"]), str(facts["blake2b"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path}: missing or damaged ({error}); put it back") from error

    def _path(self, number: int) -> Path:
        return self._images / f"{number}.png"
