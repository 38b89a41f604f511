"""model_def.py as a trial on a cluster: real processes, Determined's client, a stand-in master.

The tests check what the master receives, and that a paused or killed trial ends like any other.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qs

import pytest
import yaml
from determined import core
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cluster.entry
import cluster.master
from active_learning import ActiveLearner
from cluster.checkpoints import KeptCheckpoints
from cluster.master import Master
from reporting import round_pictures
from run_folder.names import DESCRIPTION, OPTIMIZER, STATE, WEIGHTS
from run_folder.reader import open_model
from tests.conftest import ROOT, small_values
from tests.fake_master import (
    EXPERIMENT_ID,
    RECORDED,
    FakeMaster,
    Report,
    Request,
    Trial,
    enter_container,
    recorded_conversation,
)
from tests.reliability import processes
from training.ranks import ALONE

BATCHES_PER_ROUND, REPORTING_PERIOD = 5, 2
LABELS = (10, 16, 22)  # after each round
GROUPS = {
    "training": {"loss", "accuracy", "learning_rate", "epochs", "batches"},
    "validation": {
        "val_loss", "val_accuracy", "val_auc", "val_ece", "val_worst_recall", "labeled_samples",
        "annotation_minutes", "epochs", "batches",
    },
    "test": {"test_loss", "test_accuracy", "test_auc", "epochs"},
    "active_learning": {
        "labeled_samples", "wrong_labels", "annotation_minutes", "query_seconds",
        "class_imbalance", "epochs",
    },
    "learning_curve": {"accuracy_by_labels", "auc_by_labels", "aubc", "epochs"},
}  # fmt: skip
UNCERTAINTY = {"uncertainty_queried", "uncertainty_candidates"}  # from the second query on
MOST_CHARTS = 20  # that one looks through in the WebUI's Metrics tab


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
    """Run `trial` to its end."""
    status = processes.wait(trial.start())
    assert status == 0, trial.log.read_text()


@pytest.fixture(scope="module")
def undisturbed(make_trial: Callable[..., Trial]) -> Trial:
    """A trial that was never interrupted, in a fresh interpreter."""
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
    """The reports without their timing, in a fixed order."""
    return [
        (one.group, one.steps, {k: v for k, v in one.values.items() if k != "query_seconds"})
        for one in sorted(reports, key=lambda one: (one.group, one.steps))
    ]


def assert_equal(trial: Trial, undisturbed: Trial) -> None:
    """`trial` sent the same reports and ended with the same bits as the undisturbed one."""
    assert trial.master.refused == []
    assert without_time(trial.master.reports) == without_time(undisturbed.master.reports)
    states = [one.state() for one in (trial, undisturbed)]
    for state in states:
        # A pause between the last batch and its validation leaves a checkpoint that knows nothing
        # of the last round's result. No other is written, and none needs it.
        del state["learner"]["results"][len(LABELS) - 1 :]
        del state["progress"]
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
        "learning_curve": ends,
        "active_learning": [end - BATCHES_PER_ROUND + 1 for end in ends],
    }
    assert {one.group for one in master.reports} == set(GROUPS)
    for group, names in GROUPS.items():
        for report in master.of_group(group):
            assert names <= report.values.keys() <= names | UNCERTAINTY, report


def test_the_metrics_tab_stays_readable(undisturbed: Trial) -> None:
    """The WebUI draws a chart for each name, without its prefix train_ or val_."""
    names = {name for one in undisturbed.master.reports for name in one.values}
    charts = {name.removeprefix("val_") for name in names} - {"epochs", "batches"}
    assert len(charts) <= MOST_CHARTS, sorted(charts)


def test_reports_say_what_the_weights_were_trained_on(undisturbed: Trial) -> None:
    master = undisturbed.master
    for group in ("validation", "active_learning"):
        reports = [
            (one.values["epochs"], one.values["labeled_samples"]) for one in master.of_group(group)
        ]
        assert reports == list(enumerate(LABELS, start=1)), group
    assert [one.values["epochs"] for one in master.of_group("test")] == [1, 2, 3]
    pool = undisturbed.state()["state.safetensors"]
    assert int((pool["pool.labels"] >= 0).sum()) == LABELS[-1]


def test_the_learning_curve_has_labels_for_its_epoch_axis(undisturbed: Trial) -> None:
    master = undisturbed.master
    curve = [one.values for one in master.of_group("learning_curve")]
    assert [one["epochs"] for one in curve] == list(LABELS)
    accuracies = [one.values["val_accuracy"] for one in master.of_group("validation")]
    assert [one["accuracy_by_labels"] for one in curve] == pytest.approx(accuracies)
    first, second, last = accuracies  # at 10, 16 and 22 labels
    assert curve[0]["aubc"] == pytest.approx(first)
    assert curve[-1]["aubc"] == pytest.approx((first + 2 * second + last) / 4)


def test_the_log_is_readable(undisturbed: Trial) -> None:
    """A line for each query and round, with its level for the WebUI's filter, and no dictionary."""
    log = undisturbed.log.read_text()
    lines = [line for line in log.splitlines() if "active_learning:" in line]
    assert all(re.match(r"(INFO|WARNING): \[\d+\] active_learning: ", line) for line in lines)
    for round_, labels in enumerate(LABELS):
        assert f"round {round_} ({round_ + 1} of 3): {labels} labels, val_loss" in log
    assert sum("chose" in line for line in lines) == len(LABELS)
    assert "{" not in log
    assert len(log.splitlines()) < 20


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
        assert {WEIGHTS, STATE, DESCRIPTION} <= checkpoint["resources"].keys()
    newest = undisturbed.master.checkpoints[-1]
    for name, size in newest["resources"].items():
        file = undisturbed.storage / newest["uuid"] / name
        assert name.endswith("/") or file.stat().st_size == int(size)


