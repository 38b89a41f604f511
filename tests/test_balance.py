"""Balanced batches and the weighted loss, on cases small enough to know the answer."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from errors import UserError
from tests.conftest import ask
from tests.test_learner import Build, assert_same, weights
from training.balance import balanced_order, class_weights, weighted_cross_entropy

LABELS = torch.tensor([3, 3, 3, 3, 3, 3, 0, 0, 5])  # six of class 3, two of class 0, one of class 5


def order(count: int, seed: int = 0) -> Tensor:
    return balanced_order(LABELS, count, torch.Generator().manual_seed(seed))


def test_every_turn_has_every_class_once() -> None:
    turns = LABELS[order(36)].view(12, 3)
    assert (turns.sort(1).values == torch.tensor([0, 3, 5])).all()
    assert len({tuple(turn) for turn in turns.tolist()}) > 1  # in no fixed order


def test_all_images_of_a_class_come_before_one_comes_again() -> None:
    seen = order(36)
    large = seen[LABELS[seen] == 3]
    assert large[:6].sort().values.tolist() == large[6:].sort().values.tolist() == [*range(6)]
    assert large[:6].tolist() != large[6:].tolist()
    assert (seen[LABELS[seen] == 5] == 8).all()


def test_a_count_that_is_no_multiple_of_the_classes() -> None:
    counts = LABELS[order(100)].bincount()
    assert counts.sum() == 100
    assert sorted(counts[[0, 3, 5]].tolist()) == [33, 33, 34]


def test_the_order_is_the_seeds() -> None:
    assert torch.equal(order(36, 1), order(36, 1))
    assert not torch.equal(order(36, 1), order(36, 2))


def test_weights_are_inverse_frequencies() -> None:
    found = class_weights(LABELS, 7)
    # 9 labels of 3 classes: 9 / (3 n) for a class of n.
    assert found.tolist() == pytest.approx([1.5, 0, 0, 0.5, 0, 3.0, 0])
    assert float(found[LABELS].mean()) == pytest.approx(1)


def test_a_known_loss() -> None:
    # Two images of class 0 with p = 1/2 and one of class 1 with p = 1/4: each class counts half.
    logits = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.75, 0.25]]).log()
    targets = torch.tensor([0, 0, 1])
    class_weight = class_weights(targets, 2)
    found = weighted_cross_entropy(logits, targets, class_weight, targets, 1, 0.0)
    assert float(found) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_smoothing_is_that_of_the_image_as_a_whole() -> None:
    # Class 2 has no labels and so the weight 0, and still a share of every smoothed target.
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 0, 1])
    single = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.3)
    expected = (single[:2].mean() + single[2]) / 2
    class_weight = class_weights(targets, 3)
    found = weighted_cross_entropy(logits, targets, class_weight, targets, 1, 0.3)
    torch.testing.assert_close(found, expected)
    without = weighted_cross_entropy(logits, targets, class_weight, targets, 1, 0.0)
    assert not torch.isclose(found, without)


def test_ranks_average_to_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator)
    targets = torch.tensor([0, 1, 0, 1, 0, 2, 0, 0])  # the rare classes are on the second rank
    class_weight = class_weights(targets, 3)
    whole = weighted_cross_entropy(logits, targets, class_weight, targets, 1, 0.1)
    parts = [
        weighted_cross_entropy(logits[rank::2], targets[rank::2], class_weight, targets, 2, 0.1)
        for rank in range(2)
    ]
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_a_learner_trains_on_balanced_batches(make_learner: Build) -> None:
    learner = make_learner(class_balanced_batches=True, initial_labeled_size=40)
    ask(learner)
    learner.train_step()
    shown = learner._targets[learner._batches].flatten().bincount()
    labelled = learner.pool.labels[learner.pool.labelled].bincount(minlength=len(shown))
    assert shown[labelled > 0].max() - shown[labelled > 0].min() <= 1
    assert labelled.max() - labelled.min() > 1


@pytest.mark.parametrize("name", ["class_balanced_batches", "class_weighted_loss"])
def test_going_on_inside_a_round_ends_the_same(make_learner: Build, name: str) -> None:
    whole, first, second = (make_learner(**{name: True}) for _ in range(3))
    for learner, steps in ((whole, 3), (first, 2)):
        ask(learner)
        for _ in range(steps):
            learner.train_step()
    second.load_state(*first.state())
    second.network.load_state_dict(first.network.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.train_step()
    assert_same(weights(second), weights(whole))


def test_the_weighted_loss_is_trained_on(make_learner: Build) -> None:
    plain, weighted = make_learner(), make_learner(class_weighted_loss=True)
    for learner in (plain, weighted):
        ask(learner)
        learner.train_step()
    assert plain.meter.take()[0] != pytest.approx(weighted.meter.take()[0])


def test_both_at_once_are_refused(make_learner: Build) -> None:
    with pytest.raises(UserError, match=r"class_weighted_loss: .* twice; set one"):
        make_learner(class_balanced_batches=True, class_weighted_loss=True)
