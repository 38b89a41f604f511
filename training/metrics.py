"""Loss, accuracy and AUC as MedMNIST defines them, computed where the predictions are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """`loss` (cross-entropy, nats), `accuracy` and `auc` of logits [N, C] for labels int64 [N].

    Accuracy and AUC equal those of `medmnist.Evaluator` on softmax probabilities. One transfer to
    the host, at the end.
    """
    logits = logits.float()
    loss = F.cross_entropy(logits, labels)
    accuracy = (logits.argmax(1) == labels).float().mean()
    auc = macro_auc(logits.softmax(1), labels)
    values = torch.stack([loss.double(), accuracy.double(), auc]).tolist()
    return dict(zip(("loss", "accuracy", "auc"), values, strict=True))


def macro_auc(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean one-against-rest area under the ROC curve; float64 scalar on the device.

    Two classes: the area for the second one alone, as MedMNIST has it (Yang et al. 2023,
    doi 10.1038/s41597-022-01721-8). A class that has no image among `labels`, or every image, has
    no ROC curve and is left out of the mean; NaN if none is left.
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
    """Loss and accuracy of training batches, summed on the device until somebody asks."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float32, device=device)

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (scalar), logits [B, C] and labels int64 [B]."""
        count = len(labels)
        correct = (logits.detach().argmax(1) == labels).sum()
        self._sums[0] += loss.detach() * count
        self._sums[1] += correct
        self._sums[2] += count

    def take(self) -> tuple[float, float, float]:
        """(summed loss, correct images, images) since the last call; one host transfer."""
        loss, correct, count = self._sums.tolist()
        self._sums.zero_()
        return loss, correct, count
