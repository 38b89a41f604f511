"""model_def.py as a trial on a cluster: real processes, Determined's own client, a master of ours.

What the master is told, and that a trial that was paused or killed ends as if it never had been.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT, small_values
from tests.fake_master import FakeMaster, Report, Request, Trial, enter_container
from tests.reliability import processes

BATCHES_PER_ROUND, REPORTING_PERIOD = 5, 2
LABELS = (10, 16, 22)  # after each round
GROUPS = {
    "training": {"loss", "accuracy", "learning_rate", "round", "epochs", "batches"},
    "validation": {
        "val_loss", "val_accuracy", "val_auc", "round", "labeled_samples", "annotation_minutes",
        "epochs", "batches",
    },
    "test": {"test_loss", "test_accuracy", "test_auc", "round", "labeled_samples"},
    "active_learning": {
        "round", "query_size", "labeled_samples", "wrong_labels", "annotation_minutes",
        "query_seconds", "class_imbalance", "queried_0",
    },
    "classes": {
        "round", "labeled_samples",
        "val_precision_0", "val_recall_0", "test_precision_0", "test_recall_0",
    },
}  # fmt: skip


def experiment(slots: int = 0, **changes: Any) -> dict[str, Any]:
    """configs/digits.yaml, made small, with weights that move between rounds."""
    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text(encoding="utf-8"))
    small = {
        "architecture": "resnet18",
        "rounds": len(LABELS),
        "batches_per_round": BATCHES_PER_ROUND,
        "reporting_period": REPORTING_PERIOD,
        "between_rounds": "shrink_and_perturb",
    }
    config["hyperparameters"] = small_values(**{**small, **changes})
    config["resources"]["slots_per_trial"] = slots
    return dict(config)


@pytest.fixture(scope="module")
def make_trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Trial]]:
    """Builds a trial with a container and a master of its own."""
    trials = []
    with contextlib.ExitStack() as masters:

        def make(**changes: Any) -> Trial:
            master = masters.enter_context(FakeMaster())
            folder = tmp_path_factory.mktemp("container")
            trials.append(Trial(master, folder, experiment(**changes)))
            return trials[-1]

        yield make
    for trial in trials:
        for events in Path("/tmp").glob(f"tensorboard-{trial.allocation_prefix}*"):
            shutil.rmtree(events)


def finish(trial: Trial) -> None:
    """Run `trial` on to its end."""
    status = processes.wait(trial.start())
    assert status == 0, trial.log.read_text()


@pytest.fixture(scope="module")
def undisturbed(make_trial: Callable[..., Trial]) -> Trial:
    """A trial that ran through, in an interpreter that had nothing imported."""
    trial = make_trial()
    processes.warm_up()
    status = trial.start_fresh().wait(timeout=240)
    assert status == 0, trial.log.read_text()
    return trial


def report_of(group: str, steps: int) -> Callable[[Request], bool]:
    """Whether a request reports metrics of `group` after `steps` batches."""

    def matches(request: Request) -> bool:
        if not request.path.endswith("/metrics"):
            return False
        return (request.body["group"], request.body["metrics"]["stepsCompleted"]) == (group, steps)

    return matches


def without_time(reports: list[Report]) -> list[tuple[str, int, dict[str, Any]]]:
    """What was reported, the same in runs that did the same."""
    return [
        (one.group, one.steps, {k: v for k, v in one.values.items() if k != "query_seconds"})
        for one in sorted(reports, key=lambda one: (one.group, one.steps))
    ]


def assert_equal(trial: Trial, undisturbed: Trial) -> None:
    """`trial` told its master the same and ends with the same bits as the undisturbed one."""
    assert trial.master.refused == []
    assert without_time(trial.master.reports) == without_time(undisturbed.master.reports)
    states = [one.state() for one in (trial, undisturbed)]
    for state in states:
        # A pause between the last batch and its validation leaves a checkpoint that knows nothing
        # of the last round's result. No other is written, and none needs it.
        del state["callbacks"]["active_learning"]["results"][len(LABELS) - 1 :]
    assert processes.same(*states)


def test_the_master_gets_every_group_of_metrics(undisturbed: Trial) -> None:
    master = undisturbed.master
    assert master.refused == []
    ends = [BATCHES_PER_ROUND * (round_ + 1) for round_ in range(len(LABELS))]
    steps = {group: [one.steps for one in master.of_group(group)] for group in GROUPS}
    assert steps == {
        "training": [2, 4, 5, 7, 9, 10, 12, 14, 15],
        "validation": ends,
        "test": ends,
        "classes": ends,
        "active_learning": [end - BATCHES_PER_ROUND + 1 for end in ends],
    }
    assert {one.group for one in master.reports} == set(GROUPS)
    for group, names in GROUPS.items():
        for report in master.of_group(group):
            assert names <= report.values.keys(), report


def test_reports_say_what_the_weights_were_trained_on(undisturbed: Trial) -> None:
    master = undisturbed.master
    for group in ("validation", "test", "classes", "active_learning"):
        said = [
            (one.values["round"], one.values["labeled_samples"]) for one in master.of_group(group)
        ]
        assert said == list(enumerate(LABELS)), group
    rounds = [(one.steps - 1) // BATCHES_PER_ROUND for one in master.of_group("training")]
    assert [one.values["round"] for one in master.of_group("training")] == rounds
    state = undisturbed.state()["callbacks"]["active_learning"]
    assert int((state["acquired_round"] >= 0).sum()) == LABELS[-1]


def test_the_searcher_finds_its_metric_in_every_validation(undisturbed: Trial) -> None:
    metric = undisturbed.config["searcher"]["metric"]
    values = [one.values[metric] for one in undisturbed.master.of_group("validation")]
    assert len(values) == len(LABELS)
    assert all(isinstance(value, float) for value in values)
    assert len(undisturbed.master.bodies("best_searcher_validation_metric")) == len(LABELS)


def test_progress_and_checkpoints_are_reported(undisturbed: Trial) -> None:
    master = undisturbed.master
    progress = [body["progress"] for body in master.bodies("/progress")]
    assert progress == sorted(progress)
    assert progress[-1] == 1
    steps = [one["metadata"]["steps_completed"] for one in master.checkpoints]
    assert steps == [5, 10, 15]
    for checkpoint in master.checkpoints:
        assert "state_dict.pth" in checkpoint["resources"]
        for name, size in checkpoint["resources"].items():
            file = undisturbed.storage / checkpoint["uuid"] / name
            assert name.endswith("/") or file.stat().st_size == int(size)


def pictures(trial: Trial) -> dict[str, list[Any]]:
    """What its event files, as Determined has uploaded them, hold of pictures, by tag."""
    found: dict[str, list[Any]] = {}
    for file in trial.storage.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file), {"images": 0})
        events.Reload()
        for tag in events.Tags()["images"]:
            found.setdefault(tag, []).extend(events.Images(tag))
    return found


def test_pictures_go_to_tensorboard_and_change_nothing(
    make_trial: Callable[..., Trial], undisturbed: Trial
) -> None:
    trial = make_trial(tensorboard_pictures=True)
    finish(trial)
    assert_equal(trial, undisturbed)
    found = pictures(trial)
    assert {"round/queried", "round/confusion_matrix", "round/grad_cam"} <= found.keys()
    ends = [BATCHES_PER_ROUND * (round_ + 1) for round_ in range(len(LABELS))]
    assert sorted(one.step for one in found["round/queried"]) == ends
    size = sum(len(one.encoded_image_string) for one in itertools.chain(*found.values()))
    assert 1e5 < size < len(LABELS) * 1e6
    assert pictures(undisturbed) == {}


def test_paused_within_a_round(make_trial: Callable[..., Trial], undisturbed: Trial) -> None:
    trial = make_trial()
    signalled = 7  # the second batch of the second round
    process = trial.start(report_of("training", signalled))
    assert processes.wait(process) == 0, trial.log.read_text()
    assert trial.master.acknowledged == [trial.allocation]
    stopped = trial.master.checkpoints[-1]["metadata"]["steps_completed"]
    assert signalled <= stopped <= signalled + REPORTING_PERIOD
    assert stopped % BATCHES_PER_ROUND
    finish(trial)
    assert len(trial.master.acknowledged) == 1
    assert_equal(trial, undisturbed)


def test_paused_and_killed_time_and_again(
    make_trial: Callable[..., Trial], undisturbed: Trial
) -> None:
    trial = make_trial()
    process = trial.start(report_of("validation", 5))  # a round is over
    assert processes.wait(process) == 0, trial.log.read_text()
    assert trial.master.checkpoints[-1]["metadata"]["steps_completed"] in (5, 7)

    process = trial.start()
    while not any(map(report_of("training", 7), trial.master.requests)):
        assert process.is_alive(), trial.log.read_text()
        time.sleep(0.005)
    process.kill()
    assert processes.wait(process) == -signal.SIGKILL

    # The last batch is trained, and not yet validated.
    process = trial.start(lambda request: request.body.get("progress") == 1)
    assert processes.wait(process) == 0, trial.log.read_text()
    assert trial.master.checkpoints[-1]["metadata"]["steps_completed"] == 15
    assert [one.steps for one in trial.master.of_group("validation")] == [5, 10]

    finish(trial)
    assert_equal(trial, undisturbed)


def test_another_trials_checkpoint_gives_weights_and_no_labels(
    make_trial: Callable[..., Trial], undisturbed: Trial
) -> None:
    trial = make_trial(rounds=1)
    uuid = undisturbed.master.checkpoints[-1]["uuid"]
    shutil.copytree(undisturbed.storage / uuid, trial.storage / uuid)
    # By the number in it Determined tells another trial's checkpoint.
    other = trial.storage / uuid / "trial_state.pkl"
    state = pickle.loads(other.read_bytes())
    other.write_bytes(pickle.dumps({**state, "trial_id": 2}))
    assert processes.wait(trial.start(checkpoint=(uuid, 0))) == 0, trial.log.read_text()
    query = trial.master.of_group("active_learning")
    assert [(one.steps, one.values["labeled_samples"]) for one in query] == [(1, LABELS[0])]
    losses = [one.master.of_group("training")[0].values["loss"] for one in (trial, undisturbed)]
    assert losses[0] < losses[1]


def test_paused_and_killed_before_the_first_round_is_done(
    make_trial: Callable[..., Trial],
) -> None:
    settings = {
        "architecture": "small_cnn",
        "rounds": 2,
        "between_rounds": "reset",
        "self_supervised_steps": 7,
        "self_supervised_batch_size": 32,
    }
    undisturbed, trial = make_trial(**settings), make_trial(**settings)
    finish(undisturbed)
    master = undisturbed.master
    (report,) = master.of_group("self_supervision")
    assert (report.steps, report.values["step"]) == (0, 7)
    (kept, *rounds) = [one["metadata"]["steps_completed"] for one in master.checkpoints]
    assert (kept, rounds) == (0, [5, 10])
    assert "backbone.safetensors" in master.checkpoints[0]["resources"]

    process = trial.start(lambda request: request.path.endswith("/runs/start"))
    assert processes.wait(process) == 0, trial.log.read_text()
    assert trial.master.acknowledged == [trial.allocation]
    assert "self_supervision.pth" in trial.master.checkpoints[-1]["resources"]
    assert "step 2 of 7" in trial.log.read_text()  # within a reporting period
    assert trial.master.reports == []

    process = trial.start()
    # Reports are sent in the background: one that a kill has cut off is not sent again.
    while len(trial.master.checkpoints) < 2 or not trial.master.of_group("self_supervision"):
        assert process.is_alive(), trial.log.read_text()
        time.sleep(0.005)
    process.kill()
    assert processes.wait(process) == -signal.SIGKILL
    assert "backbone.safetensors" in trial.master.checkpoints[-1]["resources"]

    finish(trial)
    assert trial.log.read_text().count("step 7 of 7") == 1
    assert_equal(trial, undisturbed)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch_size": 64}, "hyperparameters.batch_size: 64"),
        ({"label_budget": 5000}, "hyperparameters.label_budget: 5000"),  # more than there are
        ({"pretrained_backbone": "no/file"}, "hyperparameters.pretrained_backbone: no/file"),
    ],
)
def test_an_invalid_hyperparameter_is_no_crash(
    make_trial: Callable[..., Trial], changes: dict[str, Any], complaint: str
) -> None:
    trial = make_trial(**changes)
    assert processes.wait(trial.start()) == 0, trial.log.read_text()
    assert trial.master.bodies("/early_exit") == [{"reason": "EXITED_REASON_INVALID_HP"}]
    assert trial.master.reports == []
    assert complaint in trial.log.read_text()


def test_a_trial_that_diverges_is_dropped_by_the_search(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(
        architecture="small_cnn", learning_rate=10, weight_decay=10, batches_per_round=80
    )
    assert processes.wait(trial.start()) == 0, trial.log.read_text()
    master = trial.master
    assert master.refused == []
    assert master.bodies("/early_exit") == [{"reason": "EXITED_REASON_INVALID_HP"}]
    assert master.checkpoints == []  # weights that are no numbers are not kept
    assert "the training loss is nan in round 0" in trial.log.read_text()


def test_data_that_cannot_be_used_fail_the_trial_in_one_line(
    make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    trial = make_trial(dataset="folder:none", data_dir=str(tmp_path))
    assert processes.wait(trial.start()) == 2
    assert trial.master.bodies("/early_exit") == []  # other trials would do no better
    said = trial.log.read_text()
    assert said.splitlines()[-1].startswith(f"error: {tmp_path}/none: cannot be read (No such")
    assert "Traceback" not in said


def test_more_ranks_than_slots_are_refused(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(slots=1)
    variables = {**trial.environment(), "WORLD_SIZE": "3", "RANK": "0"}
    prepare = functools.partial(enter_container, trial.folder)
    assert processes.wait(processes.start([], trial.log, variables, prepare)) == 2
    assert trial.log.read_text().splitlines()[-1] == (
        "error: resources.slots_per_trial: 1, and 3 processes were started; raise it, or leave "
        "their number to determined.launch.torch_distributed"
    )


def test_two_slots_paused_and_gone_on_with(make_trial: Callable[..., Trial]) -> None:
    """By Determined's own launcher: the first rank speaks for all, a pause stops all."""
    trial = make_trial(slots=2, architecture="small_cnn")
    assert trial.start_fresh(report_of("training", 7)).wait(timeout=240) == 0, trial.log.read_text()
    assert trial.master.acknowledged == [trial.allocation]
    stopped = trial.master.checkpoints[-1]["metadata"]["steps_completed"]
    assert 7 <= stopped <= 7 + REPORTING_PERIOD
    assert trial.start_fresh().wait(timeout=240) == 0, trial.log.read_text()
    master = trial.master
    assert master.refused == []
    ends = [BATCHES_PER_ROUND * (round_ + 1) for round_ in range(len(LABELS))]
    assert [one.steps for one in master.of_group("validation")] == ends
    assert [one.steps for one in master.of_group("training")] == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    said = [one.values["labeled_samples"] for one in master.of_group("active_learning")]
    assert said == list(LABELS)
    acquired = trial.state()["callbacks"]["active_learning"]["acquired_round"]
    assert [int((acquired == round_).sum()) for round_ in range(len(LABELS))] == [10, 6, 6]
