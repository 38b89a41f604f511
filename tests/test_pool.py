"""The pool's state map, and proposals whose images an oracle skips."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from active_learning import ActiveLearner, label_round
from errors import UserError
from tests.conftest import ask
from training.oracle import Proposal
from training.pool import Answers, ImageState, Pool

Build = Callable[..., ActiveLearner]


def answers(indices: list[int], labels: list[int]) -> Answers:
    return Answers.all_labelled(torch.tensor(indices), torch.tensor(labels), "anna")


class TestPool:
    def test_keeps_round_order_label_and_annotator(self) -> None:
        pool = Pool(5)
        pool.ask(torch.tensor([4, 1]), 0)
        assert pool.asked.tolist() == [4, 1]
        assert pool.unlabelled.tolist() == [0, 2, 3]
        pool.answer(answers([1, 4], [8, 7]))
        pool.ask(torch.tensor([0]), 1, torch.tensor([0.5]))
        pool.answer(Answers.all_labelled(torch.tensor([0]), torch.tensor([9]), "ben"))
        assert pool.acquired_round.tolist() == [1, 0, -1, -1, 0]
        assert pool.labels.tolist() == [9, 8, -1, -1, 7]
        assert pool.query_of(0).tolist() == [4, 1]
        assert pool.labelled.tolist() == [0, 1, 4]
        assert pool.unlabelled.tolist() == [2, 3]
        assert [pool.annotators[i] for i in pool.annotator[pool.labelled]] == [
            "ben",
            "anna",
            "anna",
        ]
        assert pool.uncertainty[0] == 0.5

    def test_a_skipped_image_is_neither_labelled_nor_asked_again(self) -> None:
        pool = Pool(3)
        pool.ask(torch.tensor([0, 2]), 0)
        states = torch.tensor([ImageState.LABELLED, ImageState.SKIPPED_UNUSABLE])
        pool.answer(Answers(torch.tensor([0, 2]), torch.tensor([1, -1]), states, ("anna", "ben")))
        assert pool.labelled.tolist() == [0]
        assert pool.skipped.tolist() == [2]
        assert pool.unlabelled.tolist() == [1]
        assert pool.labels_of(0) == 1
        with pytest.raises(ValueError, match="not unlabelled"):
            pool.ask(torch.tensor([2]), 1)

    @pytest.mark.parametrize(
        ("indices", "message"),
        [([1, 1], "twice"), ([0], "not unlabelled"), ([5], "outside"), ([-1], "outside")],
    )
    def test_refuses_to_ask(self, indices: list[int], message: str) -> None:
        pool = Pool(5)
        pool.ask(torch.tensor([0]), 0)
        before = pool.tensors()
        with pytest.raises(ValueError, match=message):
            pool.ask(torch.tensor(indices), 1)
        assert all(torch.equal(pool.tensors()[name], before[name]) for name in ("state", "round"))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (answers([1, 1], [0, 0]), "twice"),
            (answers([2], [0]), "not asked"),
            (answers([7], [0]), "outside"),
            (answers([0, 1], [0]), "2 indices came with 1"),
        ],
    )
    def test_refuses_answers(self, given: Answers, message: str) -> None:
        pool = Pool(5)
        pool.ask(torch.tensor([0, 1]), 0)
        with pytest.raises(ValueError, match=message):
            pool.answer(given)
        assert pool.asked.tolist() == [0, 1]

    def test_a_correction_replaces_a_label(self) -> None:
        pool = Pool(3)
        pool.ask(torch.tensor([1]), 0)
        pool.answer(answers([1], [4]))
        pool.correct({1: (2, "ben")})
        assert pool.labels[1] == 2
        assert pool.annotators[pool.annotator[1]] == "ben"
        with pytest.raises(ValueError, match="not labelled"):
            pool.correct({0: (2, "ben")})

    def test_state_is_taken_over(self) -> None:
        pool, other = Pool(4), Pool(4)
        pool.ask(torch.tensor([3, 0]), 0, torch.tensor([0.1, 0.2]))
        pool.answer(answers([3], [2]))
        pool.rounds = 1
        other.load(pool.tensors(), pool.values())
        assert other.asked.tolist() == [0]
        assert (other.rounds, other.annotators) == (1, ["anna"])
        for name, value in pool.tensors().items():
            torch.testing.assert_close(getattr(other, name), value, equal_nan=True, rtol=0, atol=0)


class Skipping:
    """Labels every image but the first `count` that it is asked about."""

    def __init__(self, learner: ActiveLearner, count: int) -> None:
        self.learner = learner
        self.count = count
        self.proposals: list[Proposal] = []

    def answer(self, proposal: Proposal) -> Answers:
        self.proposals.append(proposal)
        labels = self.learner.train_store.labels[proposal.indices].clone()
        states = torch.full_like(labels, ImageState.LABELLED)
        skipped = min(self.count, len(labels))
        self.count -= skipped
        labels[:skipped], states[:skipped] = -1, ImageState.SKIPPED_UNSURE
        return Answers(proposal.indices, labels, states, ("anna",) * len(labels))


def test_skipped_images_are_replaced_within_the_round(make_learner: Build) -> None:
    learner = make_learner()
    oracle = Skipping(learner, 4)
    assert label_round(learner, oracle)
    assert [len(one.indices) for one in oracle.proposals] == [10, 4]
    assert len(learner.pool.labelled) == 10  # the budget counts labels, not questions
    assert len(learner.pool.skipped) == 4
    assert {one.round for one in oracle.proposals} == {0}
    learner.train()
    # The images that were skipped do not come back, and training used labelled images only.
    shown = set(learner._batches.flatten().tolist())
    assert shown <= set(learner.pool.labelled.tolist())
    assert label_round(learner, oracle)
    asked = torch.cat([one.indices for one in oracle.proposals])
    assert len(asked.unique()) == len(asked)


def test_a_pool_that_is_used_up_ends_the_run(make_learner: Build) -> None:
    learner = make_learner(initial_labeled_size=100, samples_to_label=20, candidate_pool_size=0)
    oracle = Skipping(learner, 30)  # of 120 images
    assert label_round(learner, oracle)
    assert (learner.pool.labels_of(0), len(learner.pool.unlabelled)) == (90, 0)
    learner.train()
    learner._end_round(0, {"loss": 1.0, "accuracy": 0.5})
    assert learner.stop_reason is not None
    assert learner.stop_reason.rule == "pool"


def test_a_pool_of_which_all_is_skipped_is_refused(make_learner: Build) -> None:
    learner = make_learner()
    with pytest.raises(UserError, match="all 120 images were skipped"):
        label_round(learner, Skipping(learner, 1000))


def test_a_proposal_waits_for_its_answers(make_learner: Build) -> None:
    learner = make_learner()

    class Silent:
        def answer(self, proposal: Proposal) -> None:
            return None

    assert not label_round(learner, Silent())
    with pytest.raises(ValueError, match="10 images wait"):
        learner.propose()
    # A run that is resumed now asks about the same images, in the same order.
    resumed = make_learner()
    resumed.load_state(*learner.state())
    waiting, proposal = learner.open_proposal, resumed.open_proposal
    assert waiting is not None
    assert proposal is not None
    assert torch.equal(proposal.indices, waiting.indices)
    assert torch.equal(waiting.indices, make_learner().propose().indices)
    assert torch.equal(ask(resumed).indices, waiting.indices)
    assert resumed.pool.rounds == 1
    assert resumed.open_proposal is None


def test_a_labelled_set_smaller_than_a_batch_fills_it(make_learner: Build) -> None:
    learner = make_learner(initial_labeled_size=10, batch_size=32)
    ask(learner)
    learner.train_step()
    counts = learner._batches[0].bincount()[learner.pool.labelled]
    assert counts.sum() == 32
    assert counts.max() - counts.min() <= 1
