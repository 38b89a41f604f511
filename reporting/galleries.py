"""Pictures of single predictions: the worst mistakes, and where the network looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from data import normalise
from reporting.figures import shorten
from reporting.grad_cam import grad_cam
from reporting.html_page import card, cards, picture
from training.inference import Inference

MISTAKES = 2  # per class
CLASSES = 20  # shown at most
OVERLAY_PIXELS = 112  # about the side of an overlay; a whole multiple of the image's
OVERLAY_WEIGHT = 0.55  # of the map's colours over the image's


@dataclass(frozen=True)
class Predictions:
    """One split with its predictions, all on the CPU.

    images: uint8 [N, C, S, S]; labels, predicted: int64 [N]; confidence: [N], the probability of
    the predicted class.
    """

    images: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    class_names: Sequence[str]

    def most_confident(self, true: int, right: bool, count: int) -> list[int]:
        """Positions of the `count` most confident right or wrong predictions for class `true`."""
        hits = (self.labels == true) & ((self.predicted == true) == right)
        positions = hits.nonzero().flatten()
        order = self.confidence[positions].argsort(descending=True, stable=True)
        return positions[order[:count]].tolist()

    def picture(self, position: int, caption: str) -> str:
        """HTML of the image at `position`."""
        return picture(_pixels(self.images[position]), caption)


def mistakes(predictions: Predictions) -> str:
    """HTML: each class's most confident mistakes, each beside right examples of both classes."""
    names = predictions.class_names
    short = [shorten(name) for name in names]
    items = []
    for true in range(min(len(names), CLASSES)):
        for wrong in predictions.most_confident(true, right=False, count=MISTAKES):
            said = int(predictions.predicted[wrong])
            confidence = float(predictions.confidence[wrong])
            row = [predictions.picture(wrong, f"called {short[said]}, {confidence:.0%} sure")]
            for example in (true, said):
                for position in predictions.most_confident(example, right=True, count=1):
                    row.append(predictions.picture(position, f"right: {short[example]}"))
            items.append(card(f"True class: {names[true]}", row))
    return cards(items) if items else "<p>No mistakes on this split.</p>"


def attention(predictions: Predictions, inference: Inference) -> str:
    """HTML: Grad-CAM maps of each class's most confident right and wrong prediction."""
    names = predictions.class_names
    shown: list[list[tuple[int, bool]]] = []
    for true in range(min(len(names), CLASSES)):
        shown.append(
            [
                (position, right)
                for right in (True, False)
                for position in predictions.most_confident(true, right, count=1)
            ]
        )
    positions = torch.tensor([position for row in shown for position, _ in row])
    device = inference.device
    images = normalise(predictions.images[positions].to(device), inference.mean, inference.std)
    maps = grad_cam(inference.network, images, predictions.predicted[positions].to(device)).cpu()
    overlays = iter(maps)
    items = []
    for true, row in enumerate(shown):
        for position, right in row:
            said = names[int(predictions.predicted[position])]
            confidence = f"{float(predictions.confidence[position]):.0%} sure"
            overlay = _overlay(predictions.images[position], next(overlays))
            items.append(
                card(
                    f"{'Right' if right else 'Wrong'}: {names[true]}",
                    [
                        predictions.picture(position, f"true class: {shorten(names[true])}"),
                        picture(overlay, f"evidence for {shorten(said)}, {confidence}"),
                    ],
                )
            )
    return cards(items)


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """uint8 [C, S, S] as [S, S, C]."""
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return pixels


def _overlay(image: Tensor, evidence: Tensor) -> NDArray[np.uint8]:
    """`evidence` [S, S] from 0 to 1 in colour over the grey image: uint8 [k S, k S, 3]."""
    grey = image.float().mean(0).div(255).numpy()[..., np.newaxis]
    # Dark to bright in every kind of colour vision, and in grey print.
    colour = colormaps["viridis"](evidence.numpy())[..., :3]
    mixed = OVERLAY_WEIGHT * colour + (1 - OVERLAY_WEIGHT) * grey
    times = max(1, OVERLAY_PIXELS // image.shape[-1])
    return np.rint(255 * mixed).astype(np.uint8).repeat(times, 0).repeat(times, 1)
