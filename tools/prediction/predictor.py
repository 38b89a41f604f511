"""From a batch of images to one prediction each: calibrated probabilities, uncertainty, outlier."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from run_folder.reader import Model
from serving.outliers import Neighbours
from tools.image_inputs import ImageBatch
from tools.prediction.outlier_rule import OutlierReference, outlier_reference
from training.inference import Passes, query_passes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What is known of one image.

    probabilities: of each class, in the run's order, temperature-scaled.
    uncertainty: predictive entropy in nats.
    outlier, distance: None where the run's data set could not be had.
    size: width x height, as in "64x48".
    """

    image: str
    class_name: str
    probability: float
    probabilities: list[float]
    uncertainty: float
    outlier: bool | None
    distance: float | None
    size: str


class Predictor:
    """A run's network with its temperature and its outlier rule."""

    def __init__(
        self, model: Model, temperature: float, reference: OutlierReference | None
    ) -> None:
        self.model = model
        self._temperature = temperature
        self._reference = reference
        self._neighbours = None if reference is None else Neighbours(reference.embeddings)
        self._passes: Passes = query_passes(
            model.hp, model.inference.network, model.seed, model.round + 1
        )

    @classmethod
    def of_run(cls, model: Model, path: Path, checkpoint: str, data_dir: Path | None) -> Predictor:
        """The predictor of `model`, which was opened from `path`.

        Without the run's data set there is a warning and no outlier flag.
        """
        reference = None
        try:
            reference = outlier_reference(model, path, checkpoint, data_dir)
        except UserError as error:
            logger.warning(
                "no outlier flag, because the run's data set is needed for it: %s", error
            )
        row = next((row for row in model.metrics if row["round"] == model.round), {})
        temperature = row.get("temperature", reference.temperature if reference else None)
        if temperature is None:
            logger.warning("the run has no temperature; its probabilities are not calibrated")
        return cls(model, temperature or 1.0, reference)

    def predict(self, batch: ImageBatch) -> Iterator[Prediction]:
        """One prediction for each image of the batch, in its order."""
        inference = self.model.inference
        embeddings = inference.embed_batch(batch.images)
        logits = inference.logits(embeddings)
        if not logits.isfinite().all():
            raise UserError(
                f"{self.model.path}: the network of round {self.model.round} gives outputs that "
                "are no numbers; name an earlier round by --round"
            )
        probabilities = (logits / self._temperature).softmax(1)
        best, predicted = probabilities.max(1)
        uncertainty = inference.uncertainty(batch.images, embeddings, self._passes)
        distances: list[float] | list[None] = [None] * len(batch.names)
        if self._neighbours is not None:
            distances = self._neighbours.distances(embeddings.float().cpu().numpy()).tolist()
        for name, size, c, highest, row, entropy, distance in zip(
            batch.names,
            batch.sizes,
            predicted.tolist(),
            best.tolist(),
            probabilities.tolist(),
            uncertainty.tolist(),
            distances,
            strict=True,
        ):
            yield Prediction(
                image=name,
                class_name=self.model.class_names[c],
                probability=highest,
                probabilities=row,
                uncertainty=entropy,
                outlier=self._is_outlier(distance),
                distance=distance,
                size=size,
            )

    def _is_outlier(self, distance: float | None) -> bool | None:
        if self._reference is None or distance is None:
            return None
        return distance > self._reference.threshold
