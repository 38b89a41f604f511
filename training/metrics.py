"""Measures of predictions, computed on the device that holds them.

Accuracy and AUC are those that MedMNIST defines.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION_BINS = 15  # of equal width, as in Guo et al. 2017, arXiv 1706.04599


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Measures of logits [N, C] for labels int64 [N]; one transfer to the host, at the end.

    - `loss`: cross-entropy, nats.
    - `accuracy`, `auc`: equal to those of `medmnist.Evaluator` on softmax probabilities.
    - `ece`: expected calibration error.
    - `worst_recall`: the lowest recall of any class that has images.
    """
    logits = logits.float()
    probabilities = logits.softmax(1)
    loss = F.cross_entropy(logits, labels)
    accuracy = (logits.argmax(1) == labels).float().mean()
    auc = macro_auc(probabilities, labels)
    ece = expected_calibration_error(probabilities, labels)
    worst = recalls(logits, labels).nan_to_num(nan=1.0).min()
    values = torch.stack([loss.double(), accuracy.double(), auc, ece, worst]).tolist()
    return dict(zip(("loss", "accuracy", "auc", "ece", "worst_recall"), values, strict=True))


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean gap between confidence and accuracy over bins of confidence; float64 scalar.

    Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning".
    """
    confidence, predicted = probabilities.max(1)
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    gap = (predicted == labels).double() - confidence.double()
    sums = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=labels.device)
    return sums.index_add_(0, bins, gap).abs().sum() / len(labels)


def recalls(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of each class's images that are recognised: float64 [C]; NaN for a class without."""
    classes = logits.shape[1]
    correct = (logits.argmax(1) == labels).double()
    counts = torch.bincount(labels, minlength=classes)
    return torch.bincount(labels, weights=correct, minlength=classes).double() / counts


def macro_auc(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean one-against-rest area under the ROC curve; float64 scalar on the device.

    Two classes: the area for the second one alone, as MedMNIST has it (Yang et al. 2023,
    doi 10.1038/s41597-022-01721-8). A class that has no image among `labels`, or all of them, has
    no ROC curve and is left out of the mean. The result is NaN if no class is left.
    """
    classes = probabilities.shape[1]
    columns = [1] if classes == 2 else range(classes)
    areas = torch.stack([_binary_auc(probabilities[:, c], labels == c) for c in columns])
    return areas.nanmean()


def _binary_auc(scores: Tensor, positive: Tensor) -> Tensor:
    """P(a positive's score > a negative's), ties counting half: the Mann-Whitney statistic."""
    _, position, counts = scores.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    mean_rank = (last - (counts - 1) / 2).double()[position]  # ranks from 1, ties share theirs
    positives = positive.sum().double()
    negatives = len(scores) - positives
    rank_sum = (mean_rank * positive).sum()
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


class TrainingMeter:
    """Sums the loss and the accuracy of training batches on the device until `take`."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float32, device=device)

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (scalar), logits [B, C] and labels int64 [B]."""
        count = len(labels)
        correct = (logits.detach().argmax(1) == labels).sum()
        self._sums[0] += loss.detach() * count
        self._sums[1] += correct
        self._sums[2] += count

    def take(self) -> Tensor:
        """[summed loss, correct images, images] since the last call: float32 [3], on the device."""
        sums = self._sums.clone()
        self._sums.zero_()
        return sums
