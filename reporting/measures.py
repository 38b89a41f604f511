"""How good predictions are, with bootstrap intervals. All resamples are computed at once.

A resample is a row of weights: how often each image was drawn. The estimate itself is the row of
ones, so that estimate and interval come out of the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ECE_BINS = 15
BLOCK_ELEMENTS = 2**22  # resamples x images held at a time; a few tensors of this size are alive


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % percentile interval. NaN: not defined on these images."""

    value: float
    low: float
    high: float


def estimates(
    probabilities: Tensor,
    calibrated: Tensor,
    labels: Tensor,
    resamples: int,
    generator: torch.Generator,
) -> dict[str, list[Estimate]]:
    """Every measure with its interval: one `Estimate` each, or one per class.

    `measures` names them; `brier_calibrated` and `ece_calibrated` are those of `calibrated`.
    Images are resampled with replacement (Efron 1979, doi 10.1214/aos/1176344552).

    Args:
        probabilities, calibrated: [N, C], before and after temperature scaling.
        labels: int64 [N].
        generator: on the CPU, where all of this is computed.
    """
    probabilities, calibrated, labels = (
        tensor.cpu() for tensor in (probabilities.double(), calibrated.double(), labels)
    )
    count = len(labels)
    parts: list[dict[str, Tensor]] = []
    weights = torch.ones(1, count)
    while True:
        part = measures(probabilities, labels, weights)
        part["brier_calibrated"] = brier(calibrated, labels, weights)
        part["ece_calibrated"] = expected_calibration_error(calibrated, labels, weights)
        parts.append(part)
        done = sum(len(one["accuracy"]) for one in parts) - 1
        if done >= resamples:
            break
        block = min(resamples - done, max(1, BLOCK_ELEMENTS // count))
        weights = bootstrap_weights(block, count, generator)
    return {name: _summary(torch.cat([part[name] for part in parts])) for name in parts[0]}


def bootstrap_weights(resamples: int, count: int, generator: torch.Generator) -> Tensor:
    """Float32 [resamples, count]: how often each of `count` images is drawn in `count` draws."""
    drawn = torch.randint(count, (resamples, count), generator=generator)
    return torch.zeros(resamples, count).scatter_add_(1, drawn, torch.ones(resamples, count))


def measures(probabilities: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """All measures of float64 [N, C] `probabilities`, under each of R rows of weights [R, N].

    [R, C]: `precision`, `recall`, `f1`, `class_auc`. [R]: their means over classes,
    `macro_precision` and so on, `balanced_accuracy` (the mean recall), `accuracy`, `auc`, `brier`
    and `ece`. A class without an image has no per-class value (NaN) and no part in the means; a
    class that has images and is never predicted has precision 0.
    """
    classes = probabilities.shape[1]
    counts = confusion_counts(probabilities.argmax(1), labels, weights, classes)
    per_class = class_measures(counts)
    areas = class_auc(probabilities, labels, weights)
    return {
        "accuracy": counts.diagonal(dim1=1, dim2=2).sum(1) / counts.sum((1, 2)),
        "balanced_accuracy": per_class["recall"].nanmean(1),
        # MedMNIST takes the second of two classes alone; so does training/metrics.py.
        "auc": areas[:, 1] if classes == 2 else areas.nanmean(1),
        **{f"macro_{name}": value.nanmean(1) for name, value in per_class.items()},
        "brier": brier(probabilities, labels, weights),
        "ece": expected_calibration_error(probabilities, labels, weights),
        **per_class,
        "class_auc": areas,
    }


def class_measures(counts: Tensor) -> dict[str, Tensor]:
    """`precision`, `recall` and `f1` [R, C], by confusion counts [R, C, C]; see `measures`."""
    right = counts.diagonal(dim1=1, dim2=2)
    images, predicted = counts.sum(2), counts.sum(1)
    values = {
        "precision": right / predicted.clamp(min=1),
        "recall": right / images.clamp(min=1),
        "f1": 2 * right / (images + predicted).clamp(min=1),
    }
    return {name: value.masked_fill(images == 0, torch.nan) for name, value in values.items()}


def confusion_counts(predicted: Tensor, labels: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Float64 [R, C, C]: images of class (second axis) predicted as (third), by weights [R, N]."""
    counts = torch.zeros(len(weights), classes**2, dtype=torch.float64)
    counts.index_add_(1, labels * classes + predicted, weights.double())
    return counts.view(-1, classes, classes)


def class_auc(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Float64 [R, C]: area under each class's one-against-rest ROC curve; NaN without one.

    The Mann-Whitney statistic: the share of pairs of an image of the class and another one in
    which the first has the higher score, ties counting half.
    """
    return torch.stack(
        [
            _binary_auc(probabilities[:, c], labels == c, weights)
            for c in range(probabilities.shape[1])
        ],
        dim=1,
    )


def _binary_auc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    _, tie = scores.unique(return_inverse=True)  # ascending
    ties = int(tie.max()) + 1
    rows = len(weights)
    # Whole numbers below 2**24, which float32 holds exactly, as long as N is.
    negatives = weights.new_zeros(rows, ties).index_add_(1, tie[~positive], weights[:, ~positive])
    positives = weights.new_zeros(rows, ties).index_add_(1, tie[positive], weights[:, positive])
    below = negatives.cumsum(1) - negatives / 2
    wins = (positives.double() * below.double()).sum(1)
    return wins / (positives.sum(1).double() * negatives.sum(1).double())


def brier(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Float64 [R]: squared distance of the probabilities to the truth, summed over classes.

    From 0 to 2 (Brier 1950, doi 10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2).
    """
    truth = F.one_hot(labels, probabilities.shape[1])
    distance = (probabilities - truth).square().sum(1)
    return weights.double() @ distance / weights.sum(1).double()


def expected_calibration_error(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Float64 [R]: how far confidence and accuracy are apart, over `ECE_BINS` equal bins.

    The mean over images of the gap between mean confidence and accuracy of the image's bin
    (Guo et al. 2017, arXiv 1706.04599). Resampling adds noise to every gap and gaps cannot cancel,
    so an interval may lie above its estimate.
    """
    confidence, predicted = probabilities.max(1)
    surplus = (confidence - (predicted == labels).double()).expand(len(weights), -1)
    sums = torch.zeros(len(weights), ECE_BINS, dtype=torch.float64)
    sums.index_add_(1, confidence_bins(confidence), surplus * weights)
    return sums.abs().sum(1) / weights.sum(1).double()


def confidence_bins(confidence: Tensor) -> Tensor:
    """Int64 [N]: which of `ECE_BINS` equal bins of (0, 1], closed above, each confidence is in."""
    return (confidence * ECE_BINS).ceil().long().sub_(1).clamp_(0, ECE_BINS - 1)


def _summary(values: Tensor) -> list[Estimate]:
    """The estimate in row 0 and its interval from the other rows, for every column."""
    columns = values.unsqueeze(1) if values.ndim == 1 else values
    bounds = columns[1:].nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    rows = torch.stack([columns[0], *bounds], dim=1).tolist()
    return [Estimate(*row) for row in rows]