def test_only_the_latest_and_the_best_checkpoint_are_kept(undisturbed: Trial) -> None:
    master = undisturbed.master
    losses = [one.values["val_loss"] for one in master.of_group("validation")]
    written = [one["uuid"] for one in master.checkpoints]
    best = written[losses.index(min(losses))]
    kept = {written[-1], best}
    assert {path.name for path in undisturbed.storage.iterdir() if path.name in written} == kept
    assert set(master.deleted) == set(written) - kept
    # Weights start anew each round, so no checkpoint at a round's end holds the optimizer's state.
    assert master.removed_files == []
    assert not list(undisturbed.storage.glob(f"*/{OPTIMIZER}"))


def test_the_best_checkpoint_loses_the_optimizer_once_it_is_not_the_latest() -> None:
    deleted: list[str] = []
    shrunk: list[str] = []
    storage = cast(core.CheckpointContext, SimpleNamespace(delete=deleted.append))
    master = cast(Master, SimpleNamespace(remove_optimizer=shrunk.append))
    kept = KeptCheckpoints(storage, master, with_optimizer=True)
    for name, cost in (("a", 3.0), ("b", 1.0), ("c", 2.0), ("d", 0.5)):
        kept.written(name, cost)
        # A restart begins with what the newest checkpoint knew, and with that checkpoint itself.
        restored = KeptCheckpoints(storage, master, with_optimizer=True)
        restored.load_state(kept.state())
        kept = restored
    assert sorted(deleted) == ["a", "b", "c"]
    assert shrunk == ["b"]


def test_a_checkpoint_explains_itself(undisturbed: Trial, tmp_path: Path) -> None:
    """What `det checkpoint download` brings opens like a run folder."""
    newest = undisturbed.storage / undisturbed.master.checkpoints[-1]["uuid"]
    downloaded = tmp_path / "downloaded"
    shutil.copytree(newest, downloaded)
    model = open_model(downloaded)
    assert model.class_names == tuple(map(str, range(10)))
    assert model.round == len(LABELS) - 1
    assert len(model.pool.labelled) == len(model.queries) == LABELS[-1]
    assert model.metrics[-1]["val_loss"] == model.val_loss
    assert 0.05 <= model.temperature <= 20
    assert model.description.settings["rounds"] == len(LABELS)
    assert not list(downloaded.glob("*.pkl.*"))


def pictures(trial: Trial) -> dict[str, list[Any]]:
    """The pictures in the event files that Determined has uploaded, by tag."""
    found: dict[str, list[Any]] = {}
    for file in trial.storage.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file), {"images": 0})
        events.Reload()
        for tag in events.Tags()["images"]:
            found.setdefault(tag, []).extend(events.Images(tag))
    return found


def enter_with_time_for_pictures(folder: Path) -> None:
    """Enter the container; rounds of seconds would leave too little time for all pictures."""
    enter_container(folder)
    round_pictures.SHARE = 1e6


def test_pictures_go_to_tensorboard_and_change_nothing(
    make_trial: Callable[..., Trial], undisturbed: Trial
) -> None:
    trial = make_trial(tensorboard_pictures=True)
    prepare = functools.partial(enter_with_time_for_pictures, trial.folder)
    process = processes.start([], trial.log, trial.environment(), prepare)
    assert processes.wait(process) == 0, trial.log.read_text()
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


