"""The HTTP interface of the labelling page, without a browser."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from labelling.batch import batch_folder, write_batch
from labelling.log import Answer, AnswerLog
from labelling.outcome import close_batch, corrections, read_answers
from labelling.settings import LabellingSettings, write_settings
from tests.labelling_runs import made_up_batch, made_up_run
from tools.label.__main__ import main
from tools.label.api import label_application
from tools.label.desk import Desk
from tools.label.report import curve, wilson_interval
from tools.label.training import Training
from web.access import Access

BASE = "http://127.0.0.1:8700"


def client(run: Path) -> TestClient:
    access = Access.for_address("127.0.0.1", 8700, max_body_bytes=100_000)
    app = label_application(Desk(run), Training(run), access)
    return TestClient(app, base_url=BASE, raise_server_exceptions=False)


def save(page: TestClient, *answers: dict[str, Any], **more: Any) -> Any:
    body = {"batch": "round_000", "annotator": "ann", "answers": list(answers), **more}
    return page.post("/api/answers", json=body)


def test_an_answer_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 3)
    page = client(tmp_path)
    answer = {"image": 0, "answer": "tumour", "event": "e", "seconds": 1.25}
    assert save(page, answer).json() == {"saved": True}
    assert save(page, answer).json() == {"saved": True}  # a repeated request
    (line,) = AnswerLog(folder).read()
    assert (line.annotator, line.image, line.answer, line.seconds) == ("ann", 0, "tumour", 1.25)
    found = page.get("/api/batch?annotator=ann").json()
    assert found["batch"] == "round_000"
    assert [own["answer"] for own in found["own"]] == ["tumour"]
    changes = page.get("/api/changes?batch=round_000&annotator=ben&since=0").json()
    assert changes["own"] == []
    assert changes["outcomes"] == [[0, "labelled", "tumour", None, []]]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"image": 9, "answer": "tumour"}], "image 9: is not in round_000"),
        ([{"image": "0", "answer": "tumour"}], "no dataset index"),
        ([{"image": True}], "no dataset index"),
        ([{"image": 0, "answer": "stroma"}], "class 'stroma': is not in the class list"),
        ([{"image": 0, "answer": 1}], "answer: 1 is no text"),
        ([{"image": 0, "skip": "tired"}], "skip reason 'tired'"),
        ([{"image": 0, "answer": "tumour", "skip": "unsure"}], "give one of them"),
        ([{"image": 0, "seconds": "3"}], "no number"),
        ([{"image": 0, "seconds": -3}], "no time"),
        ([7], "no answer"),
        ("x", "no list"),
        (None, "no list"),
        ([{"image": 0}] * 2001, "at most 2000"),
    ],
)
def test_bad_answers_are_refused_as_a_whole(tmp_path: Path, answers: Any, message: str) -> None:
    folder = made_up_run(tmp_path, 3)
    page = client(tmp_path)
    good = {"image": 1, "answer": "tumour"}
    both = [good, *answers] if isinstance(answers, list) else answers
    reply = page.post(
        "/api/answers", json={"batch": "round_000", "annotator": "ann", "answers": both}
    )
    assert reply.status_code == 400
    assert message in reply.json()["error"]
    assert AnswerLog(folder).read() == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 50_000, b"null", b"\xff"])
def test_a_body_that_is_no_request_is_refused(tmp_path: Path, body: bytes) -> None:
    made_up_run(tmp_path, 3)
    assert client(tmp_path).post("/api/answers", content=body).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/api/images/round_000/99.png",
        "/api/images/round_001/0.png",
        "/api/images/..%2F..%2Fround_000/0.png",
        "/api/images/round_000/..%2fbatch.json",
        "/api/thumbnails/settings.json/0",
        "/api/batch?annotator=ann&batch=../../etc",
        "/api/export/round_000.exe",
        "/static/../desk.py",
        "/static/%2e%2e/desk.py",
    ],
)
def test_nothing_but_the_batches_can_be_read(tmp_path: Path, path: str) -> None:
    made_up_run(tmp_path, 3)
    assert client(tmp_path).get(path).status_code == 404


def test_images_are_served_as_they_are_and_small_ones_for_the_grid(tmp_path: Path) -> None:
    made_up_run(tmp_path, 1, pixels=300)
    page = client(tmp_path)
    original = page.get("/api/images/round_000/0.png")
    small = page.get("/api/thumbnails/round_000/0")
    assert original.headers["content-type"] == "image/png"
    assert small.headers["content-type"] == "image/jpeg"
    assert "immutable" in small.headers["cache-control"]


def test_another_site_and_a_large_body_are_refused(tmp_path: Path) -> None:
    made_up_run(tmp_path, 3)
    page = client(tmp_path)
    evil = {"origin": "http://evil.example"}
    assert page.post("/api/answers", json={}, headers=evil).status_code == 403
    assert page.post("/api/answers", content=b"x" * 100_001).status_code == 413


def test_a_closed_batch_takes_corrections_only(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 2)
    AnswerLog(folder).append([Answer("ann", 0, "tumour"), Answer("ann", 1, skip="unsure")])
    close_batch(folder)
    page = client(tmp_path)
    late = save(page, {"image": 0, "answer": "debris"})
    assert (late.status_code, late.json()["closed"]) == (409, True)
    body = {"batch": "round_000", "annotator": "ben"}
    good = {**body, "answers": [{"image": 0, "answer": "debris"}]}
    assert page.post("/api/corrections", json=good).status_code == 200
    assert corrections(tmp_path) == {0: 0}
    for bad in ({"image": 1, "answer": "debris"}, {"image": 0, "skip": "unsure"}):
        assert page.post("/api/corrections", json={**body, "answers": [bad]}).status_code == 400
    found = page.get("/api/batch?annotator=cat&batch=round_000").json()
    assert found["closed"]
    assert found["labels"] == {"0": "debris"}


def test_the_next_open_batch_is_the_one_to_label(tmp_path: Path) -> None:
    first = made_up_run(tmp_path, 1)
    write_batch(batch_folder(tmp_path, 1), made_up_batch(2, 1))
    page = client(tmp_path)
    assert page.get("/api/batch?annotator=ann").json()["batch"] == "round_000"
    AnswerLog(first).append([Answer("ann", 0, "tumour")])
    close_batch(first)
    found = page.get("/api/batch?annotator=ann").json()
    assert found["batch"] == "round_001"
    assert [entry["closed"] for entry in found["batches"]] == [True, False]


def test_blind_mode_hides_what_others_and_the_network_say(tmp_path: Path) -> None:
    made_up_run(tmp_path, 2)
    write_settings(tmp_path, LabellingSettings(("ann", "ben"), 1.0, blind=True))
    page = client(tmp_path)
    save(page, {"image": 0, "answer": "tumour"}, annotator="ben")
    text = page.get("/api/batch?annotator=ann").text
    found = json.loads(text)
    assert all(image[2] is None and image[3] is None for image in found["images"])
    assert found["outcomes"][0][2] is None
    assert found["own"] == []
    save(page, {"image": 0, "answer": "debris"})
    votes = page.get("/api/batch?annotator=dora&role=adjudicator").json()["outcomes"][0][4]
    assert votes == [["", "tumour"], ["", "debris"]]  # without names


def test_only_the_named_annotators_label(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 2)
    write_settings(tmp_path, LabellingSettings(("ann", "ben"), 1.0))
    page = client(tmp_path)
    answer = {"image": 0, "answer": "tumour"}
    refused = save(page, answer, annotator="zoe")
    assert (refused.status_code, "one of ann, ben" in refused.json()["error"]) == (400, True)
    imported = page.post(
        "/api/import?batch=round_000&annotator=zoe&format=csv", content=b"index,label\n0,tumour\n"
    )
    assert imported.status_code == 400
    assert save(page, answer, annotator="zoe", role="adjudicator").status_code == 200
    assert [line.role for line in AnswerLog(folder).read()] == ["adjudicator"]


def test_training_needs_all_answers(tmp_path: Path) -> None:
    made_up_run(tmp_path, 2)
    reply = client(tmp_path).post("/api/train")
    assert (reply.status_code, "still wait" in reply.json()["error"]) == (400, True)


def test_import_and_export(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 3)
    page = client(tmp_path)
    address = "/api/import?batch=round_000&annotator=ann&format=csv"
    bad = page.post(address, content=b"index,label\n0,tumour\n7,tumour\n")
    assert bad.status_code == 400
    assert "line 3" in bad.json()["error"]
    assert AnswerLog(folder).read() == []
    good = page.post(address, content=b"index,label\n0,tumour\n2,debris\n")
    assert good.json() == {"imported": 2}
    assert read_answers(folder).labels == {0: 2, 2: 0}
    exported = page.get("/api/export/round_000.csv")
    assert "attachment" in exported.headers["content-disposition"]
    assert exported.text.splitlines()[1].startswith("0,slide/00000.png,tumour,,ann")
    tasks = page.get("/api/export/round_000.json").json()
    assert tasks[2]["annotations"][0]["result"][0]["value"] == {"choices": ["debris"]}
    assert page.get("/api/export/round_000.xml").text.startswith("<View>")
    binary = page.post(address, content=b"\xff\xfe")
    assert "UTF-8" in binary.json()["error"]
    assert page.post(address.replace("csv", "xls"), content=b"").status_code == 400


def test_examples_are_labelled_images_that_the_network_took_for_their_class(
    tmp_path: Path,
) -> None:
    folder = made_up_run(tmp_path, 30)
    AnswerLog(folder).append(
        [Answer("ann", index, made_up_batch(1).class_names[index % 3]) for index in range(30)]
    )
    assert client(tmp_path).get("/api/examples").json() == {}
    close_batch(folder)
    examples = client(tmp_path).get("/api/examples").json()
    assert set(examples) == {"debris", "lymphocyte", "tumour"}
    first = examples["debris"][0]
    assert first.startswith("/api/thumbnails/round_000/")
    index = int(first.split("/")[-1].split("?")[0])
    assert index % 4 != 0  # where the suggestion is wrong
    assert client(tmp_path).get(first).status_code == 200


def test_the_report_has_curve_counts_and_agreement(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 4)
    write_settings(tmp_path, LabellingSettings(("ann", "ben"), 1.0))
    lines = [
        Answer(name, i, "tumour" if i else "debris") for name in ("ann", "ben") for i in (0, 1)
    ]
    AnswerLog(folder).append(lines)
    (tmp_path / "metrics.csv").write_text(
        "round,labeled_samples,val_accuracy,val_images\n0,40,0.8,100\n1,60,,\n"
    )
    report = client(tmp_path).get("/api/report").json()
    assert report["class_counts"] == {"debris": 1, "tumour": 1}
    (point,) = report["curve"]  # the round in training has no accuracy yet
    assert point["labels"] == 40
    assert point["low"] < 0.8 < point["high"]
    assert report["agreement"][0]["kappa"] == 1.0
    assert report["agreement"][0]["images"] == 2
    assert curve(tmp_path / "nowhere") == []


def test_wilsons_interval() -> None:
    """Wilson 1927, as in Brown, Cai & DasGupta 2001: 8 of 10."""
    low, high = wilson_interval(0.8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(1.0, 20)[1] == 1.0
    assert wilson_interval(0.5, 0) == (0.0, 1.0)


def test_a_changed_file_of_answers_is_read_anew(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 3)
    page = client(tmp_path)
    save(page, {"image": 0, "answer": "tumour"}, {"image": 1, "answer": "tumour"})
    log = AnswerLog(folder).path
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:1]))
    found = page.get("/api/batch?annotator=ann").json()
    assert [own["image"] for own in found["own"]] == [0]


def test_the_command_refuses_what_cannot_be_labelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "asks for no labels" in capsys.readouterr().err
    made_up_run(tmp_path, 2)
    assert main([str(tmp_path), "--annotators", "ann", "--overlap", "0.5"]) == 2
    assert "two annotators" in capsys.readouterr().err
    assert main([str(tmp_path), "--port", "99999"]) == 2
    assert "--port 99999" in capsys.readouterr().err


def test_settings_that_change_count_at_once(tmp_path: Path) -> None:
    made_up_run(tmp_path, 2)
    page = client(tmp_path)
    save(page, {"image": 0, "answer": "tumour"})
    before = page.get("/api/batch?annotator=ann").json()
    write_settings(tmp_path, dataclasses.replace(LabellingSettings(("ann", "ben")), overlap=1.0))
    after = page.get("/api/batch?annotator=ann").json()
    assert before["states"] == {"labelled": 1, "waiting": 1}
    assert after["states"] == {"waiting": 2}
