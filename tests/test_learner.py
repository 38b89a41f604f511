"""The loop: what it queries, trains on, scores and reports, and that it resumes exactly."""

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
from reporting.metric_groups import queried_classes, query_metrics
from tests.conftest import ask, part, small_values
from training.augmentation import Augmentation
from training.calibration import fit_temperature
from training.hyperparameters import Hyperparameters
from training.oracle import SimulatedOracle
from training.pool import Answers, Pool

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
            queried |= set(ask(learner).indices.tolist())
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
            ask(learner)
            used.clear()
            train_round(learner)
            acquired = learner.pool.acquired_round
            assert used == set(
                ((acquired >= 0) & (acquired <= round_)).nonzero().flatten().tolist()
            )

    def test_each_pass_shows_every_labelled_image_once(self, make_learner: Build) -> None:
        learner = make_learner(batches_per_round=5, batch_size=8, initial_labeled_size=20)
        ask(learner)
        learner.train_step()
        order = learner._batches.flatten().tolist()
        assert sorted(order[:20]) == sorted(order[20:40]) == learner.pool.labelled.tolist()
        assert order[:20] != order[20:40]

    def test_targets_are_the_oracles_answers(self, make_learner: Build) -> None:
        learner = make_learner()
        wrong = (learner.train_store.labels + 1) % 10
        ask(learner, SimulatedOracle(wrong))
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
            indices = ask(learner).indices.tolist()
            assert len(indices) == len(set(indices)) == size
            assert before.isdisjoint(indices)
            labels = learner.train_store.labels[indices]
            assert torch.equal(learner.pool.labels[indices], labels)
            before |= set(indices)
            train_round(learner)
        assert sorted(before) == learner.pool.labelled.tolist()

    def test_pool_is_unlabelled_train_images_only(
        self, digits: Splits, make_learner: Build
    ) -> None:
        # No position in the pool may be taken for a dataset index: with all but the last images
        # labelled, positions and indices have nothing in common.
        learner = make_learner(candidate_pool_size=0, samples_to_label=10)
        ask(learner)
        train_round(learner)
        rest = learner.pool.unlabelled[:-30]
        learner.pool.ask(rest, 0)
        labels = learner.train_store.labels[rest]
        learner.pool.answer(Answers.all_labelled(rest, labels, "test"))
        proposal = ask(learner)
        assert set(proposal.indices.tolist()) <= set(range(90, 120))

    def test_scoring_leaves_network_and_random_streams_alone(self, make_learner: Build) -> None:
        learner = make_learner()
        ask(learner)
        train_round(learner)
        before = weights(learner)
        streams = torch.get_rng_state(), numpy_stream(), random.getstate()
        ask(learner)
        assert_same(before, weights(learner))
        assert torch.equal(streams[0], torch.get_rng_state())
        assert (streams[1] == numpy_stream()).all()
        assert streams[2] == random.getstate()

    def test_training_and_building_use_no_global_randomness(self, make_learner: Build) -> None:
        before = torch.get_rng_state()
        learner = make_learner()
        ask(learner)
        learner.train_step()
        assert torch.equal(before, torch.get_rng_state())

    def test_scores_are_those_of_a_plain_evaluation(self, make_learner: Build) -> None:
        learner = make_learner(uncertainty="softmax", query_strategy="margin", precision="float32")
        ask(learner)
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
        ask(learner)
        train_round(learner)
        proposal = ask(learner)
        assert proposal.uncertainty is not None
        assert proposal.candidates_uncertainty is not None
        # Entropy sampling takes the most uncertain, most uncertain first.
        assert (proposal.uncertainty.diff() <= 0).all()
        assert proposal.uncertainty.min() > proposal.candidates_uncertainty
        assert torch.equal(learner.pool.uncertainty[proposal.indices], proposal.uncertainty)

    def test_report_counts_classes(self, make_learner: Build) -> None:
        learner = make_learner()
        proposal = ask(learner)
        metrics = query_metrics(proposal, learner.pool, 10, 0.0, None)
        assert metrics["labeled_samples"] == 10
        queried = queried_classes(learner.pool, 0, tuple("abcdefghij"))
        assert queried["queried_j"] == int((learner.pool.labels == 9).sum())
        assert queried.pop("query_size") == sum(queried.values()) == 10


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
        for evaluation in run(learner, SimulatedOracle(learner.train_store.labels), val, test):
            labelled.append(len(learner.pool.labelled))
            assert evaluation.round == len(labelled) - 1
            assert evaluation.labels == labelled[-1]
            names = {"loss", "accuracy", "auc", "ece", "worst_recall"}
            assert evaluation.val.keys() == evaluation.test.keys() == names
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
        ask(learner)
        train_round(learner)
        before = weights(learner)
        ask(learner)
        after: dict[str, Tensor] = {}
        learner.network.register_forward_pre_hook(lambda *_: after.update(weights(learner)))
        learner.train_step()
        return before, after

    def test_keep(self, make_learner: Build) -> None:
        learner = make_learner(between_rounds="keep")
        assert_same(*self.second_round(learner))
        (steps,) = {int(entry["step"]) for entry in learner.optimizer.state.values()}
        assert steps == learner.step

    def test_reset(self, make_learner: Build) -> None:
        learner = make_learner(between_rounds="reset")
        before, after = self.second_round(learner)
        assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
        assert_same(after, learner._fresh_network(1).state_dict())
        (steps,) = {int(entry["step"]) for entry in learner.optimizer.state.values()}
        assert steps == 1

    def test_shrink_and_perturb(self, make_learner: Build) -> None:
        learner = make_learner(
            between_rounds="shrink_and_perturb", shrink_factor=0.4, perturb_scale=0.1
        )
        before, after = self.second_round(learner)
        fresh = learner._fresh_network(1).state_dict()
        name = "backbone.4.weight"
        torch.testing.assert_close(after[name], 0.4 * before[name] + 0.1 * fresh[name])


