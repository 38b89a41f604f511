"""The pictures of one round for TensorBoard: those of the evaluation report, kept small.

TensorBoard itself draws what the report draws over rounds (learning curves, losses, precision and
recall of each class) from the numbers that are reported. `PictureSchedule` keeps the time that
pictures take to a tenth of the time that the rounds take.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reporting import prediction_figures as figures
from reporting.galleries import Predictions, attention, card_sheet, mistakes
from reporting.intervals import Estimate
from reporting.measures import class_areas, class_measures, confusion_counts
from reporting.pool_map import pool_map
from reporting.tile_sheet import contact_sheet
from training.calibration import fit_temperature
from training.inference import Inference

CLASSES = 12  # shown at most in a picture that grows with their number
SHEET_IMAGES = 20
CARDS = 12
MAP_POINTS = 100  # of each kind; t-SNE takes about a second for these
SHARE = 0.1  # of the rounds' time that pictures may take
FIRST_COST = 0.3  # seconds that the first picture is expected to take


@dataclass(frozen=True)
class RoundEnd:
    """What is known when a round has been evaluated.

    val_images: uint8 [N, C, S, S], val_labels: int64 [N], -1 where unknown, and logits
    [N, classes], on any device.
    pool_images: uint8 [M, C, S, S], anywhere; acquired_round and labels: int64 [M], on the CPU, -1
    where there is no label yet.
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


class PictureSchedule:
    """Draws pictures in turn, those first that were drawn longest ago, within `SHARE` of the time.

    A round that is too short for the next picture saves its time for it. The first rounds of a run
    whose rounds take seconds therefore draw a picture or two each; rounds of minutes draw all.
    """

    def __init__(self) -> None:
        self.spent = 0.0  # seconds, on all pictures so far
        self.rounds_took = 0.0  # seconds without these pictures, all rounds so far
        self._costs: dict[str, float] = {}
        self._drawn: dict[str, int] = {}  # when each was drawn last

    def draw(self, end: RoundEnd, round_seconds: float) -> Iterator[tuple[str, bytes]]:
        """Name and PNG of each picture that the time allows for.

        What the caller does with a picture before it asks for the next one counts as time spent.

        Args:
            round_seconds: how long the round took without pictures.
        """
        self.rounds_took += round_seconds
        drawers = RoundPictures(end).drawers()
        for name in sorted(drawers, key=lambda one: self._drawn.get(one, -1)):
            if self.spent + self._expected(name) > SHARE * self.rounds_took:
                return
            started = time.perf_counter()
            picture = drawers[name]()
            if picture is not None:
                yield name, picture
            cost = time.perf_counter() - started
            self._costs[name] = cost
            self.spent += cost
            self._drawn[name] = end.round

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Have the block's time count as spent, for pictures that are drawn in any case."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - started

    def _expected(self, name: str) -> float:
        """Seconds that the picture took last time; if there was none, as the others did."""
        if name in self._costs or not self._costs:
            return self._costs.get(name, FIRST_COST)
        return sum(self._costs.values()) / len(self._costs)


class RoundPictures:
    """The pictures of a round; each is drawn when it is asked for.

    The trial stays as it is: the network has to be in eval mode, and random draws come from
    generators of their own.
    """

    def __init__(self, end: RoundEnd) -> None:
        known = end.val_labels >= 0
        self._end = end
        self._names = end.class_names
        self._val_images = end.val_images
        if not known.all():
            self._val_images = end.val_images[known.to(end.val_images.device)]
        self._labels = end.val_labels[known].cpu()
        self._logits = end.logits[known.to(end.logits.device)].double().cpu()

    def drawers(self) -> dict[str, Callable[[], bytes | None]]:
        """What draws each picture, by its name; None where there is nothing to show."""
        return {
            "queried": self._queried,
            "confusion_matrix": self._confusion_matrix,
            "mistakes": self._mistakes,
            "precision_and_recall": self._precision_and_recall,
            "queried_classes": self._queried_classes,
            "reliability": self._reliability,
            "roc_curves": self._roc_curves,
            "grad_cam": self._grad_cam,
            "map_of_the_pool": self._map,
        }

    @cached_property
    def _probabilities(self) -> Tensor:
        return self._logits.softmax(1)

    @cached_property
    def _predictions(self) -> Predictions:
        confidence, predicted = self._probabilities.max(1)
        return Predictions(self._val_images, self._labels, predicted, confidence, self._names)

    @cached_property
    def _counts(self) -> Tensor:
        return confusion_counts(self._predictions.predicted, self._labels, len(self._names))

    def _queried(self) -> bytes:
        end = self._end
        chosen = (end.acquired_round == end.round).nonzero().flatten()
        images = end.pool_images[chosen.to(end.pool_images.device)].cpu()
        title = f"Round {end.round}: queried images"
        return contact_sheet(images, end.labels[chosen], self._names, title, SHEET_IMAGES)

    def _queried_classes(self) -> bytes:
        end = self._end
        labelled = end.acquired_round >= 0
        cells = end.acquired_round[labelled] * len(self._names) + end.labels[labelled]
        counts = torch.bincount(cells, minlength=(end.round + 1) * len(self._names))
        table = counts.view(-1, len(self._names))
        return figures.class_mix(table, self._names, most=CLASSES)

    def _map(self) -> bytes:
        end = self._end
        return pool_map(
            end.pool_images, end.acquired_round, end.round, end.inference, self._names, end.seed,
            MAP_POINTS,
        )  # fmt: skip

    def _confusion_matrix(self) -> bytes:
        return figures.confusion_matrix(self._counts, self._names, CLASSES)

    def _precision_and_recall(self) -> bytes:
        values = class_measures(self._counts)
        precision, recall = (_points(values[one].tolist()) for one in ("precision", "recall"))
        return figures.precision_and_recall(precision, recall, self._names, CLASSES)

    def _roc_curves(self) -> bytes:
        areas = _points(class_areas(self._probabilities, self._labels))
        return figures.roc_curves(self._probabilities, self._labels, areas, self._names, CLASSES)

    def _reliability(self) -> bytes:
        temperature = fit_temperature(self._logits, self._labels)
        calibrated = (self._logits / temperature).softmax(1)
        return figures.reliability(self._probabilities, calibrated, self._labels)

    def _mistakes(self) -> bytes | None:
        wrong = mistakes(self._predictions, per_class=1)
        return card_sheet(wrong[:CARDS], "Most confident mistakes") if wrong else None

    def _grad_cam(self) -> bytes:
        shown = attention(self._predictions, self._end.inference)
        return card_sheet(shown[:CARDS], "Grad-CAM")


def _points(values: list[float]) -> list[Estimate]:
    """Values without intervals, which a round does not take the time for."""
    return [Estimate(value, value, value) for value in values]
