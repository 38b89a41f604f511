"""From the network's outputs to the answer about each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.exported import ExportedModel
from serving.outliers import Neighbours

DECIMALS = 6


@dataclass(frozen=True)
class Prediction:
    """What is said about one image.

    Attributes:
        class_name: the likeliest class.
        probabilities: calibrated, by class name, in the model's order.
        uncertainty: entropy of the probabilities, in nats; 0 to log(classes).
        outlier: whether the image is unlike all that was labelled; None: the model cannot tell.
        distance: mean distance to the nearest labelled images, or None.
    """

    class_name: str
    probabilities: dict[str, float]
    uncertainty: float
    outlier: bool | None
    distance: float | None


class Interpreter:
    """Applies calibration and the outlier rule.

    Args:
        references: embeddings of the labelled images, float32 [n, D], or None.
    """

    def __init__(self, model: ExportedModel, references: NDArray[np.float32] | None) -> None:
        self._classes = model.classes
        self._temperature = model.temperature
        self._rule = model.outliers
        self._neighbours = None
        if model.outliers is not None and references is not None:
            self._neighbours = Neighbours(references, model.outliers.neighbours)

    def interpret(
        self, logits: NDArray[np.float32], embeddings: NDArray[np.float32]
    ) -> list[Prediction]:
        """Logits [B, classes] and embeddings [B, D] as one prediction for each image."""
        distances = None if self._neighbours is None else self._neighbours.distances(embeddings)
        probabilities = softmax(logits / self._temperature)
        entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(1)
        best = probabilities.argmax(1).tolist()
        threshold = None if self._rule is None else self._rule.threshold
        away: list[float] | list[None] = (
            [None] * len(logits) if distances is None else distances.round(DECIMALS).tolist()
        )
        return [
            Prediction(
                class_name=self._classes[winner],
                probabilities=dict(zip(self._classes, row, strict=True)),
                uncertainty=uncertainty,
                outlier=None if distance is None or threshold is None else distance > threshold,
                distance=distance,
            )
            for winner, row, uncertainty, distance in zip(
                best,
                probabilities.round(DECIMALS).tolist(),
                np.maximum(entropy, 0).round(DECIMALS).tolist(),
                away,
                strict=True,
            )
        ]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities float64 [B, classes] of logits [B, classes]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    powers = np.exp(shifted)
    result: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return result
