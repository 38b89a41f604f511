"""Where a query's probabilities come from: softmax, MC dropout or test-time augmentation."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import model_def
from active_learning import ActiveLearner
from data import Splits
from query_strategies import STRATEGIES, predictive_entropy
from run_folder.reader import open_run
from tests.conftest import ROOT, SMALL, ask
from tools import predict
from training.augmentation import Augmentation
from training.inference import query_passes

Build = Callable[..., ActiveLearner]
TTA = "test_time_augmentation"
EVERYTHING = Augmentation(True, 2, 0.2, 0.1)


def trained(learner: ActiveLearner) -> ActiveLearner:
    """After its first round."""
    ask(learner)
    for _ in range(learner.hp.batches_per_round):
        learner.train_step()
    return learner


def probabilities(learner: ActiveLearner, round_: int = 1) -> Tensor:
    found = learner._score(round_).probabilities
    assert found is not None
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_varies_all_images_alike(channels: int) -> None:
    draw = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (6, channels, 8, 8), generator=draw, dtype=torch.uint8)
    for seed in range(8):
        together = EVERYTHING.view(images, torch.Generator().manual_seed(seed))
        for position in range(len(images)):
            generator = torch.Generator().manual_seed(seed)
            alone = EVERYTHING.batch(images, torch.tensor([position]), generator)
            torch.testing.assert_close(together[position], alone[0], atol=1e-6, rtol=1e-5)


def test_passes_are_those_of_an_obvious_implementation(make_learner: Build) -> None:
    learner = trained(make_learner(uncertainty=TTA, precision="float32", flips_and_rotations=True))
    scores = learner._score(1)
    seeds = query_passes(learner.hp, learner.network, 0, 1).view_seeds
    assert len(seeds) == learner.hp.uncertainty_passes - 1
    augmentation = Augmentation.of_trial(learner.hp)
    learner.network.eval()
    for place, index in enumerate(scores.candidates[:10]):
        looks = [learner.train_store.images[index].float()[None] / 255]
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            looks.append(augmentation.batch(learner.train_store.images, index[None], generator))
        for number, look in enumerate(looks):
            with torch.no_grad():
                embedded = learner.network.embed_upright((look - learner.mean) / learner.std)
                expected = learner.network.head(embedded).softmax(1)[0]
            assert scores.probabilities is not None
            found = scores.probabilities[number, place]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("uncertainty", [TTA, "mc_dropout"])
def test_batches_make_no_difference(uncertainty: str, make_learner: Build) -> None:
    one, other = (
        trained(make_learner(uncertainty=uncertainty, scoring_batch_size=size)) for size in (40, 7)
    )
    torch.testing.assert_close(probabilities(one), probabilities(other), atol=1e-5, rtol=1e-4)
    assert torch.equal(ask(one).indices, ask(other).indices)


@pytest.mark.parametrize("uncertainty", [TTA, "mc_dropout"])
def test_passes_belong_to_seed_and_round(uncertainty: str, make_learner: Build) -> None:
    learner = trained(make_learner(uncertainty=uncertainty, candidate_pool_size=0))
    first = probabilities(learner)
    assert torch.equal(first, probabilities(learner))
    assert not torch.equal(first, probabilities(learner, round_=2))
    learner.seed = 1
    assert not torch.equal(first, probabilities(learner))


def test_the_choice_decides_the_number_of_passes(make_learner: Build) -> None:
    shapes = {
        name: len(probabilities(trained(make_learner(uncertainty=name, uncertainty_passes=5))))
        for name in ("softmax", "mc_dropout", TTA)
    }
    assert shapes == {"softmax": 1, "mc_dropout": 5, TTA: 5}


def test_first_view_is_the_plain_softmax(make_learner: Build) -> None:
    plain = probabilities(trained(make_learner(uncertainty="softmax")))
    views = probabilities(trained(make_learner(uncertainty=TTA)))
    assert torch.equal(plain[0], views[0])
    assert (views.std(0) > 0).any()


@pytest.mark.parametrize("name", sorted(n for n, s in STRATEGIES.items() if s.stochastic))
def test_strategies_that_need_disagreement_take_views(name: str, make_learner: Build) -> None:
    learner = trained(make_learner(query_strategy=name, uncertainty=TTA))
    by_views = ask(learner).indices
    assert len(by_views.unique()) == 6
    if name == "bald":
        other = trained(make_learner(query_strategy=name, uncertainty="mc_dropout"))
        assert not torch.equal(by_views, ask(other).indices)


def test_predictions_are_as_uncertain_as_queries(tmp_path: Path, digits: Splits) -> None:
    folder = tmp_path / "run"
    settings = {**SMALL, "rounds": 2, "uncertainty": TTA, "candidate_pool_size": 0}
    arguments = ["--config", str(ROOT / "configs" / "digits.yaml"), "--output-dir", str(folder)]
    values = [f"hyperparameters.{name}={value}" for name, value in settings.items()]
    assert model_def.main([*arguments, "--set", *values]) == 0
    run = open_run(folder)
    learner = ActiveLearner(run.hp, digits.train, run.seed)
    learner.network.load_state_dict(run.inference.network.state_dict())
    learner.pool.load(run.pool.tensors(), run.pool.values())
    scores = learner._score(run.round + 1)
    assert scores.probabilities is not None
    expected = predictive_entropy(scores.probabilities)
    shown = scores.candidates[:50]
    np.savez(tmp_path / "a.npz", images=digits.train.images[shown].squeeze(1).numpy())
    table = tmp_path / "predictions.csv"
    assert predict.main([str(folder), str(tmp_path / "a.npz"), "--output", str(table)]) == 0
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    found = [float(row["uncertainty"]) for row in rows]
    np.testing.assert_allclose(found, expected[:50].numpy(), atol=2e-5)