class TestTemperature:
    """The strategy gets the temperature that calibrates the last round's network."""

    def test_a_query_gets_it(self, digits: Splits, make_learner: Build) -> None:
        learner = make_learner(query_strategy="u_herding")
        val = part(digits.val, 60)
        ask(learner)
        learner.train()
        evaluation = learner.evaluate(val, part(digits.test, 20))
        expected = fit_temperature(evaluation.val_logits, val.labels)
        assert evaluation.temperature == learner.results[0].temperature == expected != 1
        assert learner._score(1).temperature == expected
        resumed = make_learner(query_strategy="u_herding")
        resumed.load_state(*learner.state())
        resumed.network.load_state_dict(learner.network.state_dict())
        assert resumed._score(1).temperature == expected
        assert torch.equal(ask(resumed).indices, ask(learner).indices)

    def test_without_an_evaluation_it_is_one(self, make_learner: Build) -> None:
        learner = make_learner()
        ask(learner)
        learner.train()
        assert learner._score(1).temperature == 1


class TestExactResume:
    def test_going_on_from_any_step_ends_the_same(self, make_learner: Build) -> None:
        def go(learner: ActiveLearner, until: int) -> None:
            while learner.step < until:
                if learner.labels_due:
                    ask(learner)
                learner.train_step()

        whole = make_learner(between_rounds="shrink_and_perturb")
        go(whole, 9)
        for stop in (1, 3, 5, 8):
            first = make_learner(between_rounds="shrink_and_perturb")
            go(first, stop)
            second = make_learner(between_rounds="shrink_and_perturb")
            second.load_state(*first.state())
            second.network.load_state_dict(first.network.state_dict())
            second.optimizer.load_state_dict(first.optimizer.state_dict())
            go(second, 9)
            assert torch.equal(second.pool.acquired_round, whole.pool.acquired_round), stop
            assert_same(weights(second), weights(whole))

    def test_state_of_another_pool_is_refused(self, make_learner: Build) -> None:
        learner = make_learner()
        _, values = learner.state()
        tensors = {f"pool.{name}": value for name, value in Pool(7).tensors().items()}
        with pytest.raises(ValueError, match="7 images"):
            learner.load_state(tensors, values)

    def test_seeds_decide_everything(self, make_learner: Build) -> None:
        one, same, other = make_learner(seed=1), make_learner(seed=1), make_learner(seed=2)
        first = ask(one).indices
        assert torch.equal(first, ask(same).indices)
        assert not torch.equal(first, ask(other).indices)
        assert_same(weights(one), weights(same))
        assert not torch.equal(one.network.classifier.weight, other.network.classifier.weight)


def test_grey_and_colour_images_train(digits: Splits) -> None:
    grey = part(digits.train, 40)
    colour = ImageStore(grey.images.repeat(1, 3, 1, 1), grey.labels, grey.class_names)
    hp = Hyperparameters.from_mapping(small_values(stain_jitter=0.1, label_budget=40))
    for store in (grey, colour):
        learner = ActiveLearner(hp, store, 0)
        ask(learner)
        learner.train_step()
        loss, _, count = learner.meter.take()
        assert 0 < loss / count < 10
