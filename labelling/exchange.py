"""Labels in and out: CSV, and Label Studio's JSON, both ways.

A file is imported as a whole or not at all: whatever is wrong with it is one UserError that names
the line. Label Studio's format: https://labelstud.io/guide/export.html (JSON) and
https://labelstud.io/guide/tasks.html (tasks with predictions).
"""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from xml.sax.saxutils import quoteattr

from data_sources.separated import file_key, separator, without_hint
from errors import UserError
from labelling.batch import Batch
from labelling.log import SKIP_REASONS, Answer
from labelling.outcome import tally
from labelling.settings import LabellingSettings

CSV_COLUMNS = ("index", "file", "label", "skip", "annotator", "role", "seconds", "time")
# A spreadsheet runs a cell that begins with one of these as a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
NOTHING_IMPORTED = "nothing was imported"


# --- CSV ----------------------------------------------------------------------------------------


def csv_of_answers(batch: Batch, lines: Sequence[Answer]) -> str:
    """Every annotator's answer to every image of `batch`; an image without one has an empty row.

    Cells that a spreadsheet would run as a formula begin with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    votes = tally(batch, lines, LabellingSettings()).votes
    for item in batch.images:
        of_image: list[Answer | None] = [*votes[item.index].values()]
        for vote in of_image or [None]:
            row: list[Any] = [item.index, item.source]
            if vote is not None:
                row += [vote.answer, vote.skip, vote.annotator, vote.role, vote.seconds, vote.time]
            writer.writerow([_safe(cell) for cell in row + [None] * (len(CSV_COLUMNS) - len(row))])
    return text.getvalue()


def answers_from_csv(text: str, batch: Batch, annotator: str) -> list[Answer]:
    """The answers in a CSV file with the columns `label` and `index` or `file`.

    Commas, semicolons or tabs part the columns, and Windows may write the names of files.

    A row without label and `skip` is passed over, so an exported file can be filled in.

    Args:
        annotator: whose answers these are, where the file has no column `annotator`.

    Raises:
        UserError: a file name or class that the batch does not know, an image twice, or a file
            that is no such CSV; the message names the line.
    """
    text = text.removeprefix("\ufeff")
    table = without_hint(text)
    first_line = 1 + (len(table) < len(text))
    parts = separator(table.partition("\n")[0])
    reader = csv.reader(io.StringIO(table, newline=""), strict=True, delimiter=parts)
    find = _Finder(batch)
    answers: list[Answer] = []
    seen: dict[tuple[int, str], int] = {}
    line = first_line
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if "label" not in header or not {"index", "file"} & set(header):
            raise UserError("needs the columns label and index or file, in its first line")
        named = [name for name in header if name]  # a spreadsheet may add empty columns
        if len(set(named)) != len(named):
            raise UserError(f"has a column twice ({', '.join(header)}); remove one")
        line = reader.line_num + first_line
        for cells in reader:
            if len(cells) not in (0, len(header)):
                raise UserError(f"has {len(cells)} cells, the first line {len(header)}; mend it")
            row = {name: _unsafe(cell) for name, cell in zip(header, cells, strict=False)}
            label, skip = row.get("label", "").strip(), row.get("skip", "").strip()
            if label or skip:
                image = find.by_row(row.get("index", "").strip(), row.get("file", "").strip())
                name = row.get("annotator", "").strip() or annotator
                answers.append(_imported(batch, image, name, label or None, skip or None))
                _refuse_second(seen, image, name, line)
            line = reader.line_num + first_line
    except (UserError, csv.Error) as error:
        raise UserError(f"CSV line {line}: {error}; {NOTHING_IMPORTED}") from error
    return _as_one_import(answers, "CSV")


def _safe(cell: Any) -> str:
    text = "" if cell is None else str(cell)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _unsafe(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULA_STARTS) else cell


# --- Label Studio -------------------------------------------------------------------------------


def label_studio_config(batch: Batch) -> str:
    """The labelling interface to paste into a Label Studio project, for `label_studio_tasks`."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in batch.class_names)
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <Choices name="label" toName="image" choice="single">\n{choices}\n  </Choices>\n'
        "</View>\n"
    )


def label_studio_tasks(batch: Batch, lines: Sequence[Answer], image_root: str) -> str:
    """The batch as Label Studio's JSON: tasks with suggestions as predictions, and the answers.

    Args:
        image_root: what stands before INDEX.png in the image's address, for example
            `/data/local-files/?d=images/`.
    """
    votes = tally(batch, lines, LabellingSettings()).votes
    tasks = []
    for item in batch.images:
        task: dict[str, Any] = {
            "id": item.index,
            "data": {
                "image": f"{image_root}{item.index}.png",
                "index": item.index,
                "source": item.source,
            },
            "annotations": [_annotation(v) for v in votes[item.index].values()],
        }
        if item.suggested is not None:
            prediction = {"result": [_choice(batch.class_names[item.suggested])]}
            if item.probability is not None:
                prediction["score"] = item.probability  # type: ignore[assignment]
            task["predictions"] = [{"model_version": f"round {batch.round}", **prediction}]
        tasks.append(task)
    return json.dumps(tasks, indent=1, ensure_ascii=False) + "\n"


