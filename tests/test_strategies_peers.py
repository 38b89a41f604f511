"""Query strategies against scikit-activeml, an independent implementation of three of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skactiveml.base import SkactivemlClassifier
from skactiveml.pool import DropQuery, Falcun, MaxHerding
from torch import Tensor

from query_strategies import PoolScores, get_strategy


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picked(name: str, pool: PoolScores, k: int, seed: int = 0) -> list[int]:
    return get_strategy(name, 10).select(pool, k, torch.Generator().manual_seed(seed)).tolist()


class Predicted(SkactivemlClassifier):  # type: ignore[misc]  # it has no types
    """A classifier whose answers are given: one array of labels for each call of `predict`."""

    def __init__(
        self,
        labels: list[Any],
        probabilities: NDArray[np.float64] | None = None,
        classes: Any = None,
    ) -> None:
        super().__init__(classes=classes, missing_label=np.nan)
        self.labels = labels
        self.probabilities = probabilities
        self.calls = 0

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Predicted:  # noqa: N803
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        self.calls += 1
        return self.labels[self.calls - 1]

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        return self.probabilities


def unlabelled(n: int) -> NDArray[np.float64]:
    return np.full(n, np.nan)


@pytest.mark.parametrize("labelled", [0, 6])
@pytest.mark.parametrize("seed", range(3))
def test_max_herding(seed: int, labelled: int) -> None:
    """Each pick is the peer's, too, given the earlier ones; the peer draws among exact ties."""
    x, known = normal(60, 5, seed=seed), normal(labelled, 5, seed=seed + 10)
    peer = MaxHerding(metric="rbf", metric_dict={"gamma": 1.0}, random_state=0)
    y = np.concatenate([np.zeros(labelled), unlabelled(60)])
    pool = PoolScores(torch.arange(60), None, x, known if labelled else None)
    for pick in picked("max_herding", pool, 15):
        _, ((*gains,),) = peer.query(torch.cat([known, x]).numpy(), y, return_utilities=True)
        assert gains[labelled + pick] == pytest.approx(np.nanmax(gains), abs=1e-7)
        y[labelled + pick] = 0


class Following(Falcun):  # type: ignore[misc]
    """Draws what it is told to draw; its utilities are the chances of every candidate."""

    def follow(self, picks: list[int]) -> Following:
        self.picks = iter(picks)
        return self

    def _validate_data(self, *arguments: Any, **options: Any) -> Any:
        validated = super()._validate_data(*arguments, **options)
        self.random_state_ = self
        return validated

    def choice(self, *_: Any, **__: Any) -> list[int]:
        return [next(self.picks)]


@pytest.mark.parametrize("seed", range(2))
def test_falcun(seed: int) -> None:
    """Every candidate is drawn as often as the peer's chances, given the earlier picks, say."""
    runs, n, k = 200, 10, 4
    probabilities = normal(1, n, 4, seed=seed).softmax(dim=-1)
    classifier = Predicted([], probabilities[0].double().numpy(), classes=[0, 1, 2, 3])
    surplus, variance = np.zeros((k, n)), np.zeros((k, n))
    for run in range(runs):
        picks = picked("falcun", PoolScores(torch.arange(n), probabilities, None, None), k, run)
        _, chances = Following().follow(picks).query(
            np.zeros((n, 1)), unlabelled(n), classifier, fit_clf=False, batch_size=k,
            return_utilities=True,
        )  # fmt: skip
        chances = np.nan_to_num(chances)
        surplus += np.eye(n)[picks] - chances
        variance += chances * (1 - chances)
    assert (np.abs(surplus) < 5 * np.sqrt(variance) + 1e-9).all()
    assert (variance > 1).mean() > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_drop_query(seed: int) -> None:
    """Four groups far apart, whose members the passes classify at random."""
    classes, passes, n = 3, 5, 80
    centres = torch.tensor([[0.0, 0], [100, 0], [0, 100], [100, 100]])
    x = normal(n, 2, seed=seed) + centres[torch.arange(n) % 4]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (passes, n), generator=generator)
    sure = torch.nn.functional.one_hot(labels, classes).float()
    probabilities = 0.4 * sure + 0.6 / classes + 0.01 * torch.rand(n, classes, generator=generator)
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    predicted = probabilities.mean(dim=0).argmax(dim=-1)
    assert (labels != predicted).sum(dim=0).gt(passes / 2).sum() > 8
    classifier = Predicted([predicted.numpy(), *labels.numpy()])
    peer = DropQuery(
        n_dropout_samples=passes,
        cluster_algo_dict={"n_init": 10, "random_state": 0},
        random_state=0,
    )
    theirs = peer.query(x.double().numpy(), unlabelled(n), classifier, fit_clf=False, batch_size=4)
    ours = picked("drop_query", PoolScores(torch.arange(n), probabilities, x, None), 4)
    assert sorted(ours) == sorted(theirs.tolist())
