"""Every hyperparameter has an effect: a run with another value of it is another run.

A new hyperparameter needs a line in `CHANGES`, or a test of its own and its name in `ELSEWHERE`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import active_learning
import model_def
import training.loading
from active_learning import ActiveLearner, Observer, run
from data import ImageStore, Splits
from reporting.round_pictures import PictureSchedule, RoundEnd
from resnet_custom import SplitNetwork
from tests.conftest import part, small_values
from training.backbone_file import backbone_bytes
from training.hyperparameters import Hyperparameters
from training.loading import load_data
from training.oracle import Proposal, SimulatedOracle

SELF_SUPERVISED = {"self_supervised_steps": 2, "self_supervised_batch_size": 16}
SHRUNK = {"between_rounds": "shrink_and_perturb"}
NOISY = {"label_noise": 0.5}
EXPERT = {**NOISY, "expert_share": 0.5}
# For each hyperparameter another value than that of `small_values`, and what else both runs need.
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "architecture": ("small_resnet", {}),
    "dropout": (0.5, {}),
    "self_supervised_steps": (3, SELF_SUPERVISED),
    "self_supervised_batch_size": (8, SELF_SUPERVISED),
    "self_supervised_learning_rate": (0.01, SELF_SUPERVISED),
    "self_supervised_seed": (1, SELF_SUPERVISED),
    "batch_size": (16, {}),
    "batches_per_round": (4, {}),
    "learning_rate": (0.01, {}),
    "weight_decay": (1.0, {}),
    "warmup_fraction": (0.9, {}),
    "label_smoothing": (0.0, {}),
    "class_balanced_batches": (True, {}),
    "class_weighted_loss": (True, {}),
    "flips_and_rotations": (True, {}),
    "average_rotations": (True, {"flips_and_rotations": True}),
    "crop_padding": (0, {}),
    "colour_jitter": (0.0, {}),
    "stain_jitter": (0.5, {}),
    "precision": ("bfloat16", {}),
    "reporting_period": (1, SELF_SUPERVISED),
    "rounds": (2, {}),
    "initial_labeled_size": (11, {}),
    "initial_pool": ("pixels", {}),
    "samples_to_label": (7, {}),
    "query_growth": (1.5, {}),
    "label_budget": (18, {}),
    "minutes_budget": (1.5, {}),
    "between_rounds": ("reset", {}),
    "shrink_factor": (0.9, SHRUNK),
    "perturb_scale": (0.9, SHRUNK),
    "stop_at_val_accuracy": (0.01, {}),
    "stop_below_uncertainty": (10.0, {}),
    "label_noise": (0.5, {}),
    "label_noise_kind": ("confusion", NOISY),
    "seconds_per_label": (60.0, {}),
    "expert_share": (0.2, EXPERT),
    "expert_seconds_per_label": (60.0, EXPERT),
    "expert_label_noise": (0.9, EXPERT),
    "query_strategy": ("margin", {}),
    "uncertainty": ("test_time_augmentation", {}),
    "uncertainty_passes": (2, {}),
    "prefilter_factor": (1, {}),
    "candidate_pool_size": (20, {}),
    "scoring_batch_size": (8, {}),
}
# Those that say where a run's data come from, or that its runtime reads: the tests below.
DATA = {
    "dataset": "breastmnist",
    "data_dir": "elsewhere",
    "image_size": 9,
    "split_seed": 1,
    "validation_fraction": 0.2,
    "test_fraction": 0.3,
    "group_by": "patient",
    "max_pixels": 1000,
}
RUNTIME = {"seed": 7, "evaluation_size": 9, "tensorboard_pictures": True}
ELSEWHERE = {
    *DATA,
    *RUNTIME,
    *("pretrained", "freeze_backbone", "pretrained_backbone", "compile"),
    "tf32",  # in test_precision.py
    "oracle",
    "stop_after_rounds_without_gain",  # in test_stopping.py
}
Outcome = dict[str, Any]


class Recorder(Observer):
    """Notes what happens in a run: reports of pre-training, queries, labels and sweeps."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def pretrained(self, metrics: dict[str, float]) -> bool:
        self.events.append(metrics)
        return True

    def labelled(self, proposal: Proposal) -> None:
        mean = proposal.candidates_uncertainty
        self.events.append((proposal.round, proposal.strategy, proposal.indices.tolist(), mean))

    def sweep(self, batches: Iterable[Any], title: str) -> Iterable[Any]:
        batches = list(batches)
        self.events.append((title, len(batches)))
        return batches


@pytest.fixture(scope="module")
def colour(digits: Splits) -> ImageStore:
    """150 digits in colours of their own, so that settings of colour have an effect."""
    store = part(digits.train, 150)
    generator = torch.Generator().manual_seed(0)
    tint = torch.rand(len(store), 3, 1, 1, generator=generator)
    images = (store.images.expand(-1, 3, -1, -1) * (0.3 + 0.7 * tint)).to(torch.uint8)
    return ImageStore(images, store.labels, store.class_names)


