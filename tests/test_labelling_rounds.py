"""Runs that people label: the same as simulated ones, resumed, from zero labels, corrected."""

from __future__ import annotations

import csv
import dataclasses
import io
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from active_learning import ActiveLearner
from data import Splits, load_splits
from errors import AWAITING_LABELS, OK, UserError
from labelling.batch import batch_folders, image_path, read_batch
from labelling.doubts import ask_again, read_doubts
from labelling.log import Answer, AnswerLog
from labelling.oracle import PeopleOracle
from labelling.outcome import close_batch
from labelling.uploads import Uploads
from local.run import Request, run_locally
from run_folder.checkpoint import read_tensors
from tests.conftest import ROOT, SMALL, ask
from tools.doubts import held_out_probabilities, main
from tools.label.api import label_application
from tools.label.desk import Desk
from tools.label.training import Training
from web.access import Access

NAME = "simulated"  # the annotator's, so that queries.csv is the same to the last letter
Decide = Callable[[int], str | None]


def request(run: Path, **settings: Any) -> Request:
    """A small run on the digits with these hyperparameters."""
    values = {**SMALL, "evaluation_size": 0, **settings}
    return Request(
        config=ROOT / "configs" / "digits.yaml",
        output_dir=run,
        settings=tuple(f"hyperparameters.{name}={value}" for name, value in values.items()),
    )


def resume(run: Path) -> int:
    return run_locally(Request(config=Path(), resume=run))


def label(run: Path, decide: Decide, annotator: str = NAME) -> int:
    """Answer the open batch over HTTP; None from `decide` skips the image. Returns its size."""
    access = Access.for_address("127.0.0.1", 8700)
    page = TestClient(label_application(Desk(run), Training(run), access), "http://127.0.0.1:8700")
    found = page.get(f"/api/batch?annotator={annotator}").json()
    answers = []
    for index, *_ in found["images"]:
        answer = decide(index)
        answers.append(
            {"image": index, "answer": answer, "skip": None if answer else "unusable", "seconds": 1}
        )
    body = {"batch": found["batch"], "annotator": annotator, "answers": answers}
    assert page.post("/api/answers", json=body).status_code == 200
    return len(answers)


def labelled_by_people(run: Path, decide: Decide) -> int:
    """Label and resume until the run is over; how many batches that took."""
    batches = 0
    while True:
        label(run, decide)
        batches += 1
        status = resume(run)
        if status == OK:
            return batches
        assert status == AWAITING_LABELS


@pytest.fixture(scope="module")
def truth() -> Decide:
    splits = load_splits(
        "digits", ".", image_size=8, split_seed=0, validation_fraction=0.15, test_fraction=0.15
    )
    return lambda index: splits.class_names[int(splits.train.labels[index])]


