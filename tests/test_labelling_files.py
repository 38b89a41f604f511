"""The labelling protocol: batches, the log of answers, outcomes, corrections, agreement."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from errors import UserError
from labelling.agreement import agreement, interval, kappa
from labelling.batch import (
    Batch,
    BatchImage,
    batch_folder,
    batch_folders,
    image_path,
    read_batch,
    write_batch,
)
from labelling.doubts import ask_again, read_doubts
from labelling.log import ANSWERS_FILE, Answer, AnswerLog, ClosedError
from labelling.outcome import (
    DISPUTED,
    LABELLED,
    SKIPPED,
    WAITING,
    close_batch,
    corrections,
    current_outcomes,
    read_answers,
    tally,
)
from labelling.settings import LabellingSettings, read_settings, write_settings
from tests.labelling_runs import CLASSES, made_up_batch, made_up_run

ROOT = Path(__file__).resolve().parent.parent


def answer(image: int, label: str | None = None, annotator: str = "ann", **more: object) -> Answer:
    return Answer(annotator, image, label, **more)  # type: ignore[arg-type]


# --- the batch ----------------------------------------------------------------------------------


def test_a_batch_is_read_back(tmp_path: Path) -> None:
    batch = made_up_batch(5)
    write_batch(tmp_path / "round_000", batch)
    read = read_batch(tmp_path / "round_000")
    assert read == dataclasses.replace(
        batch, images=tuple(dataclasses.replace(item, image=None) for item in batch.images)
    )
    with Image.open(image_path(tmp_path / "round_000", 3)) as image:
        expected = np.moveaxis(np.asarray(batch.images[3].image), 0, 2)
        assert np.array_equal(np.asarray(image), expected)


def test_an_original_file_keeps_its_resolution_and_loses_its_metadata(tmp_path: Path) -> None:
    original = tmp_path / "slide.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    exif[0x010E] = "the patient's name"
    Image.new("RGB", (60, 40), (200, 10, 10)).save(original, exif=exif)
    batch = Batch(0, "random", CLASSES, (BatchImage(0, "slide.jpg", original),))
    write_batch(tmp_path / "round_000", batch)
    with Image.open(image_path(tmp_path / "round_000", 0)) as image:
        assert image.size == (40, 60)
    assert b"patient" not in image_path(tmp_path / "round_000", 0).read_bytes()


def test_an_unusable_original_is_named(tmp_path: Path) -> None:
    original = tmp_path / "slide.png"
    original.write_bytes(b"not an image")
    batch = Batch(0, "random", CLASSES, (BatchImage(0, "slide.png", original),))
    with pytest.raises(UserError, match=r"slide.png: unusable image .* replace or remove"):
        write_batch(tmp_path / "round_000", batch)


def test_a_batch_that_is_half_written_is_no_batch(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path)
    assert batch_folders(tmp_path) == [folder]
    (folder / "batch.json").unlink()
    assert batch_folders(tmp_path) == []


def test_writing_a_batch_again_changes_nothing_and_another_one_is_refused(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path)
    before = (folder / "batch.json").stat().st_mtime_ns
    made_up_run(tmp_path)
    assert (folder / "batch.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds another batch"):
        write_batch(folder, made_up_batch(13))


def test_batches_come_in_the_order_of_rounds_and_parts(tmp_path: Path) -> None:
    folders = [batch_folder(tmp_path, r, p) for r, p in [(0, 1), (2, 1), (2, 2), (2, 10), (11, 1)]]
    for folder in reversed(folders):
        write_batch(folder, made_up_batch(2))
    (tmp_path / "labelling" / "something else").mkdir()
    assert batch_folders(tmp_path) == folders


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"format": 1, "class_names": 3}'])
def test_a_damaged_batch_is_named(tmp_path: Path, content: str) -> None:
    folder = made_up_run(tmp_path)
    (folder / "batch.json").write_text(content)
    with pytest.raises(UserError, match=r"batch.json: missing or damaged"):
        read_batch(folder)


# --- the log ------------------------------------------------------------------------------------


def test_the_latest_answer_counts_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 4)
    log = AnswerLog(folder)
    log.append([answer(0, "tumour"), answer(1, skip="unsure"), answer(2, "debris")])
    log.append([answer(0, "debris"), answer(2)])  # image 2 is taken back
    answers = read_answers(folder)
    assert answers.labels == {0: 0}
    assert answers.skipped == {1: "unsure"}
    assert answers.waiting == (2, 3)
    assert not answers.complete
    lines = (folder / ANSWERS_FILE).read_text().splitlines()
    assert len(lines) == 5
    assert {"annotator", "image", "answer", "skip", "seconds", "time"} <= set(json.loads(lines[0]))


def test_a_repeated_save_adds_nothing(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path)
    line = answer(0, "tumour", event="e1")
    assert len(AnswerLog(folder).append([line])) == 1
    assert AnswerLog(folder).append([line]) == []
    assert len(AnswerLog(folder).read()) == 1


def test_two_logs_of_a_folder_see_each_other(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path)
    first, second = AnswerLog(folder), AnswerLog(folder)
    first.append([answer(0, "tumour", event="a")])
    second.append([answer(1, "tumour", event="b"), answer(0, "tumour", event="a")])
    assert [line.image for line in first.read()] == [0, 1]


def test_half_a_line_is_dropped_and_a_damaged_one_named(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path)
    log = AnswerLog(folder)
    log.append([answer(0, "tumour")])
    with log.path.open("ab") as file:
        file.write(b'{"annotator": "ann", "ima')
    assert len(AnswerLog(folder).read()) == 1
    AnswerLog(folder).append([answer(1, "debris")])
    assert [line.image for line in AnswerLog(folder).read()] == [0, 1]
    log.path.write_bytes(b"rubbish\n" + log.path.read_bytes())
    with pytest.raises(UserError, match=r"answers.jsonl line 1: damaged"):
        AnswerLog(folder).read()


@pytest.mark.parametrize(
    "bad",
    [
        {"annotator": ""},
        {"annotator": "a\nb"},
        {"annotator": "x" * 81},
        {"answer": "tumour", "skip": "unsure"},
        {"skip": "tired"},
        {"seconds": float("nan")},
        {"seconds": -1},
        {"role": "boss"},
        {"event": "x" * 65},
    ],
)
def test_a_bad_answer_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Answer(**{"annotator": "ann", "image": 0, **bad})  # type: ignore[arg-type]


def _write_many(folder: Path, name: str, count: int) -> None:
    log = AnswerLog(folder)
    for image in range(count):
        log.append([Answer(name, image, "tumour", event=f"{name}{image}")])


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 40)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(folder, f"a{k}", 40)) for k in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = AnswerLog(folder).read()
    assert len(lines) == len({line.event for line in lines}) == 120


WRITER = """
import sys
from pathlib import Path
from labelling.log import Answer, AnswerLog
log = AnswerLog(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    log.append([Answer("ann", number % 5, "tumour", event=str(number))])
    print(number, flush=True)
    number += 1
"""


def test_no_acknowledged_line_is_lost_to_kills(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path)
    chance = random.Random(0)
    acknowledged: list[str] = []
    for kill in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(kill * 100_000)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        acknowledged.append(process.stdout.readline().strip())
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
        process.wait()
    assert set(acknowledged) <= {line.event for line in AnswerLog(folder).read()}


# --- outcomes -----------------------------------------------------------------------------------

TWO = LabellingSettings(("ann", "ben"), overlap=1.0)


def states(lines: list[Answer], settings: LabellingSettings, size: int = 1) -> list[str]:
    return [o.state for o in tally(made_up_batch(size), lines, settings).outcomes.values()]


def test_a_majority_decides_and_a_draw_waits_for_the_adjudicator() -> None:
    ann, ben, cat = (answer(0, "tumour", name) for name in ("ann", "ben", "cat"))
    other = answer(0, "debris", "ben")
    assert states([ann], TWO) == [WAITING]
    assert states([ann, ben], TWO) == [LABELLED]
    assert states([ann, other], TWO) == [DISPUTED]
    three = LabellingSettings(("ann", "ben", "cat"), overlap=1.0)
    assert states([ann, other, cat], three) == [LABELLED]
    assert states([ann, other, answer(0, skip="unsure", annotator="cat")], three) == [DISPUTED]
    decision = answer(0, "debris", "dora", role="adjudicator")
    outcome = tally(made_up_batch(1), [ann, other, decision], TWO).outcomes[0]
    assert (outcome.state, outcome.answer) == (LABELLED, "debris")
    taken_back = answer(0, None, "dora", role="adjudicator")
    assert states([ann, other, decision, taken_back], TWO) == [DISPUTED]


def test_skips_for_different_reasons_agree_that_the_image_is_skipped() -> None:
    lines = [answer(0, skip="unsure"), answer(0, skip="unusable", annotator="ben")]
    assert states(lines, TWO) == [SKIPPED]
    assert states([lines[0], answer(0, "tumour", "ben")], TWO) == [DISPUTED]


def test_without_named_annotators_one_answer_is_enough() -> None:
    anyone = LabellingSettings()
    assert states([answer(0, "tumour")], anyone) == [LABELLED]
    assert states([answer(0, "tumour"), answer(0, "debris", "ben")], anyone) == [DISPUTED]


def test_the_share_for_everyone_is_a_fixed_draw_and_the_rest_is_shared_out() -> None:
    batch = made_up_batch(50)
    settings = LabellingSettings(("ann", "ben", "cat"), overlap=0.2)
    everyone = settings.shared_by_all(batch)
    assert everyone == settings.shared_by_all(batch)
    assert len(everyone) == 10
    assert everyone != settings.shared_by_all(dataclasses.replace(batch, round=1))
    assigned = settings.assigned(batch)
    assert set(assigned) == set(range(50)) - everyone
    counts = [list(assigned.values()).count(name) for name in settings.annotators]
    assert max(counts) - min(counts) <= 1
    needed = settings.votes_needed(batch)
    assert sum(needed.values()) == 10 * 3 + 40


def test_settings_are_kept_and_checked(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == LabellingSettings()
    settings = LabellingSettings(("ann", "bén"), 0.5, True)
    write_settings(tmp_path, settings)
    assert read_settings(tmp_path) == settings
    with pytest.raises(UserError, match="twice"):
        LabellingSettings(("ann", "ann"))
    with pytest.raises(UserError, match="two annotators"):
        LabellingSettings(("ann",), overlap=0.1)
    with pytest.raises(UserError, match="share"):
        LabellingSettings(("ann", "ben"), overlap=2)


# --- closing and correcting ---------------------------------------------------------------------


def label_all(folder: Path, label: str = "tumour") -> None:
    images = read_batch(folder).images
    AnswerLog(folder).append([answer(item.index, label) for item in images])


def test_a_closed_batch_stays_as_it_was_taken(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 3)
    with pytest.raises(UserError, match="3 of 3 images wait"):
        close_batch(folder)
    label_all(folder)
    taken = close_batch(folder)
    assert taken.labels == {0: 2, 1: 2, 2: 2}
    with pytest.raises(ClosedError):
        AnswerLog(folder).append([answer(0, "debris")])
    AnswerLog(folder).append([answer(0, "debris", old="tumour")], corrections=True)
    assert close_batch(folder) == read_answers(folder) == taken
    assert corrections(tmp_path) == {0: 0}


def test_a_correction_that_is_taken_back_is_reported_too(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 2)
    label_all(folder)
    close_batch(folder)
    log = AnswerLog(folder)
    log.append([answer(1, "debris", old="tumour")], corrections=True)
    log.append([answer(1, "tumour", old="debris")], corrections=True)
    assert corrections(tmp_path) == {1: 2}


def test_a_doubtful_label_that_is_asked_again_is_a_correction(tmp_path: Path) -> None:
    first = made_up_run(tmp_path, 3)
    label_all(first)
    close_batch(first)
    ask_again(tmp_path, [2, 0, 2])
    assert read_doubts(tmp_path) == [0, 2]
    images = made_up_batch(2, first=10).images
    again = tuple(
        dataclasses.replace(item, label=2) for item in made_up_batch(3).images if item.index != 1
    )
    second = batch_folder(tmp_path, 1)
    write_batch(second, Batch(1, "margin", CLASSES, images + again))
    AnswerLog(second).append(
        [answer(10, "debris"), answer(11, "debris"), answer(0, "debris"), answer(2, skip="unsure")]
    )
    close_batch(second)
    assert corrections(tmp_path) == {0: 0}
    assert current_outcomes(tmp_path, "pool")[2].outcome.answer == "tumour"


def test_the_validation_sample_has_dataset_indices_of_its_own(tmp_path: Path) -> None:
    pool = made_up_run(tmp_path, 2)
    validation = tmp_path / "labelling" / "validation"
    write_batch(validation, dataclasses.replace(made_up_batch(2), split="validation", round=-1))
    for folder in (pool, validation):
        label_all(folder)
        close_batch(folder)
    AnswerLog(validation).append([answer(0, "debris", old="tumour")], corrections=True)
    assert corrections(tmp_path) == {}
    assert corrections(tmp_path, "validation") == {0: 0}
    assert batch_folders(tmp_path) == [validation, pool]


# --- agreement ----------------------------------------------------------------------------------


def test_cohens_kappa_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 4, 80)
    second = np.where(generator.random(80) < 0.7, first, generator.integers(0, 4, 80))
    ratings = np.stack([first, second], axis=1)
    assert kappa(ratings, 4) == pytest.approx(cohen_kappa_score(first, second))
    low, high = interval(ratings, 4)
    assert low < kappa(ratings, 4) < high
    assert (low, high) == interval(ratings, 4)


def test_fleiss_kappa_of_his_own_example() -> None:
    """Fleiss 1971, as worked out in Wikipedia's article: 14 annotators, kappa 0.210."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    ratings = np.array([np.repeat(np.arange(5), row) for row in counts])
    assert kappa(ratings, 5) == pytest.approx(0.210, abs=0.0005)


def test_agreement_counts_images_that_everyone_gave_a_class() -> None:
    batch = made_up_batch(4)
    lines = [answer(i, "tumour" if i else "debris", n) for i in range(3) for n in ("ann", "ben")]
    lines += [answer(3, "tumour"), answer(2, skip="unsure", annotator="ben")]
    found = agreement(batch, lines, ("ann", "ben"))
    assert found is not None
    assert (found.statistic, found.images, found.kappa) == ("Cohen's kappa", 2, 1.0)
    assert agreement(batch, lines, ("ann",)) is None
    nobody = agreement(batch, [], ("ann", "ben", "cat"))
    assert nobody is not None
    assert np.isnan(nobody.kappa)
    assert nobody.statistic == "Fleiss' kappa"
