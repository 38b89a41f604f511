"""The metrics that a round reports, by metric group. They are few, so the WebUI stays readable.

| group | when | what |
| --- | --- | --- |
| training | every few steps | loss, accuracy, learning rate |
| active_learning | the labels of a round have arrived | cost and composition of the query |
| validation, test | a round is over | loss, accuracy, AUC, calibration, worst class |
| learning_curve | a round is over | accuracy and AUC by number of labels |
| minutes_curve | the same, where labels differ in their cost | the same by minutes of annotation |

The WebUI uses a metric named `epochs` as its Epoch axis. In the group `learning_curve` it is the
number of labels, in `minutes_curve` minutes, in all other groups the number of rounds. Metrics of
single classes are written to metrics.csv only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from active_learning import Evaluation
from training.metrics import recalls
from training.oracle import Proposal, TwoAnnotators
from training.pool import Pool


def training_metrics(
    loss_sum: float, correct: float, images: float, learning_rate: float
) -> dict[str, float]:
    """Mean loss and accuracy over the `images` trained on since the last report."""
    return {
        "loss": loss_sum / images,
        "accuracy": correct / images,
        "learning_rate": learning_rate,
    }


def query_metrics(
    proposal: Proposal,
    pool: Pool,
    classes: int,
    minutes: float,
    truth: Tensor | None,
    corrected_uploads: int = 0,
) -> dict[str, float]:
    """Cost and composition of a query, for the group `active_learning`.

    `labeled_samples` is the number of labels that the round trains on: those of the pool, and those
    of images from outside of it, which `corrected_uploads` counts. `class_imbalance` is the size of
    the largest class in the pool, divided by the size of the smallest; an absent class counts as
    one image. `wrong_labels` is the number of labels of the pool that differ from `truth`;
    `expert_labels` is the number of those that a simulated expert gave.

    Args:
        truth: true labels, int64 [N], if a simulated oracle knows them.
    """
    labelled = pool.labelled
    counts = torch.bincount(pool.labels[labelled], minlength=classes)
    metrics: dict[str, float] = {
        "labeled_samples": len(labelled) + corrected_uploads,
        "annotation_minutes": minutes,
        "query_seconds": proposal.seconds,
        "class_imbalance": float(counts.max() / counts.min().clamp(min=1)),
    }
    if corrected_uploads:
        metrics["corrected_uploads"] = corrected_uploads
    if len(pool.skipped):
        metrics["skipped_samples"] = len(pool.skipped)
    if TwoAnnotators.EXPERT in pool.annotators:
        metrics["expert_labels"] = int(pool.labelled_by(TwoAnnotators.EXPERT).sum())
    if truth is not None:
        metrics["wrong_labels"] = int((pool.labels[labelled] != truth[labelled]).sum())
    if proposal.uncertainty is not None:
        metrics["uncertainty_queried"] = float(proposal.uncertainty.mean())
    if proposal.candidates_uncertainty is not None:
        metrics["uncertainty_candidates"] = proposal.candidates_uncertainty
    return metrics


def validation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The group `validation`, which contains the searcher's metric."""
    return {
        **{f"val_{name}": value for name, value in evaluation.val.items()},
        "labeled_samples": evaluation.labels,
        "annotation_minutes": evaluation.annotation_minutes,
    }


def test_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The group `test`; empty if the test split has no labels."""
    return {f"test_{name}": value for name, value in evaluation.test.items()}


def learning_curve_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The last point of the learning curve, and the area below it so far.

    Args:
        rows: the rows of metrics.csv, one per evaluated round.
    """
    last = rows[-1]
    return {
        "accuracy_by_labels": last["val_accuracy"],
        "auc_by_labels": last["val_auc"],
        "aubc": area_under_budget_curve(
            [row["labeled_samples"] for row in rows], [row["val_accuracy"] for row in rows]
        ),
        "epochs": last["labeled_samples"],
    }


def minutes_curve_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The last point of accuracy and AUC against minutes of annotation; rows as above."""
    last = rows[-1]
    return {
        "accuracy_by_minutes": last["val_accuracy"],
        "auc_by_minutes": last["val_auc"],
        "epochs": last["annotation_minutes"],
    }


def area_under_budget_curve(labels: Sequence[float], accuracies: Sequence[float]) -> float:
    """Mean accuracy over the budget so far: the trapezoidal area over the range of labels.

    Zhan et al. 2021, "A Comparative Survey: Benchmarking for Pool-based Active Learning".
    """
    if labels[-1] == labels[0]:
        return accuracies[-1]
    y, x = (torch.tensor(values, dtype=torch.float64) for values in (accuracies, labels))
    return float(torch.trapezoid(y, x) / (x[-1] - x[0]))


def class_metrics(
    split: str, logits: Tensor, labels: Tensor, class_names: Sequence[str]
) -> dict[str, float]:
    """Precision and recall of each class on one split, for metrics.csv; no undefined values.

    Args:
        logits: [N, classes].
        labels: int64 [N]; images with -1 are ignored.
    """
    known = labels >= 0
    logits, labels = logits[known].cpu(), labels[known].cpu()
    predicted = logits.argmax(1)
    hits = torch.bincount(labels[predicted == labels], minlength=len(class_names)).double()
    values = {
        "precision": hits / torch.bincount(predicted, minlength=len(class_names)),
        "recall": recalls(logits, labels),
    }
    return {
        f"{split}_{measure}_{name}": value
        for measure, per_class in values.items()
        for name, value in zip(class_names, per_class.tolist(), strict=True)
        if value == value
    }


def queried_classes(pool: Pool, round_: int, class_names: Sequence[str]) -> dict[str, float]:
    """Number of images that a round labelled, in all and per class, for metrics.csv."""
    labels = pool.labels[pool.acquired_round == round_]
    counts = torch.bincount(labels, minlength=len(class_names)).tolist()
    by_class = {f"queried_{name}": count for name, count in zip(class_names, counts, strict=True)}
    return {"query_size": len(labels), **by_class}