def last_state(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and pool of the newest checkpoint."""
    folder = max((run / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return read_tensors(folder / "weights.safetensors"), read_tensors(folder / "state.safetensors")


def queries(run: Path) -> list[dict[str, str]]:
    with (run / "queries.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_by_people_is_the_simulated_run(tmp_path: Path, truth: Decide) -> None:
    assert run_locally(request(tmp_path / "simulated")) == OK
    assert run_locally(request(tmp_path / "people", oracle="people")) == AWAITING_LABELS
    assert labelled_by_people(tmp_path / "people", truth) == SMALL["rounds"]
    first, second = tmp_path / "simulated", tmp_path / "people"
    assert (first / "queries.csv").read_bytes() == (second / "queries.csv").read_bytes()
    for expected, found in zip(last_state(first), last_state(second), strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]) or value.isnan().any(), name
    # The page has measured one second an image; the simulation assumes five.
    with (second / "metrics.csv").open(newline="") as file:
        minutes = [float(row["annotation_minutes"]) for row in csv.DictReader(file)]
    assert minutes == pytest.approx([10 / 60, 16 / 60, 22 / 60])
    suggested = [item.suggested for item in read_batch(batch_folders(second)[1]).images]
    assert None not in suggested
    assert [item.suggested for item in read_batch(batch_folders(second)[0]).images] == [None] * 10


def test_skipped_images_are_replaced_and_never_asked_again(tmp_path: Path, truth: Decide) -> None:
    run = tmp_path / "run"
    assert run_locally(request(run, oracle="people", rounds=2)) == AWAITING_LABELS
    # A third of the images cannot be used, so each round needs several batches.
    labelled_by_people(run, lambda index: truth(index) if index % 3 else None)
    names = [folder.name for folder in batch_folders(run)]
    assert names[:2] == ["round_000", "round_000_part_2"]
    asked = [item.index for folder in batch_folders(run) for item in read_batch(folder).images]
    assert len(asked) == len(set(asked))
    rows = queries(run)
    labelled = [row for row in rows if row["label"]]
    assert len(labelled) == SMALL["initial_labeled_size"] + SMALL["samples_to_label"]
    assert {row["skipped"] for row in rows if not row["label"]} == {"unusable"}
    assert all(int(row["index"]) % 3 for row in labelled)


def test_the_batch_stays_while_answers_are_missing(tmp_path: Path, truth: Decide) -> None:
    run = tmp_path / "run"
    assert run_locally(request(run, oracle="people")) == AWAITING_LABELS
    before = (run / "labelling" / "round_000" / "batch.json").read_bytes()
    assert resume(run) == AWAITING_LABELS
    assert (run / "labelling" / "round_000" / "batch.json").read_bytes() == before
    label(run, truth)
    close_batch(run / "labelling" / "round_000")  # and killed before the first step
    assert resume(run) == AWAITING_LABELS
    assert [folder.name for folder in batch_folders(run)] == ["round_000", "round_001"]


def test_a_waiting_run_goes_on_by_itself(tmp_path: Path, truth: Decide) -> None:
    run = tmp_path / "run"
    labelled: list[str] = []

    def annotate() -> None:
        while len(labelled) < 2:
            name = Desk(run).current()
            if name is not None and name not in labelled:
                assert Training(run).status()["state"] == "waiting"
                label(run, truth)
                labelled.append(name)
            time.sleep(0.05)

    annotator = threading.Thread(target=annotate)
    annotator.start()
    wanted = dataclasses.replace(request(run, oracle="people", rounds=2), wait=True)
    assert run_locally(wanted) == OK
    annotator.join()
    assert labelled == ["round_000", "round_001"]


def test_a_batch_of_another_run_is_refused(tmp_path: Path, truth: Decide) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert run_locally(request(run, oracle="people")) == AWAITING_LABELS
    label(run, truth)
    assert resume(run) == AWAITING_LABELS
    assert run_locally(request(other, oracle="people", seed=3)) == AWAITING_LABELS
    shutil.rmtree(run / "labelling" / "round_001")
    shutil.copytree(other / "labelling" / "round_000", run / "labelling" / "round_001")
    values = (run / "labelling" / "round_001" / "batch.json").read_text()
    assert '"round": 0' in values
    label(run, truth)
    with pytest.raises(UserError, match="round_001: is the batch of round 0"):
        resume(run)


def test_corrected_uploads_train_the_next_round(tmp_path: Path, truth: Decide) -> None:
    """Images from outside of the pool change the weights, but neither the pool nor its budget."""
    plain, helped = tmp_path / "plain", tmp_path / "helped"
    for run in (plain, helped):
        assert run_locally(request(run, oracle="people", rounds=1)) == AWAITING_LABELS
        label(run, truth)
    for number in range(6):
        file = io.BytesIO()
        Image.new("L", (20, 12), 40 * number).save(file, "PNG")
        Uploads(helped).add(file.getvalue(), f"upload_{number}.png", "3", "Ana")
    again = Path(shutil.copytree(helped, tmp_path / "again"))
    assert [resume(run) for run in (plain, helped)] == [OK, OK]
    (weights, pool), (other_weights, other_pool) = last_state(plain), last_state(helped)
    assert any(not torch.equal(weights[name], other_weights[name]) for name in weights)
    for name, value in pool.items():
        assert torch.equal(value, other_pool[name]) or value.isnan().any(), name
    # The labels behind the weights are counted, those of uploads apart from those of the budget.
    (row,), (plain_row,) = metrics(helped), metrics(plain)
    assert float(row["corrected_uploads"]) == 6
    assert float(row["labeled_samples"]) == float(plain_row["labeled_samples"]) + 6
    assert plain_row.get("corrected_uploads") is None
    # What the round took stays, whatever comes later; so a killed run ends in the same weights.
    assert len(Uploads(again).closed(0)) == 6
    Uploads(again).add(file.getvalue(), "late.png", "4", "Ben")
    assert resume(again) == OK
    for name, value in last_state(again)[0].items():
        assert torch.equal(value, other_weights[name]), name
    assert [one.class_name for one in Uploads(again).closed(1)] == ["3"] * 5 + ["4"]


def test_a_round_continues_with_the_uploads_that_it_began_with(
    make_learner: Callable[..., ActiveLearner], digits: Splits, tmp_path: Path
) -> None:
    learner = make_learner(oracle="people")
    ask(learner)
    learner.train_step()
    oracle = PeopleOracle(tmp_path, learner, digits)
    file = io.BytesIO()
    Image.new("L", (20, 12), 90).save(file, "PNG")
    Uploads(tmp_path).add(file.getvalue(), "early.png", "3", "Ana")
    oracle.reopen()
    assert learner.corrected_uploads == 0  # it began before the upload came
    Uploads(tmp_path).closed(0)
    Image.new("L", (20, 12), 10).save(file, "PNG")
    Uploads(tmp_path).add(file.getvalue(), "late.png", "4", "Ana")
    oracle.reopen()
    assert learner.corrected_uploads == 1


def test_corrections_and_doubts_change_what_the_next_round_trains_on(
    tmp_path: Path, truth: Decide
) -> None:
    run = tmp_path / "run"
    assert run_locally(request(run, oracle="people", rounds=2)) == AWAITING_LABELS
    wrong, doubted = (item.index for item in read_batch(batch_folders(run)[0]).images[:2])
    label(run, lambda index: "9" if index in (wrong, doubted) else truth(index))
    right = {index: truth(index) for index in (wrong, doubted)}
    ask_again(run, [doubted])
    assert resume(run) == AWAITING_LABELS
    assert read_doubts(run) == []  # asked now
    first, second = batch_folders(run)
    asked = {item.index: item.label for item in read_batch(second).images}
    assert asked[doubted] == 9
    correction = Answer("boss", wrong, right[wrong], old="9")
    AnswerLog(first).append([correction], corrections=True)
    assert label(run, truth) == SMALL["samples_to_label"] + 1
    assert resume(run) == OK
    rows = {int(row["index"]): row["class"] for row in queries(run)}
    assert {index: rows[index] for index in right} == right
    assert {row["annotator"] for row in queries(run) if int(row["index"]) == wrong} == {"boss"}
    labelled = SMALL["initial_labeled_size"] + SMALL["samples_to_label"]
    assert len(rows) == labelled  # a label that was asked again is not a new one


def test_from_a_folder_without_any_label(tmp_path: Path) -> None:
    """Grey levels are the classes: people say what they see, and no file knows it."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data" / "slides"
    folder.mkdir(parents=True)
    for number in range(90):
        level = (40, 120, 200)[number % 3]
        pixels = generator.integers(level - 30, level + 30, (20, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"tile_{number:03d}.png")
    (folder / "classes.txt").write_text("dark\nmiddle\nbright\n")
    run = tmp_path / "run"
    wanted = request(
        run,
        oracle="people",
        dataset="folder:slides",
        data_dir=tmp_path / "data",
        validation_fraction=0.2,
        test_fraction=0.1,
        rounds=2,
        label_budget=16,
        candidate_pool_size=0,
    )
    assert run_locally(wanted) == AWAITING_LABELS
    (validation,) = batch_folders(run)
    assert validation.name == "validation"
    sources = [item.source for item in read_batch(validation).images]
    assert sources[0].startswith("tile_")

    def look(batch: Path, index: int) -> str:
        with Image.open(image_path(batch, index)) as image:
            assert image.size == (30, 20)  # the original resolution
            mean = float(np.asarray(image).mean())
        return ("dark", "middle", "bright")[int(mean > 80) + int(mean > 160)]

    def label_current() -> None:
        name = Desk(run).current()
        assert name is not None
        label(run, lambda index: look(run / "labelling" / name, index), "ann")

    label_current()
    for expected in (AWAITING_LABELS, AWAITING_LABELS, OK):
        assert resume(run) == expected
        if expected == AWAITING_LABELS:
            label_current()
    names = [path.name for path in batch_folders(run)]
    assert names == ["validation", "round_000", "round_001"]
    rows = queries(run)
    assert len(rows) == 16
    assert {row["annotator"] for row in rows} == {"ann"}
    assert {row["true_label"] for row in rows} == {""}
    assert [item.source for item in read_batch(validation).images] == sources  # fixed
    assert not {row["source"] for row in rows} & set(sources)
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert 0 <= float(last["val_accuracy"]) <= 1
    assert float(last["val_images"]) == len(sources)


def test_labels_that_others_contradict_are_doubted(
    tmp_path: Path, truth: Decide, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = {"rounds": 2, "initial_labeled_size": 100, "batches_per_round": 30}
    assert run_locally(request(run, oracle="people", **settings)) == AWAITING_LABELS
    asked = [item.index for item in read_batch(batch_folders(run)[0]).images]
    wrong = asked[:5]
    names = {index: truth(index) for index in asked}
    names |= {index: str((int(str(names[index])) + 1) % 10) for index in wrong}
    label(run, names.get)
    assert main([str(run)]) == 2  # no round has been trained yet
    assert resume(run) == AWAITING_LABELS
    capsys.readouterr()
    assert main([str(run), "--most", "10", "--ask"]) == OK
    listed = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert set(listed[:3]) <= set(wrong)
    assert read_doubts(run) == sorted(listed)


def test_a_class_in_one_fold_alone_has_no_probability_there() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 20 + [1] * 20 + [2])
    embeddings = torch.randn(41, 4, generator=generator) + labels[:, None]
    probabilities = held_out_probabilities(embeddings, labels, 4)
    assert torch.allclose(probabilities.sum(1), torch.ones(41, dtype=torch.float64))
    assert probabilities[40, 2] == 0
    assert (probabilities[:, 3] == 0).all()
