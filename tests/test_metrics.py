"""Loss, accuracy and AUC against medmnist's Evaluator and scikit-learn."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from medmnist.evaluator import getACC, getAUC
from sklearn.metrics import log_loss

from training.metrics import TrainingMeter, classification_metrics, macro_auc


def made_up(classes: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    labels[:classes] = torch.arange(classes)
    logits = torch.randn(count, classes, generator=generator)
    return logits + torch.nn.functional.one_hot(labels, classes), labels


@pytest.mark.parametrize(("classes", "task"), [(2, "binary-class"), (9, "multi-class")])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_medmnist(classes: int, task: str, seed: int) -> None:
    logits, labels = made_up(classes, 200, seed)
    logits = logits.round(decimals=1)  # ties
    metrics = classification_metrics(logits, labels)
    scores = logits.softmax(1).numpy()
    truth = labels.numpy()[:, None]
    assert metrics["accuracy"] == pytest.approx(getACC(truth, scores, task), abs=1e-6)
    assert metrics["auc"] == pytest.approx(getAUC(truth, scores, task), abs=1e-6)
    assert metrics["loss"] == pytest.approx(
        log_loss(labels.numpy(), scores / scores.sum(1, keepdims=True)), abs=1e-5
    )


def test_auc_of_known_rankings() -> None:
    labels = torch.tensor([0, 0, 1, 1])

    def auc(second_class: list[float]) -> float:
        scores = torch.tensor(second_class)
        return macro_auc(torch.stack([1 - scores, scores], 1), labels).item()

    assert auc([0.1, 0.2, 0.8, 0.9]) == 1.0
    assert auc([0.9, 0.8, 0.2, 0.1]) == 0.0
    assert auc([0.5, 0.5, 0.5, 0.5]) == 0.5
    assert auc([0.1, 0.8, 0.2, 0.9]) == 0.75


def test_absent_class_is_left_out() -> None:
    logits, labels = made_up(4, 100, 0)
    kept = labels != 3
    value = macro_auc(logits[kept].softmax(1), labels[kept]).item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.mean(
            [
                getAUC(
                    (labels[kept] == c).long().numpy()[:, None],
                    logits[kept].softmax(1)[:, [c]].numpy(),
                    "binary-class",
                )
                for c in range(3)
            ]
        )
    assert value == pytest.approx(expected)
    one_class = torch.zeros(5, dtype=torch.int64)
    assert math.isnan(macro_auc(torch.rand(5, 3), one_class).item())


def test_meter_weighs_batches_by_size() -> None:
    meter = TrainingMeter(torch.device("cpu"))
    meter.update(torch.tensor(1.0), torch.eye(3), torch.tensor([0, 1, 2]))
    meter.update(torch.tensor(4.0), torch.eye(3)[:1], torch.tensor([2]))
    assert meter.take().tolist() == [7.0, 3.0, 4.0]
    assert meter.take().tolist() == [0.0, 0.0, 0.0]