def test_another_trials_checkpoint_gives_its_backbone_and_no_labels(
    make_trial: Callable[..., Trial], undisturbed: Trial
) -> None:
    trial = make_trial(rounds=1, label_budget=10, between_rounds="keep")
    uuid = undisturbed.master.checkpoints[-1]["uuid"]
    shutil.copytree(undisturbed.storage / uuid, trial.storage / uuid)
    file = trial.storage / uuid / DESCRIPTION
    content = json.loads(file.read_text())
    content["origin"]["trial_id"] = 2
    file.write_text(json.dumps(content))
    assert processes.wait(trial.start(checkpoint=(uuid, 0))) == 0, trial.log.read_text()
    queries = trial.master.of_group("active_learning")
    assert [(one.steps, one.values["labeled_samples"]) for one in queries] == [(1, LABELS[0])]
    losses = [one.master.of_group("training")[0].values["loss"] for one in (trial, undisturbed)]
    assert losses[0] != losses[1]
    log = trial.log.read_text()
    assert "warm start: the backbone comes from trial 2 and has seen 22 labels there" in log
    steps = {int(v) for k, v in trial.state()[OPTIMIZER].items() if k.endswith(".step")}
    assert steps == {BATCHES_PER_ROUND}  # fresh moments


def test_paused_and_killed_before_the_first_round_is_done(
    make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    settings = {
        "architecture": "small_cnn",
        "rounds": 2,
        "between_rounds": "reset",
        "self_supervised_steps": 7,
        "self_supervised_batch_size": 32,
    }
    # Each with a data folder of its own, because equal trials share their backbone there.
    undisturbed, trial = (
        make_trial(**settings, data_dir=str(tmp_path / name)) for name in ("one", "other")
    )
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


def test_self_supervision_is_stored_now_and_then(
    tmp_path: Path, make_learner: Callable[..., ActiveLearner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a kill, which asks for nothing before, costs a few minutes and not hours."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stored: list[Path] = []

    @contextlib.contextmanager
    def store_path(metadata: dict[str, Any]) -> Iterator[tuple[Path, str]]:
        assert metadata == {"steps_completed": 0}
        folder = tmp_path / str(len(stored))
        folder.mkdir()
        yield folder, folder.name
        stored.append(folder)

    learner = make_learner(self_supervised_steps=9, self_supervised_batch_size=32)
    writer = SimpleNamespace(add_scalar=lambda *_: None)
    trial: Any = SimpleNamespace(
        learner=learner,
        ranks=ALONE,
        questions=None,
        stored_at=now,
        context=SimpleNamespace(get_tensorboard_writer=lambda: writer),
        core=SimpleNamespace(
            checkpoint=SimpleNamespace(store_path=store_path),
            preempt=SimpleNamespace(should_preempt=lambda: False),
        ),
    )
    work = learner.pretraining
    assert work is not None
    steps: list[int] = []
    for minutes in range(0, 31, 6):
        now = 60.0 * minutes
        work.train_step()
        if cluster.entry._report_pretraining(trial, work.report()) and len(stored) > len(steps):
            steps.append(minutes)
    assert steps == [12, 24]
    assert trial.latest_checkpoint == "1"
    resumed = make_learner(self_supervised_steps=9, self_supervised_batch_size=32).pretraining
    assert resumed is not None
    resumed.load((stored[-1] / "self_supervision.pth").read_bytes())
    assert resumed.step == 5


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"label_budget": 5000}, "hyperparameters.label_budget: 5000"),  # more than there are
        ({"pretrained_backbone": "no/file"}, "hyperparameters.pretrained_backbone: no/file"),
        ({"dataset": "folder:none", "data_dir": "nowhere"}, "nowhere: cannot be read"),
        ({"dropuot": 0.1}, "hyperparameters.dropuot: unknown (did you mean dropout?)"),
    ],
)
def test_a_mistake_ends_the_experiment_with_one_line(
    make_trial: Callable[..., Trial], changes: dict[str, Any], complaint: str
) -> None:
    trial = make_trial(**changes)
    assert processes.wait(trial.start()) == 2
    master, log = trial.master, trial.log.read_text()
    assert master.refused == []
    assert master.canceled
    assert master.description.startswith(f"error: {complaint}")
    assert master.bodies("/early_exit") == []  # which the master would count as completed
    (line,) = [line for line in log.splitlines() if complaint in line]
    assert line.startswith("ERROR: ")  # Determined reads the level from the start
    assert "Traceback" not in log


