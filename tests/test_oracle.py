"""The simulated annotator: how often it errs, in which way, and that its answers never change."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import model_def
from active_learning import ActiveLearner
from data import ImageStore, Splits
from errors import UserError
from reporting.metric_groups import query_metrics
from tests.conftest import ROOT, SMALL, ask, part, small_values
from training.hyperparameters import Hyperparameters
from training.label_noise import KINDS, confusion_shares, noisy_labels
from training.oracle import Proposal, SimulatedOracle

Build = Callable[..., ActiveLearner]


def store_of(images: Tensor, labels: list[int]) -> ImageStore:
    classes = tuple(str(c) for c in range(max(labels) + 1))
    return ImageStore(images, torch.tensor(labels), classes)


def grey_levels(levels: list[int], labels: list[int]) -> ImageStore:
    """One 2x2 image of each level."""
    pixels = torch.tensor(levels, dtype=torch.uint8)
    return store_of(pixels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_as_many_are_wrong_as_the_rate_says(kind: str, rate: float, digits: Splits) -> None:
    given = noisy_labels(digits.train, rate, kind, seed=0)
    wrong = (given != digits.train.labels).double()
    # Five standard deviations of a mean of independent draws.
    assert wrong.mean().item() == pytest.approx(rate, abs=5 * (rate / len(wrong)) ** 0.5)
    assert int(given.min()) >= 0
    assert int(given.max()) < digits.num_classes


@pytest.mark.parametrize("kind", KINDS)
def test_none_and_all_are_wrong_at_the_ends(kind: str, digits: Splits) -> None:
    labels = digits.train.labels
    assert torch.equal(noisy_labels(digits.train, 0.0, kind, 0), labels)
    assert (noisy_labels(digits.train, 1.0, kind, 0) != labels).all()


def test_uniform_noise_takes_all_other_classes_alike() -> None:
    store = ImageStore(
        torch.zeros(9000, 1, 1, 1, dtype=torch.uint8), torch.full((9000,), 1), tuple("abcd")
    )
    counts = torch.bincount(noisy_labels(store, 1.0, "uniform", 0), minlength=4)
    assert counts[1] == 0
    assert (counts[[0, 2, 3]] - 3000).abs().max() < 5 * (9000 * 2 / 9) ** 0.5


def test_confusion_noise_follows_its_shares() -> None:
    # A third of class 1 is nearer to class 0, two thirds are nearer to class 2.
    store = grey_levels([0] * 4 + [90, 110, 110] * 2 + [200] * 4, [0] * 4 + [1] * 6 + [2] * 4)
    shares = confusion_shares(store)
    expected = torch.tensor([[0, 1, 0], [1 / 3, 0, 2 / 3], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(shares, expected)
    many = ImageStore(store.images.repeat(600, 1, 1, 1), store.labels.repeat(600), tuple("abc"))
    given = noisy_labels(many, 1.0, "confusion", 0)
    assert given[many.labels != 1].eq(1).all()
    of_class_1 = torch.bincount(given[many.labels == 1], minlength=3) / 3600
    assert of_class_1.tolist() == pytest.approx([1 / 3, 0, 2 / 3], abs=5 * (2 / 9 / 3600) ** 0.5)


def test_shares_are_those_of_an_obvious_implementation(
    digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.label_noise.BLOCK", 7)
    store = part(digits.train, 60)
    classes = range(store.num_classes)
    means = [store.images[store.labels == c].double().mean(0) for c in classes]
    expected = torch.zeros(10, 10, dtype=torch.float64)
    for image, label in zip(store.images.double(), store.labels.tolist(), strict=True):
        others = [c for c in classes if c != label]
        nearest = min(others, key=lambda c: float((image - means[c]).square().sum()))
        expected[label, nearest] += 1 / int((store.labels == label).sum())
    torch.testing.assert_close(confusion_shares(store), expected)


def test_confusion_needs_every_class() -> None:
    store = grey_levels([0, 9], [0, 2])
    with pytest.raises(UserError, match="image of every class"):
        confusion_shares(store)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_has_one_answer(kind: str, digits: Splits) -> None:
    hp = Hyperparameters.from_mapping(small_values(label_noise=0.3, label_noise_kind=kind))
    oracle, again, other = (
        SimulatedOracle.of_trial(ActiveLearner(hp, digits.train, seed), digits.train)
        for seed in (4, 4, 5)
    )
    everything = torch.arange(len(digits.train))

    def answers_of(annotator: SimulatedOracle, indices: Tensor) -> Tensor:
        return annotator.answer(Proposal(0, "random", indices, None, None, 0.0)).labels

    answers = answers_of(oracle, everything)
    shuffled = everything.flip(0)
    assert torch.equal(answers_of(oracle, shuffled).flip(0), answers)
    assert torch.equal(answers_of(oracle, everything[100:110]), answers[100:110])
    assert torch.equal(answers_of(again, everything), answers)
    assert not torch.equal(answers_of(other, everything), answers)
    assert torch.equal(oracle.truth(everything), digits.train.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_more_noise_keeps_what_was_wrong(kind: str, digits: Splits) -> None:
    labels = digits.train.labels
    few, many = (noisy_labels(digits.train, rate, kind, 0) for rate in (0.1, 0.3))
    wrong = few != labels
    assert wrong.any()
    assert torch.equal(few[wrong], many[wrong])


def test_a_learner_counts_what_was_wrong_and_what_it_cost(
    make_learner: Build, digits: Splits
) -> None:
    learner = make_learner(label_noise=0.5, seconds_per_label=90.0)
    for labels in (10, 16, 22):
        proposal = ask(learner)
        given = learner.pool.labels[learner.pool.labelled]
        wrong = int((given != digits.train.labels[learner.pool.labelled]).sum())
        minutes = learner.annotation_minutes
        metrics = query_metrics(proposal, learner.pool, 10, minutes, digits.train.labels)
        assert metrics["wrong_labels"] == wrong
        assert metrics["annotation_minutes"] == labels * 1.5
        for _ in range(learner.hp.batches_per_round):
            learner.train_step()
    assert wrong > 3


def test_a_run_with_noise_writes_both_labels(tmp_path: Path, digits: Splits) -> None:
    settings = {**SMALL, "rounds": 2, "label_noise": 0.4, "label_noise_kind": "confusion"}
    settings["seconds_per_label"] = 30
    run = tmp_path / "run"
    arguments = ["--config", str(ROOT / "configs" / "digits.yaml"), "--output-dir", str(run)]
    values = [f"hyperparameters.{name}={value}" for name, value in settings.items()]
    assert model_def.main([*arguments, "--set", *values]) == 0
    queries, metrics = (
        list(csv.DictReader((run / name).open(newline="")))
        for name in ("queries.csv", "metrics.csv")
    )
    wrong = [row["label"] != row["true_label"] for row in queries]
    for row in queries:
        assert int(row["true_label"]) == digits.train.labels[int(row["index"])]
        assert row["class"] == digits.class_names[int(row["label"])]
    assert [int(row["wrong_labels"]) for row in metrics] == [sum(wrong[:10]), sum(wrong)]
    assert sum(wrong) > 2
    assert [float(row["annotation_minutes"]) for row in metrics] == [5, 8]
