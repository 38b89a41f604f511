"""Finished self-supervision on disk: who shares it, who waits, and what is learnt again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load

from active_learning import ActiveLearner
from data import ImageStore, Splits
from tests.conftest import small_values
from tests.reliability import processes
from training import backbone_cache
from training.hyperparameters import Hyperparameters
from training.self_supervision import SelfSupervision

STEPS: dict[str, Any] = {"self_supervised_steps": 4, "self_supervised_batch_size": 32}
Metrics = list[dict[str, float]]


class Trials:
    """Makes learners that keep their backbones in one folder, and counts the steps they take."""

    def __init__(self, folder: Path, store: ImageStore, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.store = store
        self.steps = 0
        step = SelfSupervision.train_step

        def counted(work: SelfSupervision) -> None:
            self.steps += 1
            step(work)

        patch.setattr(SelfSupervision, "train_step", counted)

    def make(self, seed: int = 0, **changes: Any) -> ActiveLearner:
        hp = Hyperparameters.from_mapping(small_values(**{**STEPS, **changes}))
        return ActiveLearner(hp, self.store, seed, backbones=self.folder)

    def pretrained(self, seed: int = 0, **changes: Any) -> tuple[ActiveLearner, Metrics]:
        learner, metrics = self.make(seed, **changes), Metrics()

        def report(values: dict[str, float]) -> bool:
            metrics.append(values)
            return True

        assert learner.pretrain(report)
        return learner, metrics

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


@pytest.fixture
def trials(tmp_path: Path, digits: Splits, monkeypatch: pytest.MonkeyPatch) -> Trials:
    monkeypatch.setattr(backbone_cache, "POLL_SECONDS", 0.01)
    return Trials(tmp_path / "cache", digits.train.subset(torch.arange(120)), monkeypatch)


def test_trials_of_all_seeds_share_one_backbone(trials: Trials) -> None:
    first, reports = trials.pretrained(0)
    assert trials.steps == 4
    second, again = trials.pretrained(1, learning_rate=0.5, query_strategy="random")
    assert trials.steps == 4
    assert again == reports[-1:]  # as if it had taken the steps
    one, other = first.network.backbone.state_dict(), second.network.backbone.state_dict()
    assert processes.same(one, other)
    assert not torch.equal(first.network.classifier.weight, second.network.classifier.weight)
    assert len(trials.files) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"self_supervised_seed": 1},
        {"self_supervised_steps": 3},
        {"self_supervised_learning_rate": 0.01},
        {"self_supervised_batch_size": 16},
        {"weight_decay": 0.5},
        {"warmup_fraction": 0.5},
        {"flips_and_rotations": True},
        {"precision": "bfloat16"},
        {"tf32": True},
        {"architecture": "small_resnet"},
    ],
)
def test_what_the_backbone_depends_on_makes_another(
    trials: Trials, changes: dict[str, Any]
) -> None:
    works = [trials.make().pretraining, trials.make(**changes).pretraining]
    digests = [work.digest() for work in works if work is not None]
    assert len(set(digests)) == 2


def test_other_images_make_another(trials: Trials) -> None:
    work = trials.make().pretraining
    images = trials.store.images.clone()
    images[-1, 0, 0, 0] += 1
    trials.store = ImageStore(images, trials.store.labels, trials.store.class_names)
    other = trials.make().pretraining
    assert work is not None
    assert other is not None
    assert work.digest() != other.digest()


def test_digest_stays_the_same_while_it_trains(trials: Trials) -> None:
    work = trials.make().pretraining
    assert work is not None
    before = work.digest()
    work.train_step()
    resumed = trials.make().pretraining
    assert resumed is not None
    resumed.load(work.save())
    assert before == work.digest() == resumed.digest()


def test_interrupted_training_leaves_no_file_and_the_lock_free(trials: Trials) -> None:
    learner = trials.make(reporting_period=2)
    assert not learner.pretrain(lambda metrics: False)
    assert trials.steps == 2
    assert not trials.files
    trials.pretrained()
    assert len(trials.files) == 1


def test_waits_for_another_process_and_takes_its_backbone(
    trials: Trials, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = trials.pretrained()
    (file,) = trials.files
    content = file.read_bytes()
    file.unlink()
    looks = 0

    def go_on() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            file.write_bytes(content)
        return True

    learner = trials.make(seed=1)
    with FileLock(file.with_name(f".{file.name}.lock")), caplog.at_level(logging.INFO):
        assert learner.pretrain(go_on=go_on)
    assert (looks, trials.steps) == (3, 4)
    assert caplog.text.count("another process learns this backbone") == 1
    backbones = [one.network.backbone.state_dict() for one in (learner, expected)]
    assert processes.same(*backbones)


def test_a_wait_can_be_interrupted(trials: Trials) -> None:
    trials.pretrained()
    (file,) = trials.files
    file.unlink()
    learner = trials.make()
    with FileLock(file.with_name(f".{file.name}.lock")):
        assert not learner.pretrain(go_on=lambda: False)
    assert learner.pretraining is not None
    assert learner.pretrain()
    assert trials.steps == 8


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def of_another_network(file: Path) -> None:
    other = next(path for path in file.parent.glob("*.safetensors") if path != file)
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [cut_short, of_another_network])
def test_a_damaged_file_is_made_again(
    trials: Trials, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    trials.pretrained()
    (file,) = trials.files
    content = load(file.read_bytes())
    trials.pretrained(architecture="small_resnet")
    damage(file)
    trials.pretrained()
    assert trials.steps == 12
    assert processes.same(load(file.read_bytes()), content)
    assert caplog.text.count("the backbone is learnt again") == 1


def test_a_folder_that_cannot_be_written_is_only_a_warning(
    trials: Trials, caplog: pytest.LogCaptureFixture
) -> None:
    trials.folder.write_text("a file, no folder")
    trials.pretrained()
    assert trials.steps == 4
    assert caplog.text.count("not kept (") == 1
