"""How good predictions are: accuracy, precision, recall, F1, AUC, Brier score, calibration error.

`estimates` gives every measure with its 95 % interval (`reporting/intervals.py` says how), of a
split whose images are independent of each other or belong to groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reporting.intervals import (
    UNDEFINED,
    Estimate,
    Mean,
    Measure,
    bootstrap,
    f1_score,
    roc_area,
    share,
)

ECE_BINS = 15
PER_CLASS = ("precision", "recall", "f1", "class_auc")


def estimates(
    probabilities: Tensor,
    calibrated: Tensor,
    labels: Tensor,
    groups: Tensor | None,
    resamples: int,
    generator: torch.Generator,
) -> tuple[dict[str, Estimate], dict[str, list[Estimate]]]:
    """The measures of a whole split, and those of each class.

    Of the split: `accuracy`, `balanced_accuracy` (the mean recall), `auc`, `macro_precision`,
    `macro_f1`, and `brier`, `ece`, `brier_calibrated`, `ece_calibrated`. Of each class:
    `PER_CLASS`. A class without an image has no value and no part in the means; a class that has
    images and is never predicted has precision 0.

    Args:
        probabilities, calibrated: float64 [N, C], before and after temperature scaling.
        labels: int64 [N].
        groups: int64 [N], which images belong together; None if each stands for itself.
        resamples: of the bootstrap, for Brier score and calibration error.
    """
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    per_class: dict[str, list[Estimate]] = {name: [] for name in PER_CLASS}
    means = {name: Mean(len(labels)) for name in PER_CLASS}
    for c in range(classes):
        of_class = _class_measures(probabilities[:, c], labels == c, predicted == c)
        for name, measure in of_class.items():
            per_class[name].append(_estimate(measure, groups))
            if measure is not None:
                means[name].add(measure)
    whole = {
        "accuracy": share(predicted == labels, torch.arange(len(labels))),
        "balanced_accuracy": means["recall"].measure(),
        "auc": means["class_auc"].measure(),
        "macro_precision": means["precision"].measure(),
        "macro_f1": means["f1"].measure(),
    }
    scores = {name: _estimate(measure, groups) for name, measure in whole.items()}
    if classes == 2:  # MedMNIST takes the second of two classes alone; so does training/metrics.py
        scores["auc"] = per_class["class_auc"][1]
    for suffix, values in (("", probabilities), ("_calibrated", calibrated)):
        scores |= _calibration(values, labels, groups, resamples, generator, suffix)
    return scores, per_class


def _class_measures(
    scores: Tensor, is_class: Tensor, called_class: Tensor
) -> dict[str, Measure | None]:
    """The measures of one class by name: its scores [N], its images and its predictions."""
    images, called, either = (
        chosen.nonzero().flatten() for chosen in (is_class, called_class, is_class | called_class)
    )
    if not len(images):
        return dict.fromkeys(PER_CLASS)
    return {
        "precision": share(is_class[called], called),
        "recall": share(called_class[images], images),
        "f1": f1_score((is_class & called_class)[either], either),
        "class_auc": roc_area(scores, is_class),
    }


def _estimate(measure: Measure | None, groups: Tensor | None) -> Estimate:
    return UNDEFINED if measure is None else measure.estimate(groups)


def confusion_counts(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Int64 [C, C]: images of class (first axis) that are predicted as (second axis)."""
    cells = labels * classes + predicted
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


def class_measures(counts: Tensor) -> dict[str, Tensor]:
    """`precision`, `recall` and `f1`, float64 [C], by confusion counts [C, C]; see `estimates`."""
    counts = counts.double()
    right, images, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    values = {
        "precision": right / predicted.clamp(min=1),
        "recall": right / images.clamp(min=1),
        "f1": 2 * right / (images + predicted).clamp(min=1),
    }
    return {name: value.masked_fill(images == 0, torch.nan) for name, value in values.items()}


def class_areas(probabilities: Tensor, labels: Tensor) -> list[float]:
    """The area under each class's one-against-rest ROC curve; NaN where there is none."""
    areas = (roc_area(probabilities[:, c], labels == c) for c in range(probabilities.shape[1]))
    return [float("nan") if area is None else area.value for area in areas]


def brier_distances(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Float64 [N]: squared distance of each prediction to the truth, summed over classes, 0 to 2.

    Its mean is the Brier score (Brier 1950,
    doi 10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2).
    """
    of_the_class = probabilities.gather(1, labels[:, None]).squeeze(1)
    return probabilities.square().sum(1) - 2 * of_the_class + 1


def confidence_bins(confidence: Tensor) -> Tensor:
    """Int64 [N]: which of `ECE_BINS` equal bins of (0, 1], closed above, each confidence is in."""
    return (confidence * ECE_BINS).ceil().long().sub_(1).clamp_(0, ECE_BINS - 1)


def calibration_gaps(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Float64 [N, ECE_BINS]: confidence minus correctness of each image, in its bin's column.

    The sums over images, without their signs, added up and divided by N, are the expected
    calibration error (Guo et al. 2017, arXiv 1706.04599).
    """
    confidence, predicted = probabilities.max(1)
    surplus = confidence.double() - (predicted == labels).double()
    gaps = torch.zeros(len(labels), ECE_BINS, dtype=torch.float64)
    return gaps.scatter_(1, confidence_bins(confidence)[:, None], surplus[:, None])


def _calibration(
    probabilities: Tensor,
    labels: Tensor,
    groups: Tensor | None,
    resamples: int,
    generator: torch.Generator,
    suffix: str,
) -> dict[str, Estimate]:
    """Brier score and calibration error with bias-corrected bootstrap intervals.

    Resampling adds noise to every bin's gap, and gaps without signs cannot cancel: a resample's
    calibration error is too high on average, and so is the estimate. The upper limit is shifted
    down by that bias, the lower one by twice as much. The lower limit is 0 where noise alone, as
    the resamples show it, makes an error as large as the estimate.
    """
    values = torch.cat(
        [
            torch.ones(len(labels), 1, dtype=torch.float64),
            brier_distances(probabilities, labels)[:, None],
            calibration_gaps(probabilities, labels),
        ],
        dim=1,
    )
    sums = values.sum(0)
    drawn = bootstrap(values, groups, resamples, generator)
    count = drawn[:, 0]
    brier, briers = float(sums[1] / sums[0]), drawn[:, 1] / count
    error = float(sums[2:].abs().sum() / sums[0])
    errors = drawn[:, 2:].abs().sum(1) / count
    noise = (drawn[:, 2:] / count[:, None] - sums[2:] / sums[0]).abs().sum(1)
    low, high = _quantiles(errors)
    bias = float(errors.mean()) - error
    low = 0.0 if error <= _quantiles(noise)[1] else max(0.0, low - 2 * bias)
    brier_low, brier_high = _quantiles(briers)
    return {
        f"brier{suffix}": Estimate(brier, min(brier, brier_low), max(brier, brier_high)),
        f"ece{suffix}": Estimate(error, min(error, low), max(error, high - bias)),
    }


def _quantiles(values: Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
