"""Images from outside of the pool that a person gave a class, on the service's upload page.

RUN/labelling/uploads/
    images/NUMBER.png     the picture as it was uploaded, numbered from 0
    images/NUMBER.json    its name and the digest of its pixels, written last
    answers.jsonl         one line per answer (`log.py`); the image is its number, the latest counts
    round_NNN.json        what the round trains on, by number; later answers count from the next one

The same picture uploaded again keeps its number, so a change of mind is one more line.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock
from PIL import Image

from data_sources.image_file import decode, read_picture
from errors import UserError
from labelling.log import ANSWERS_FILE, Answer, AnswerLog
from reporting.files import write_atomically

FOLDER, IMAGES = "uploads", "images"
TEXTS = re.compile(rf"{FOLDER}/({re.escape(ANSWERS_FILE)}|{IMAGES}/[0-9]{{1,9}}\.(png|json))")
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
        path = self._round_path(round_)
        if (self._folder / ANSWERS_FILE).exists() and not path.exists():
            content = {str(one.number): one.class_name for one in self.labelled()}
            write_atomically(path, json.dumps(content, ensure_ascii=False) + "\n")
        return self.noted(round_)

    def noted(self, round_: int) -> list[Upload]:
        """What `closed` has given for a round; nothing if it was not called.

        Raises:
            UserError: a file is damaged.
        """
        path = self._round_path(round_)
        if not path.exists():
            return []
        uploads = {one.number: one for one in self.labelled()}
        try:
            classes = json.loads(path.read_text(encoding="utf-8"))
            return [
                replace(uploads[int(number)], class_name=name) for number, name in classes.items()
            ]
        except (OSError, ValueError, LookupError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error}); put it back from a copy") from error

    def texts(self, size: int) -> dict[str, str]:
        """The log, the pictures' names and the pictures, by path below the run's `labelling`.

        The pictures are in base64, at the size at which the network sees them, which changes
        nothing that a run trains on.

        Args:
            size: side of the network's images, in pixels.

        Raises:
            UserError: a file is damaged.
        """
        log = self._folder / ANSWERS_FILE
        if not log.exists():
            return {}
        files = {f"{FOLDER}/{ANSWERS_FILE}": log.read_text(encoding="utf-8")}
        for one in self.labelled():
            picture = decode(one.path, size).pixels
            file = io.BytesIO()
            Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(
                file, "PNG"
            )
            place = f"{FOLDER}/{IMAGES}/{one.number}"
            files[f"{place}.png"] = base64.b64encode(file.getvalue()).decode()
            files[f"{place}.json"] = one.path.with_suffix(".json").read_text(encoding="utf-8")
        return files

    def write_texts(self, files: Mapping[str, str]) -> None:
        """Write what `texts` returned; every other path is passed over."""
        known = {path: text for path, text in files.items() if TEXTS.fullmatch(path)}
        for path, text in known.items():
            target = self._folder.parent / path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = base64.b64decode(text) if target.suffix == ".png" else text
            write_atomically(target, content)

    def _round_path(self, round_: int) -> Path:
        return self._folder / f"round_{round_:03d}.json"

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
