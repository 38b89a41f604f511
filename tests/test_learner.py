"""The loop: what is queried, trained on, scored and reported, and that it goes on exactly."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from active_learning import ActiveLearner, run
from data import ImageStore, Splits, normalise
from query_strategies import STRATEGIES
from tests.conftest import part, query, small_values
from training.augmentation import Augmentation
from training.hyperparameters import Hyperparameters
from training.oracle import SimulatedOracle

Build = Callable[..., ActiveLearner]
AS_THEY_ARE = {"crop_padding": 0, "colour_jitter": 0.0, "stain_jitter": 0.0}


def train_round(learner: ActiveLearner) -> None:
    for _ in range(learner.hp.batches_per_round):
        learner.train_step()


def watch_inputs(learner: ActiveLearner) -> list[Tensor]:
    """Collects every batch of images that the network is trained on from now on."""
    seen: list[Tensor] = []

    def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().clone())

    learner.train_network.register_forward_pre_hook(hook)
    return seen


def weights(learner: ActiveLearner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.network.state_dict().items()}


def numpy_stream() -> Any:
    """The keys of numpy's global random state, copied."""
    state: Any = np.random.get_state()
    return state[1].copy()


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class TestWhatIsTrainedOn:
    def test_pixels_trained_on_are_those_queried_so_far(self, make_learner: Build) -> None:
        # 30 batches of 8 make at least one whole pass over each round's labelled set.
        learner = make_learner(batches_per_round=30, **AS_THEY_ARE)
        pool = normalise(learner.train_store.images, learner.mean, learner.std)
        seen = watch_inputs(learner)
        queried: set[int] = set()
        while not learner.finished:
            queried |= set(query(learner).indices.tolist())
            seen.clear()
            train_round(learner)
            images = torch.cat(seen)
            distance = torch.cdist(images.flatten(1).double(), pool.flatten(1).double())
            assert distance.min(1).values.max() < 1e-4
            assert set(distance.argmin(1).tolist()) == queried

    def test_indices_trained_on_are_those_labelled(
        self, make_learner: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learner = make_learner(batches_per_round=30)
        used: set[int] = set()
        original = Augmentation.batch

        def spy(self: Augmentation, images: Tensor, indices: Tensor, *rest: Any) -> Tensor:
            used.update(indices.tolist())
            return original(self, images, indices, *rest)

        monkeypatch.setattr(Augmentation, "batch", spy)
        for round_ in range(3):
            query(learner)
            used.clear()
            train_round(learner)
            acquired = learner.pool.acquired_round
            assert used == set(
                ((acquired >= 0) & (acquired <= round_)).nonzero().flatten().tolist()
            )

    def test_each_pass_shows_every_labelled_image_once(self, make_learner: Build) -> None:
        learner = make_learner(batches_per_round=5, batch_size=8, initial_labeled_size=20)
        query(learner)
        learner.train_step()
        order = learner._batches.flatten().tolist()
        assert sorted(order[:20]) == sorted(order[20:40]) == learner.pool.labelled.tolist()
        assert order[:20] != order[20:40]

    def test_targets_are_the_oracles_answers(self, make_learner: Build) -> None:
        learner = make_learner()
        wrong = (learner.train_store.labels + 1) % 10
        learner._oracle = SimulatedOracle(wrong)
        query(learner)
        learner.train_step()
        labelled = learner.pool.labelled
        assert torch.equal(learner._targets[labelled], wrong[labelled])


class TestQuery:
    @pytest.mark.parametrize("name", sorted(STRATEGIES))
    def test_every_strategy_labels_new_training_images(
        self, name: str, make_learner: Build
    ) -> None:
        learner = make_learner(query_strategy=name)
        before: set[int] = set()
        for size in learner.query_sizes:
            query = query(learner)
            indices = query.indices.tolist()
            assert len(indices) == len(set(indices)) == size
            assert before.isdisjoint(indices)
            assert torch.equal(query.labels, learner.train_store.labels[query.indices])
            before |= set(indices)
            train_round(learner)
        assert sorted(before) == learner.pool.labelled.tolist()

    def test_pool_is_unlabelled_train_images_only(
        self, digits: Splits, make_learner: Build
    ) -> None:
        # No position in the pool may be taken for a dataset index: with all but the last images
        # labelled, positions and indices have nothing in common.
        learner = make_learner(candidate_pool_size=0, samples_to_label=10)
        query(learner)
        train_round(learner)
        rest = learner.pool.unlabelled[:-30]
        learner.pool.add(rest, learner._oracle(rest), 0)
        query = query(learner)
        assert set(query.indices.tolist()) <= set(range(90, 120))

    def test_scoring_leaves_network_and_random_streams_alone(self, make_learner: Build) -> None:
        learner = make_learner()
        query(learner)
        train_round(learner)
        before = weights(learner)
        streams = torch.get_rng_state(), numpy_stream(), random.getstate()
        query(learner)
        assert_same(before, weights(learner))
        assert torch.equal(streams[0], torch.get_rng_state())
        assert (streams[1] == numpy_stream()).all()
        assert streams[2] == random.getstate()

    def test_training_and_building_use_no_global_randomness(self, make_learner: Build) -> None:
        before = torch.get_rng_state()
        learner = make_learner()
        query(learner)
        learner.train_step()
        assert torch.equal(before, torch.get_rng_state())

    def test_scores_are_those_of_a_plain_evaluation(self, make_learner: Build) -> None:
        learner = make_learner(uncertainty="softmax", query_strategy="margin", precision="float32")
        query(learner)
        train_round(learner)
        scores = learner._score(1)
        learner.network.eval()
        with torch.no_grad():
            images = normalise(
                learner.train_store.images[scores.candidates], learner.mean, learner.std
            )
            expected = learner.network(images).softmax(1)
        assert scores.probabilities is not None
        torch.testing.assert_close(scores.probabilities[0], expected, atol=1e-5, rtol=1e-4)
        assert len(scores.candidates) == learner.hp.candidate_pool_size

    def test_uncertainty_belongs_to_the_queried_images(self, make_learner: Build) -> None:
        learner = make_learner(query_strategy="entropy", candidate_pool_size=0)
        query(learner)
        train_round(learner)
        query = query(learner)
        assert query.uncertainty is not None
        assert query.candidates_uncertainty is not None
        # Entropy sampling takes the most uncertain, most uncertain first.
        assert (query.uncertainty.diff() <= 0).all()
        assert query.uncertainty.min() > query.candidates_uncertainty

    def test_report_counts_classes(self, make_learner: Build) -> None:
        learner = make_learner()
        query = query(learner)
        metrics = query.metrics(learner.pool.labels[learner.pool.labelled], ("a",) * 9 + ("j",))
        assert metrics["query_size"] == metrics["labeled_samples"] == 10
        assert metrics["queried_j"] == int((query.labels == 9).sum())


class TestSchedule:
    @pytest.mark.parametrize(
        ("changes", "sizes"),
        [
            ({}, (10, 6, 6)),
            ({"rounds": 1}, (10,)),
            ({"label_budget": 13}, (10, 3)),
            ({"label_budget": 10}, (10,)),
            ({"rounds": 100}, (10, *[6] * 18, 2)),
        ],
    )
    def test_rounds_end_with_rounds_budget_or_pool(
        self, changes: dict[str, Any], sizes: tuple[int, ...], make_learner: Build
    ) -> None:
        assert make_learner(**changes).query_sizes == sizes

    def test_run_labels_trains_and_evaluates_round_by_round(
        self, digits: Splits, make_learner: Build
    ) -> None:
        learner = make_learner()
        val, test = part(digits.val, 20), part(digits.test, 20)
        labelled = []
        for query, val_metrics, test_metrics in run(learner, val, test):
            labelled.append(len(learner.pool.labelled))
            assert query.round == len(labelled) - 1
            assert val_metrics.keys() == test_metrics.keys() == {"loss", "accuracy", "auc"}
        assert labelled == [10, 16, 22]
        assert learner.step == 9

    def test_learning_rate_starts_anew_each_round(self, make_learner: Build) -> None:
        learner = make_learner(batches_per_round=10, warmup_fraction=0.2)
        rates = []
        for learner.step in range(20):
            rates.append(learner.learning_rate)
        assert rates[:10] == rates[10:]
        assert max(rates) == learner.hp.learning_rate == rates[1] == rates[2]
        assert rates[0] == learner.hp.learning_rate / 2
        assert rates[9] < 0.1 * learner.hp.learning_rate


class TestBetweenRounds:
    def second_round(self, learner: ActiveLearner) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        query(learner)
        train_round(learner)
        before = weights(learner)
        query(learner)
        return before, weights(learner)

    def test_keep(self, make_learner: Build) -> None:
        learner = make_learner(between_rounds="keep")
        assert_same(*self.second_round(learner))
        assert learner.optimizer.state

    def test_reset(self, make_learner: Build) -> None:
        learner = make_learner(between_rounds="reset")
        before, after = self.second_round(learner)
        assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
        assert_same(after, learner._fresh_network(1).state_dict())
        assert not learner.optimizer.state

    def test_shrink_and_perturb(self, make_learner: Build) -> None:
        learner = make_learner(
            between_rounds="shrink_and_perturb", shrink_factor=0.4, perturb_scale=0.1
        )
        before, after = self.second_round(learner)
        fresh = learner._fresh_network(1).state_dict()
        name = "backbone.4.weight"
        torch.testing.assert_close(after[name], 0.4 * before[name] + 0.1 * fresh[name])


class TestExactResume:
    def test_going_on_from_any_step_ends_the_same(self, make_learner: Build) -> None:
        def go(learner: ActiveLearner, until: int) -> None:
            while learner.step < until:
                if learner.query_due:
                    query(learner)
                learner.train_step()

        whole = make_learner(between_rounds="shrink_and_perturb")
        go(whole, 9)
        for stop in (1, 3, 5, 8):
            first = make_learner(between_rounds="shrink_and_perturb")
            go(first, stop)
            second = make_learner(between_rounds="shrink_and_perturb")
            second.load_state_dict(first.state_dict())
            second.network.load_state_dict(first.network.state_dict())
            second.optimizer.load_state_dict(first.optimizer.state_dict())
            go(second, 9)
            assert torch.equal(second.pool.acquired_round, whole.pool.acquired_round), stop
            assert_same(weights(second), weights(whole))

    def test_state_of_another_pool_is_refused(self, make_learner: Build) -> None:
        learner = make_learner()
        state = {**learner.state_dict(), **LabeledPool(7).state_dict()}
        with pytest.raises(ValueError, match="7 images"):
            learner.load_state_dict(state)

    def test_seeds_decide_everything(self, make_learner: Build) -> None:
        one, same, other = make_learner(seed=1), make_learner(seed=1), make_learner(seed=2)
        first = query(one).indices
        assert torch.equal(first, query(same).indices)
        assert not torch.equal(first, query(other).indices)
        assert_same(weights(one), weights(same))
        assert not torch.equal(one.network.classifier.weight, other.network.classifier.weight)


class TestLabeledPool:
    @pytest.mark.parametrize(
        ("indices", "labels", "message"),
        [
            ([1, 1], [0, 0], "twice"),
            ([0], [1], "has a label"),
            ([5], [0], "outside"),
            ([-1], [0], "outside"),
            ([1, 2], [0], "2 indices came with 1"),
        ],
    )
    def test_refuses(self, indices: list[int], labels: list[int], message: str) -> None:
        pool = LabeledPool(5)
        pool.add(torch.tensor([0]), torch.tensor([3]), 0)
        before = pool.state_dict()
        with pytest.raises(ValueError, match=message):
            pool.add(torch.tensor(indices), torch.tensor(labels), 1)
        assert_same(before, pool.state_dict())

    def test_keeps_round_and_label(self) -> None:
        pool = LabeledPool(5)
        pool.add(torch.tensor([4, 1]), torch.tensor([7, 8]), 0)
        pool.add(torch.tensor([0]), torch.tensor([9]), 1)
        assert pool.acquired_round.tolist() == [1, 0, -1, -1, 0]
        assert pool.labels.tolist() == [9, 8, -1, -1, 7]
        assert pool.labelled.tolist() == [0, 1, 4]
        assert pool.unlabelled.tolist() == [2, 3]
        assert pool.rounds == 2


def test_grey_and_colour_images_train(digits: Splits) -> None:
    grey = part(digits.train, 40)
    colour = ImageStore(grey.images.repeat(1, 3, 1, 1), grey.labels, grey.class_names)
    hp = Hyperparameters.from_mapping(small_values(stain_jitter=0.1, label_budget=40))
    for store in (grey, colour):
        learner = ActiveLearner(hp, store, 0)
        query(learner)
        learner.train_step()
        loss, _, count = learner.meter.take()
        assert 0 < loss / count < 10