def answers_from_label_studio(text: str, batch: Batch, annotator: str) -> list[Answer]:
    """The annotations of a Label Studio export in JSON.

    An annotation that was cancelled, which is Label Studio's skip, means `unsure` unless its own
    `skip` gives another reason.

    Args:
        annotator: whose answers these are, where an annotation does not say.

    Raises:
        UserError: as `answers_from_csv`; the line is the one where the task begins.
    """
    find = _Finder(batch)
    answers: list[Answer] = []
    seen: dict[tuple[int, str], int] = {}
    line = 1
    try:
        for line, task in _tasks(text):
            data = task.get("data")
            if not isinstance(data, dict):
                raise UserError("the task has no data; export it from Label Studio as JSON")
            # An image's address holds its file name, whatever stands before it.
            file = str(data.get("source") or PurePosixPath(str(data.get("image", ""))).name)
            image = find.by_row(str(data.get("index", "")), file)
            for values in task.get("annotations") or ():
                name = _who(values.get("completed_by")) or annotator
                label, skip = _meaning(values)
                if label is None and skip is None:
                    continue
                seconds = values.get("lead_time")
                answers.append(_imported(batch, image, name, label, skip, seconds))
                _refuse_second(seen, image, name, line)
    # RecursionError: lists nested too deeply.
    except (
        UserError, ValueError, TypeError, AttributeError, LookupError, RecursionError
    ) as error:  # fmt: skip
        if isinstance(error, json.JSONDecodeError):
            line = error.lineno
        raise UserError(f"Label Studio JSON line {line}: {error}; {NOTHING_IMPORTED}") from error
    return _as_one_import(answers, "JSON")


def _tasks(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each task of a JSON list, with the number of the line that it begins in."""
    decoder = json.JSONDecoder()
    position = _after_space(text, 0)
    if text[position : position + 1] != "[":
        raise UserError("is no list of tasks; export from Label Studio as JSON")
    position = _after_space(text, position + 1)
    while text[position : position + 1] != "]":
        line = text.count("\n", 0, position) + 1
        task, position = decoder.raw_decode(text, position)
        if not isinstance(task, dict):
            raise UserError(f"line {line} holds no task; export from Label Studio as JSON")
        yield line, task
        position = _after_space(text, position)
        if text[position : position + 1] == ",":
            position = _after_space(text, position + 1)
        elif text[position : position + 1] != "]":
            raise json.JSONDecodeError("expected ',' or ']'", text, position)


def _after_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n\ufeff":
        position += 1
    return position


def _choice(name: str) -> dict[str, Any]:
    return {
        "from_name": "label",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": [name]},
    }


def _annotation(vote: Answer) -> dict[str, Any]:
    return {
        "completed_by": {"email": vote.annotator},
        "created_at": vote.time,
        "lead_time": vote.seconds,
        "was_cancelled": vote.skip is not None,
        "skip": vote.skip,
        "result": [] if vote.answer is None else [_choice(vote.answer)],
    }


def _who(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("email") or value.get("username") or value.get("id")
    return None if value is None else str(value)


def _meaning(annotation: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The class name or the skip reason of an annotation; neither where it is empty."""
    if annotation.get("was_cancelled"):
        return None, str(annotation.get("skip") or SKIP_REASONS[0])
    names = [
        name
        for result in annotation.get("result") or ()
        if result.get("type") == "choices"
        for name in result["value"]["choices"]
    ]
    if len(names) > 1:
        raise UserError(f"the annotation has {len(names)} classes ({', '.join(names)}); give one")
    return (str(names[0]) if names else None), None


# --- both ---------------------------------------------------------------------------------------


class _Finder:
    """Finds images of a batch by dataset index, by source, or by a file name that is there once."""

    def __init__(self, batch: Batch) -> None:
        self._indices = {item.index for item in batch.images}
        self._by_file: dict[str, int | None] = {}
        for item in batch.images:
            names = (item.source, PurePosixPath(item.source).name, f"{item.index}.png")
            for name in set(map(file_key, names)):
                # None: several images are called so.
                self._by_file[name] = None if name in self._by_file else item.index
        for item in batch.images:
            self._by_file[file_key(item.source)] = item.index

    def by_row(self, index: str, file: str) -> int:
        key = file_key(file)
        if index:
            if not index.isdecimal() or int(index) not in self._indices:
                raise UserError(f"index {index!r}: is not in this batch; remove the line")
            if file and self._by_file.get(key, int(index)) not in (int(index), None):
                raise UserError(f"file {file!r}: is not image {index}; give one of the two")
            return int(index)
        if key not in self._by_file:
            raise UserError(f"file {file!r}: is not in this batch; remove the line")
        found = self._by_file[key]
        if found is None:
            raise UserError(f"file {file!r}: several images are called so; give the index")
        return found


def _imported(
    batch: Batch,
    image: int,
    annotator: str,
    label: str | None,
    skip: str | None,
    seconds: float | None = None,
) -> Answer:
    if label is not None:
        batch.class_index(label)
    return Answer(annotator, image, label, skip, seconds)


def _refuse_second(seen: dict[tuple[int, str], int], image: int, annotator: str, line: int) -> None:
    first = seen.setdefault((image, annotator), line)
    if first != line:
        raise UserError(f"image {image}: {annotator} labels it in line {first} already; remove one")


def _as_one_import(answers: Sequence[Answer], kind: str) -> list[Answer]:
    """The same answers, marked so that a reader counts all of them or none."""
    if not answers:
        raise UserError(f"{kind}: holds no label; {NOTHING_IMPORTED}")

    key = uuid.uuid4().hex
    return [replace(answer, imported=(key, len(answers)), action=key) for answer in answers]