@pytest.fixture(scope="module")
def outcome_of(colour: ImageStore) -> Callable[..., Outcome]:
    """Runs a learner with these changes; what can be seen of the run."""
    train, val = part(colour, 120), colour.subset(torch.arange(120, 150))
    known: dict[str, Outcome] = {}

    def outcome(**changes: Any) -> Outcome:
        if str(changes) in known:
            return known[str(changes)]
        hp = Hyperparameters.from_mapping(small_values(**{"stain_jitter": 0.1, **changes}))
        recorder = Recorder()
        learner = ActiveLearner(hp, train, 0, progress=recorder.sweep)
        oracle = SimulatedOracle.of_trial(learner, train)
        evaluations = [
            (one.labels, one.annotation_minutes, one.val, one.test)
            for one in run(learner, oracle, val, val, recorder)
        ]
        digest = hashlib.sha256()
        for value in learner.network.state_dict().values():
            digest.update(value.numpy().tobytes())
        known[str(changes)] = {
            "events": recorder.events,
            "evaluations": evaluations,
            "labels": learner.pool.labels.tolist(),
            "weights": digest.hexdigest(),
        }
        return known[str(changes)]

    return outcome


def test_none_is_left_out() -> None:
    names = {field.name for field in dataclasses.fields(Hyperparameters)}
    assert {*CHANGES, *ELSEWHERE} == names
    assert not CHANGES.keys() & ELSEWHERE


@pytest.mark.parametrize("name", CHANGES)
def test_another_value_gives_another_run(name: str, outcome_of: Callable[..., Outcome]) -> None:
    value, needed = CHANGES[name]
    assert outcome_of(**{**needed, name: value}) != outcome_of(**needed)


def test_the_same_values_give_the_same_run(outcome_of: Callable[..., Outcome]) -> None:
    """Else the test above could not fail."""
    assert outcome_of(seconds_per_label=5) == outcome_of(seconds_per_label=5.0)


@pytest.mark.parametrize("name", DATA)
def test_the_reader_of_data_gets_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def record(dataset: str, data_dir: str, **rest: Any) -> None:
        given.update(rest, dataset=dataset, data_dir=data_dir)

    monkeypatch.setattr(training.loading, "load_splits", record)
    load_data(Hyperparameters.from_mapping(small_values(**{name: DATA[name]})))
    assert given[name] == DATA[name]


@pytest.mark.parametrize("oracle", ["simulated", "people"])
def test_people_may_label_data_without_labels(oracle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(training.loading, "load_splits", lambda *_, **rest: given.update(rest))
    load_data(Hyperparameters.from_mapping(small_values(oracle=oracle)))
    assert given["allow_unlabelled"] == (oracle == "people")


@pytest.mark.parametrize("freeze", [False, True])
def test_the_network_gets_what_to_start_from(
    freeze: bool, colour: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []

    class Recorded(SplitNetwork):
        def __init__(self, *arguments: Any) -> None:
            given.append(arguments)
            super().__init__("small_cnn", *arguments[1:4])

    monkeypatch.setattr(active_learning, "SplitNetwork", Recorded)
    values = small_values(architecture="vgg16", pretrained=True, freeze_backbone=freeze)
    ActiveLearner(Hyperparameters.from_mapping(values), colour, 0)
    assert given[0][0] == "vgg16"
    assert given[0][4:] == (True, freeze, False)


def test_a_pretrained_backbone_is_started_from(
    colour: ImageStore, outcome_of: Callable[..., Outcome], tmp_path: Path
) -> None:
    other = SplitNetwork("small_cnn", 10, 3, torch.Generator().manual_seed(9))
    hp = Hyperparameters.from_mapping(small_values())
    file = tmp_path / "backbone.safetensors"
    file.write_bytes(backbone_bytes(other.backbone.state_dict(), hp, 9))
    assert outcome_of(pretrained_backbone=str(file)) != outcome_of()


def test_compiling_compiles(colour: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    for compile_ in (False, True):
        learner = ActiveLearner(
            Hyperparameters.from_mapping(small_values(compile=compile_)), colour, 0
        )
        assert (learner.network in compiled) == compile_


def test_a_run_on_this_machine_reads_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[RoundEnd] = []

    def draw(self: PictureSchedule, end: RoundEnd, seconds: float) -> Iterator[tuple[str, bytes]]:
        drawn.append(end)
        return iter(())

    monkeypatch.setattr(PictureSchedule, "draw", draw)
    config = tmp_path / "config.yaml"
    settings = small_values(rounds=1, label_budget=0, **RUNTIME)
    config.write_text(
        yaml.safe_dump({"hyperparameters": settings, "reproducibility": {"experiment_seed": 0}})
    )
    with caplog.at_level("INFO"):
        assert model_def.main(["--config", str(config), "--output-dir", str(tmp_path / "run")]) == 0
    assert "9 of 269 validation images, 9 of 269 test images" in caplog.text
    assert ", seed 7" in caplog.text
    assert [end.round for end in drawn] == [0]
