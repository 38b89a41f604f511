"""Import and export of labels: CSV and Label Studio's JSON."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import UserError
from labelling.batch import Batch, BatchImage
from labelling.exchange import (
    answers_from_csv,
    answers_from_label_studio,
    csv_of_answers,
    label_studio_config,
    label_studio_tasks,
)
from labelling.log import Answer, AnswerLog
from labelling.outcome import tally
from labelling.settings import LabellingSettings
from tests.labelling_runs import CLASSES, made_up_batch, made_up_run

BATCH = made_up_batch(4)
LINES = [
    Answer("ann", 0, "tumour", seconds=1.5, time="2026-01-01T00:00:00.000+00:00"),
    Answer("ben", 0, "debris"),
    Answer("ann", 1, skip="unusable"),
    Answer("ann", 2, "tumour"),
    Answer("ann", 2),
]


def meanings(lines: list[Answer]) -> dict[int, dict[str, tuple[str | None, str | None]]]:
    return {
        image: {name: (vote.answer, vote.skip) for (_, name), vote in votes.items()}
        for image, votes in tally(BATCH, lines, LabellingSettings()).votes.items()
        if votes
    }


def test_csv_goes_both_ways() -> None:
    text = csv_of_answers(BATCH, LINES)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["label"] for row in rows] == ["tumour", "debris", "", "", ""]
    assert rows[0]["file"] == "slide/00000.png"
    assert meanings(answers_from_csv(text, BATCH, "zoe")) == meanings(LINES)


def test_label_studio_goes_both_ways() -> None:
    text = label_studio_tasks(BATCH, LINES, "/data/local-files/?d=images/")
    tasks = json.loads(text)
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=images/0.png"
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {"choices": ["lymphocyte"]}
    assert tasks[1]["annotations"][0]["was_cancelled"]
    assert meanings(answers_from_label_studio(text, BATCH, "zoe")) == meanings(LINES)
    assert '<Choice value="tumour"/>' in label_studio_config(BATCH)


def test_what_label_studio_exports_is_read() -> None:
    """The shape of Label Studio's own export: users by number, file names with a prefix's path."""
    text = json.dumps(
        [
            {
                "id": 77,
                "data": {"image": "/data/upload/3/00002.png"},
                "annotations": [
                    {
                        "id": 5,
                        "completed_by": 1,
                        "was_cancelled": False,
                        "lead_time": 3.2,
                        "result": [
                            {
                                "id": "x",
                                "type": "choices",
                                "value": {"choices": ["tumour"]},
                                "from_name": "label",
                                "to_name": "image",
                            }
                        ],
                    },
                    {"id": 6, "completed_by": 2, "was_cancelled": True, "result": []},
                    {"id": 7, "completed_by": 3, "was_cancelled": False, "result": []},
                ],
                "predictions": [],
            }
        ]
    )
    answers = answers_from_label_studio(text, BATCH, "zoe")
    assert meanings(answers) == {2: {"1": ("tumour", None), "2": (None, "unsure")}}
    assert answers[0].seconds == 3.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index,label\n0,tumour\n9,tumour\n", "line 3: index '9': is not in this batch"),
        ("file,label\nnone.png,tumour\n", "line 2: file 'none.png': is not in this batch"),
        ("file,label\nslide/00001.png,stroma\n", "line 2: class 'stroma': is not in the class"),
        ("index,label\n0,tumour\n1,tumour\n0,debris\n", "line 4: image 0: zoe labels it in line 2"),
        ("index,skip,label\n0,tired,\n", "line 2: skip reason 'tired'"),
        ("label\ntumour\n", "line 1: needs the columns"),
        ("index,label,label\n0,a,b\n", "line 1: has a column twice"),
        ("", "line 1: needs the columns"),
        ("index,label\n0\n", "line 2: has 1 cells"),
        ('index,label\n0,"tumour\n', "line 2"),
        ('index,label\n1,"tumour"\n0,"a"b\n', "line 3"),
        ("index,file,label\n1,slide/00002.png,tumour\n", "line 2: file 'slide/00002.png': is not"),
        ("index,label\n", "holds no label"),
        ('file,label\n"a\nb",tumour\n', "line 2: file"),
    ],
)
def test_a_bad_csv_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match="nothing was imported") as caught:
        answers_from_csv(text, BATCH, "zoe")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "line 1: is no list"),
        ("", "line 1: is no list"),
        ('[\n{"data": {"image": "x/none.png"}}\n]', "line 2: file 'none.png'"),
        ('[\n\n{"data": 3}]', "line 3: the task has no data"),
        ("[\n7]", "line 2"),
        ('[\n{"data": {"index": 0}},\n{"data": {"index": 1}', "line 3"),
        ('[{"data": {"index": 0}, "annotations": 5}]', "line 1"),
        ("[" * 100_000, "line 1"),
    ],
)
def test_bad_json_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match="nothing was imported") as caught:
        answers_from_label_studio(text, BATCH, "zoe")
    assert message in str(caught.value)


def test_json_with_an_unknown_class_names_the_line_of_its_task() -> None:
    text = label_studio_tasks(BATCH, LINES, "").replace('"tumour"', '"stroma"')
    with pytest.raises(UserError, match="line 2: class 'stroma'"):
        answers_from_label_studio(text, BATCH, "zoe")


@given(st.text(max_size=60))
def test_any_text_is_imported_or_refused(text: str) -> None:
    for read in (answers_from_csv, answers_from_label_studio):
        for prefix in ("", "index,label\n", "file,label\n", '[{"data":'):
            with contextlib.suppress(UserError):
                assert read(prefix + text, BATCH, "zoe")


@pytest.mark.parametrize("start", list("=+-@\t\r"))
def test_no_cell_runs_as_a_formula_in_a_spreadsheet(start: str) -> None:
    name = f"{start}HYPERLINK(1).png"
    batch = Batch(0, "random", (f"{start}1", "b"), (BatchImage(0, name),))
    text = csv_of_answers(batch, [Answer("ann", 0, f"{start}1")])
    row = next(csv.DictReader(io.StringIO(text)))
    assert all(not cell.startswith(tuple("=+-@\t\r")) for cell in row.values())
    if start not in "\t\r":  # which no file name that a person types has
        assert answers_from_csv(text, batch, "zoe")[0].answer == f"{start}1"


def test_an_ambiguous_file_name_needs_the_index() -> None:
    images = tuple(
        dataclasses.replace(item, source=f"{item.index}/tile.png") for item in BATCH.images
    )
    batch = dataclasses.replace(BATCH, images=images)
    assert answers_from_csv("file,label\n2/tile.png,tumour\n", batch, "zoe")[0].image == 2
    with pytest.raises(UserError, match="several images are called so"):
        answers_from_csv("file,label\ntile.png,tumour\n", batch, "zoe")


def test_an_import_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 4)
    log = AnswerLog(folder)
    log.append(answers_from_csv("index,label\n0,tumour\n1,tumour\n2,tumour\n", BATCH, "zoe"))
    assert len(AnswerLog(folder).read()) == 3
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:2]))
    assert AnswerLog(folder).read() == []
    assert BATCH.class_names == CLASSES
