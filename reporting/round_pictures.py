"""The pictures of one round for TensorBoard: those of the evaluation report, kept small.

What the report draws over rounds - learning curves, losses, each class's precision and recall -
TensorBoard draws itself from the numbers that are reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reporting import prediction_figures as figures
from reporting.calibration import fit_temperature
from reporting.figures import contact_sheet
from reporting.galleries import Predictions, attention, card_sheet, mistakes
from reporting.measures import Estimate, confusion_counts, measures
from reporting.pool_map import pool_map
from training.inference import Inference

CLASSES = 12  # of each picture that grows with their number, the first ones
SHEET_IMAGES = 20
CARDS = 12
MAP_POINTS = 100  # of each kind; t-SNE takes about a second for these


@dataclass(frozen=True)
class RoundEnd:
    """What is known when a round has been evaluated.

    val_images uint8 [N, C, S, S], val_labels int64 [N], logits [N, classes], on any device; the
    pool's images uint8 [M, C, S, S], anywhere; acquired_round and labels int64 [M], on the CPU,
    -1 where there is no label yet.
    """

    round: int
    seed: int
    class_names: tuple[str, ...]
    val_images: Tensor
    val_labels: Tensor
    logits: Tensor
    pool_images: Tensor
    acquired_round: Tensor
    labels: Tensor
    inference: Inference


def round_pictures(end: RoundEnd) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each picture, one at a time.

    Nothing of the trial's changes: the network has to be in eval mode, and what is drawn at random
    comes from generators of its own.
    """
    names = end.class_names
    logits, labels = end.logits.double().cpu(), end.val_labels.cpu()
    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    found = measures(probabilities, labels, torch.ones(1, len(labels)))
    scores = {
        name: [Estimate(value, value, value) for value in found[name][0].tolist()]
        for name in ("precision", "recall", "class_auc")
    }
    chosen = (end.acquired_round == end.round).nonzero().flatten()
    images = end.pool_images[chosen.to(end.pool_images.device)].cpu()
    title = f"Round {end.round}: queried images"
    yield "queried", contact_sheet(images, end.labels[chosen], names, title, SHEET_IMAGES)
    yield "queried_classes", figures.class_mix(_queried(end)[:, :CLASSES], names[:CLASSES])
    yield (
        "map_of_the_pool",
        pool_map(
            end.pool_images, end.acquired_round, end.round, end.inference, names, end.seed,
            MAP_POINTS,
        ),
    )  # fmt: skip
    counts = confusion_counts(predicted, labels, torch.ones(1, len(labels)), len(names))[0]
    yield (
        "confusion_matrix",
        figures.confusion_matrix(counts[:CLASSES, :CLASSES], names[:CLASSES]),
    )
    yield (
        "precision_and_recall",
        figures.precision_and_recall(
            scores["precision"][:CLASSES], scores["recall"][:CLASSES], names[:CLASSES]
        ),
    )
    yield (
        "roc_curves",
        figures.roc_curves(
            probabilities[:, :CLASSES], labels, scores["class_auc"][:CLASSES], names[:CLASSES]
        ),
    )
    calibrated = (logits / fit_temperature(logits, labels)).softmax(1)
    yield "reliability", figures.reliability(probabilities, calibrated, labels)
    predictions = Predictions(end.val_images, labels, predicted, confidence, names)
    wrong = mistakes(predictions, per_class=1)
    if wrong:
        yield "mistakes", card_sheet(wrong[:CARDS], "Most confident mistakes")
    yield "grad_cam", card_sheet(attention(predictions, end.inference)[:CARDS], "Grad-CAM")


def _queried(end: RoundEnd) -> Tensor:
    """Images labelled in each round of each class: int64 [rounds, classes]."""
    labelled = end.acquired_round >= 0
    cells = end.acquired_round[labelled] * len(end.class_names) + end.labels[labelled]
    counts = torch.bincount(cells, minlength=(end.round + 1) * len(end.class_names))
    return counts.view(-1, len(end.class_names))
