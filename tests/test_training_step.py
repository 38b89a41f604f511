"""A training step: its images and dropout masks, its loss, and the seeds of all that is random."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import training.inference
import training.seeds
from active_learning import ActiveLearner, run
from data import Splits
from tests.conftest import ask, part
from training.balance import class_weights
from training.oracle import SimulatedOracle

Build = Callable[..., ActiveLearner]


class Steps:
    """Keeps what the network is given and what it answers in every training step."""

    def __init__(self, learner: ActiveLearner) -> None:
        self.images: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.logits: list[Tensor] = []
        learner.train_network.register_forward_hook(self._keep)

    def _keep(self, _: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.images.append(inputs[0].detach().clone())
        self.masks.append(inputs[1].detach().clone())
        self.logits.append(output.detach().clone())


def all_differ(tensors: list[Tensor]) -> bool:
    return len({tensor.numpy().tobytes() for tensor in tensors}) == len(tensors)


def test_every_step_draws_its_own_views_and_masks(make_learner: Build) -> None:
    """With one labelled image, only augmentation and dropout can tell two steps apart."""
    learner = make_learner(
        initial_labeled_size=1, samples_to_label=1, rounds=2, batches_per_round=6, crop_padding=3
    )
    steps = Steps(learner)
    for _ in range(2):
        ask(learner)
        learner.train()
        if learner.round == 1:
            first_round = len(steps.images)
    assert first_round == 6
    assert all_differ(steps.images[:first_round])
    assert all_differ(steps.masks)


def test_a_batch_larger_than_the_labelled_set_takes_images_more_than_once(
    make_learner: Build,
) -> None:
    learner = make_learner(initial_labeled_size=3, batch_size=8, batches_per_round=1)
    labelled = set(ask(learner).indices.tolist())
    steps = Steps(learner)
    learner.train()
    assert steps.images[0].shape[0] == 8
    assert set(learner._batches.flatten().tolist()) == labelled


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_the_smoothed_cross_entropy(
    smoothing: float, weighted: bool, make_learner: Build
) -> None:
    learner = make_learner(
        label_smoothing=smoothing, class_weighted_loss=weighted, batch_size=8, batches_per_round=2
    )
    ask(learner)
    steps = Steps(learner)
    learner.train_step()
    labels = learner.pool.labels[learner._batches[0]]
    # Smoothed targets written out: the mass that is left over is shared by all classes.
    classes = learner.train_store.num_classes
    targets = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    losses = -(targets * steps.logits[0].log_softmax(1)).sum(1)
    labelled = learner.pool.labels[learner.pool.labelled]
    weights = class_weights(labelled, classes)[labels] if weighted else torch.ones(len(labels))
    expected = (losses * weights).sum() / weights.sum()
    total, _, count = learner.meter.take()[:3]
    torch.testing.assert_close(total / count, expected)


@pytest.mark.parametrize("uncertainty", ["mc_dropout", "test_time_augmentation"])
def test_purposes_have_streams_of_their_own(
    uncertainty: str, digits: Splits, make_learner: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two places of the code draw from one stream, and none draws the same thing twice."""
    drawn: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    purposes: dict[str, set[str]] = defaultdict(set)
    times: dict[tuple[Any, ...], int] = defaultdict(int)  # by trial seed, purpose and numbers
    original = training.seeds.derive_seed

    def record(trial_seed: int, purpose: str, *numbers: int) -> int:
        frame = sys._getframe(1)
        if frame.f_code.co_name == "make_generator":
            assert frame.f_back is not None
            frame = frame.f_back
        place = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
        drawn[purpose, numbers].add(place)
        purposes[purpose].add(place)
        times[trial_seed, purpose, numbers] += 1
        return original(trial_seed, purpose, *numbers)

    for module in (training.seeds, training.inference):
        monkeypatch.setattr(module, "derive_seed", record)
    learner = make_learner(
        label_noise=0.3,
        self_supervised_steps=2,
        self_supervised_batch_size=16,
        self_supervised_seed=1,  # of a network of its own, which trials share
        between_rounds="reset",
        uncertainty=uncertainty,
        candidate_pool_size=40,
    )
    train = learner.train_store
    oracle = SimulatedOracle.of_trial(learner, train)
    store = part(digits.val, 20)
    assert len(list(run(learner, oracle, store, store))) == 3
    passes = {"mc_dropout": 2, "test_time_augmentation": 2 * 3}[uncertainty]
    passes_purpose = {"mc_dropout": "mc_dropout", "test_time_augmentation": "view"}[uncertainty]
    assert {"query", "candidates", "order", "train", "weights", passes_purpose} <= purposes.keys()
    assert {purpose: places for purpose, places in purposes.items() if len(places) > 1} == {}
    assert {key: count for key, count in times.items() if count > 1} == {}
    # Each round and each step has its own.
    for purpose, count in (("query", 3), ("train", 9), ("weights", 3), (passes_purpose, passes)):
        assert len([numbers for name, numbers in drawn if name == purpose]) == count
