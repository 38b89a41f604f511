"""People label a trial on a cluster: questions and answers travel through the master."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from determined.common.api import authentication
from determined.experimental import client
from PIL import Image

from cluster.outside import Experiment
from cluster.questions import texts, write_texts
from data import load_splits
from data_sources.image_file import decode
from errors import UserError
from labelling.batch import batch_folders, read_batch
from labelling.log import Answer, AnswerLog
from labelling.outcome import is_closed
from labelling.uploads import Uploads
from tests.fake_master import EXPERIMENT_ID, TOKEN, FakeMaster, Request, Trial
from tests.labelling_runs import made_up_run
from tests.reliability import processes
from tests.test_cluster import experiment


class PausingMaster(FakeMaster):
    """A master that pauses and activates its experiment, and keeps checkpoints' metadata."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self.storage = Path()

    def answer(self, request: Request, query: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        path = request.path
        if path == f"/api/v1/experiments/{EXPERIMENT_ID}/pause":
            self.requests.append(request)
            with self._change:
                self.paused, self._preempted = True, self._allocation
                self._change.notify_all()
            return 200, {}
        if path == f"/api/v1/experiments/{EXPERIMENT_ID}/activate":
            self.paused = False
            return 200, {}
        metadata = re.fullmatch(r"/api/v1/checkpoints/([^/]+)/metadata", path)
        if metadata:
            (known,) = (one for one in self.checkpoints if one["uuid"] == metadata[1])
            known["metadata"] = request.body["checkpoint"]["metadata"]
            return 200, {"checkpoint": self._as_reported(known)}
        return super().answer(request, query)

    def _experiment(self, request: Request) -> tuple[int, dict[str, Any]]:
        status, answer = super()._experiment(request)
        if self.paused:
            answer["experiment"]["state"] = "STATE_PAUSED"
        return status, answer

    def _one_checkpoint(self, request: Request) -> tuple[int, dict[str, Any]]:
        status, answer = super()._one_checkpoint(request)
        if status == 200:
            answer = {"checkpoint": self._as_reported(answer["checkpoint"])}
        return status, answer

    def _as_reported(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        storage = {"type": "shared_fs", "host_path": str(self.storage)}
        training = {
            "experimentConfig": {"checkpoint_storage": storage},
            "experimentId": EXPERIMENT_ID,
            "trialId": 1,
            "hparams": {},
            "validationMetrics": {"avgMetrics": {}},
        }
        return {**checkpoint, "state": "STATE_COMPLETED", "training": training}


@pytest.fixture
def make_trial(tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as masters:

        def make(name: str, **changes: Any) -> Trial:
            master = PausingMaster()
            masters.enter_context(master)
            small: dict[str, Any] = {"architecture": "small_cnn", "rounds": 2, **changes}
            config = {"checkpoint_storage": {}, **experiment(**small)}
            trial = Trial(master, tmp_path / name, config)
            master.storage = trial.storage
            return trial

        yield make


@pytest.fixture
def log_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets Determined's public client talk to a master, as after `det user login`."""

    def use(master: FakeMaster) -> None:
        session = authentication.login_with_cache(master.url)
        monkeypatch.setattr(client, "_determined", client.Determined._from_session(session))

    monkeypatch.setenv("DET_USER_TOKEN", TOKEN)
    monkeypatch.setenv("DET_USER", "determined")
    return use


def run_once(trial: Trial) -> None:
    status = processes.wait(trial.start())
    assert status == 0, trial.log.read_text()


def test_a_trial_that_people_label_is_the_simulated_one(
    make_trial: Any, log_in: Any, tmp_path: Path
) -> None:
    simulated = make_trial("simulated")
    run_once(simulated)
    trial = make_trial("people", oracle="people")
    master = trial.master
    master.description = "what the user wrote"
    run_once(trial)
    assert master.paused
    assert master.acknowledged == [trial.allocation]  # so the master starts it again
    assert f"--experiment {EXPERIMENT_ID}" in trial.log.read_text()

    log_in(master)
    run = tmp_path / "outside"
    outside = Experiment(EXPERIMENT_ID, run)
    train = load_splits(
        "digits", ".", image_size=8, split_seed=0, validation_fraction=0.15, test_fraction=0.15
    ).train
    rounds = 0
    while master.paused:
        (folder,) = (one for one in batch_folders(run) if not is_closed(one))
        truth = [(item.index, int(train.labels[item.index])) for item in read_batch(folder).images]
        answers = [
            Answer("simulated", index, train.class_names[label], event=f"{folder.name}{index}")
            for index, label in truth
        ]
        AnswerLog(folder).append(answers[1:])
        if rounds == 0:  # somebody activates it too early: it asks the same again
            master.paused = False
            run_once(trial)
            assert master.paused
            outside.fetch()
        AnswerLog(folder).append(answers[:1])
        outside.start()
        assert not master.paused
        run_once(trial)
        outside.fetch()
        rounds += 1
    assert rounds == 2
    assert master.description == "what the user wrote"
    assert master.refused == []
    first, second = simulated.state(), trial.state()
    assert processes.same(first, second)
    assert [folder.name for folder in batch_folders(run)] == [f"round_00{k}" for k in range(2)]
    assert (run / "metrics.csv").exists()  # for the page's chart


def test_corrected_uploads_reach_the_trial(make_trial: Any, log_in: Any, tmp_path: Path) -> None:
    trial = make_trial("people", oracle="people", rounds=1)
    run_once(trial)
    log_in(trial.master)
    run = tmp_path / "outside"
    outside = Experiment(EXPERIMENT_ID, run)
    (folder,) = batch_folders(run)
    answers = [Answer("Ana", item.index, "1") for item in read_batch(folder).images]
    AnswerLog(folder).append(answers)
    for name, level in (("a.png", 10), ("b.png", 200)):
        file = io.BytesIO()
        Image.new("RGB", (30, 20), (level, 90, 60)).save(file, "PNG")
        Uploads(run).add(file.getvalue(), name, "2", "Ana")
    outside.start()
    run_once(trial)
    (report,) = trial.master.of_group("active_learning")
    assert report.values["corrected_uploads"] == 2
    assert report.values["labeled_samples"] == len(answers) + 2
    # The last checkpoint holds them, for the next round and for whoever labels it elsewhere.
    (uploads,) = {path.parent for path in trial.storage.glob("*/labelling/uploads/round_000.json")}
    stored = Uploads(uploads.parent.parent).noted(0)
    assert [(one.source, one.class_name) for one in stored] == [("a.png", "2"), ("b.png", "2")]
    for one, level in zip(stored, (10, 200), strict=True):
        expected = Uploads(run).labelled()[one.number]
        np.testing.assert_array_equal(decode(one.path, 8).pixels, decode(expected.path, 8).pixels)
        assert decode(one.path, 8).pixels[0, 0, 0] == level


def test_answers_from_outside_are_written_into_batches_only(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", 2)
    AnswerLog(folder).append([Answer("ann", 0, "tumour")])
    good = texts(tmp_path / "run")
    assert set(good) == {"round_000/answers.jsonl"}
    evil = {
        "../../evil": "x",
        "/tmp/evil": "x",
        "round_000/../../evil": "x",
        "round_000/batch.json": "x",
        "round_009/answers.jsonl": "x",
    }
    uploads = ("../images/0.png", "images/../../evil.png", "images/x.png", "round_000.json")
    evil.update({f"uploads/{path}": "x" for path in uploads})
    before = sorted(path for path in tmp_path.rglob("*"))
    write_texts(tmp_path / "run", {**evil, **good})
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert read_batch(folder).images[0].index == 0


def test_an_experiment_that_is_not_there_is_one_line(log_in: Any, tmp_path: Path) -> None:
    with PausingMaster() as master:
        log_in(master)
        with pytest.raises(UserError, match=r"--experiment 99: .*check the number"):
            Experiment(99, tmp_path)