def test_a_bad_draw_of_a_search_ends_its_trial_alone(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(label_budget=5000)
    trial.config["hyperparameters"]["label_budget"] = {
        "type": "categorical", "vals": [22, 5000]
    }  # fmt: skip
    trial.hparams = {**trial.hparams, "label_budget": 5000}
    assert processes.wait(trial.start()) == 0, trial.log.read_text()
    assert trial.master.bodies("/early_exit") == [{"reason": "EXITED_REASON_INVALID_HP"}]
    assert not trial.master.canceled
    assert "hyperparameters.label_budget: 5000" in trial.log.read_text()


def test_a_trial_that_diverges_ends_the_experiment(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(
        architecture="small_cnn", learning_rate=10, weight_decay=10, batches_per_round=80
    )
    assert processes.wait(trial.start()) == 2, trial.log.read_text()
    master = trial.master
    assert master.refused == []
    assert master.canceled
    assert "the training loss is nan in round 0" in master.description
    assert master.checkpoints == []  # weights that are no numbers are not kept


def enter_impatiently(folder: Path) -> None:
    """Enter the container, and ask the master at every report."""
    enter_container(folder)
    cluster.master.SECONDS_BETWEEN_QUESTIONS = 0


def test_a_trial_that_the_search_has_stopped_ends_soon(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(architecture="small_cnn", rounds=30, label_budget=184)

    def pruned(request: Request) -> bool:
        if report_of("validation", BATCHES_PER_ROUND)(request):
            trial.master.trial_state = "STATE_STOPPING_COMPLETED"
        return False

    prepare = functools.partial(enter_impatiently, trial.folder)
    process = processes.start([], trial.log, trial.environment(pruned), prepare)
    assert processes.wait(process) == 0, trial.log.read_text()
    assert "the search has stopped this trial" in trial.log.read_text()
    last = max(one.steps for one in trial.master.reports)
    assert last <= 2 * BATCHES_PER_ROUND
    assert trial.master.checkpoints[-1]["metadata"]["steps_completed"] >= BATCHES_PER_ROUND


def test_more_ranks_than_slots_are_refused(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(slots=1)
    variables = {**trial.environment(), "WORLD_SIZE": "3", "RANK": "0"}
    prepare = functools.partial(enter_container, trial.folder)
    assert processes.wait(processes.start([], trial.log, variables, prepare)) == 2
    (line,) = [one for one in trial.log.read_text().splitlines() if "slots_per_trial" in one]
    assert line.startswith("ERROR: ")
    assert line.endswith(
        "resources.slots_per_trial: 1, and 3 processes were started; raise it, or leave their "
        "number to determined.launch.torch_distributed"
    )
    assert trial.master.canceled


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
    acquired = trial.state()["state.safetensors"]["pool.round"]
    assert [int((acquired == round_).sum()) for round_ in range(len(LABELS))] == [10, 6, 6]


def test_a_local_run_and_a_trial_do_the_same(undisturbed: Trial, tmp_path: Path) -> None:
    """Both runtimes end with the same queries, metrics and weights, to the last bit."""
    config = {**undisturbed.config, "reproducibility": {"experiment_seed": 5}}  # the trial's seed
    file, run = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(config))
    log = tmp_path / "log.txt"
    process = processes.start(["--config", file, "--output-dir", run], log)
    assert processes.wait(process) == 0, log.read_text()
    checkpoint = undisturbed.storage / undisturbed.master.checkpoints[-1]["uuid"]
    assert (run / "queries.csv").read_bytes() == (checkpoint / "queries.csv").read_bytes()
    assert processes.same(processes.last_state(run), undisturbed.state())
    ours, theirs = (processes.read_rows(one / "metrics.csv") for one in (run, checkpoint))
    for mine, other in zip(ours, theirs, strict=True):
        for row in (mine, other):
            del row["query_seconds"]
            row["train_loss"] = row["train_accuracy"] = ""  # summed up in another order
        assert mine == other


class TestStandIn:
    """The stand-in answers as the real master did, in a conversation that was recorded."""

    def test_its_answers_have_the_recorded_shape(self) -> None:
        master = FakeMaster()
        answered = 0
        for one in recorded_conversation():
            path, _, query = str(one["path"]).partition("?")
            for old, new in (("trials/89", "trials/1"), ("runs/89", "runs/1"),
                             ("experiments/56", f"experiments/{EXPERIMENT_ID}")):  # fmt: skip
                path = path.replace(old, new)
            if "context_directory" in path or "rendezvous" in path or "acceleratorData" in path:
                continue  # the container's entrypoint asks for these, not the trial
            body = one["request"] or {}
            if "runId" in body:
                body = {**body, "runId": 1}
            if "signals/preemption" in path:
                query = "timeout_seconds=0"
            status, answer = master.answer(Request(one["method"], path, body), parse_qs(query))
            assert status == one["status"], (path, answer)
            if status == 200:
                assert answer.keys() >= one["response"].keys() - {"storageId"}, path
            answered += 1
        assert answered > 40
        assert master.refused == []

    def test_its_container_has_the_recorded_variables(
        self, make_trial: Callable[..., Trial]
    ) -> None:
        recorded = json.loads((RECORDED / "container.json").read_text(encoding="utf-8"))
        ours = make_trial().environment().keys() - {"OMP_NUM_THREADS"}
        assert ours <= recorded["environment"].keys()
