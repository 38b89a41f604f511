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
from data_sources.sources import Sources
from reporting.grad_cam import grad_cam
from reporting.names import shorten
from reporting.tile_sheet import Tile, pixels, tile_sheet
from training.inference import Inference

MISTAKES = 2  # per class
CLASSES = 20  # shown at most
SHEET_COLUMNS = 8  # at most
OVERLAY_PIXELS = 112  # about the side of an overlay; a whole multiple of the image's
OVERLAY_WEIGHT = 0.55  # of the map's colours over the image's
SOURCE_WIDTH = 36  # columns of a file's name


@dataclass(frozen=True)
class Card:
    """A few images that belong together, and what they have in common."""

    title: str
    tiles: list[Tile]


@dataclass(frozen=True)
class Predictions:
    """One split with its predictions: images uint8 [N, C, S, S], anywhere; the rest on the CPU.

    labels, predicted: int64 [N]; confidence: [N], the probability of the predicted class.
    sources: where each image came from, as text; None where captions need not say it.
    """

    images: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    class_names: Sequence[str]
    sources: Sources | None = None

    def most_confident(self, true: int, right: bool, count: int) -> list[int]:
        """Positions of the `count` most confident right or wrong predictions for class `true`."""
        hits = (self.labels == true) & ((self.predicted == true) == right)
        positions = hits.nonzero().flatten()
        order = self.confidence[positions].argsort(descending=True, stable=True)
        return positions[order[:count]].tolist()

    def tile(self, position: int, caption: str) -> Tile:
        """The image at `position`; its source follows the caption."""
        if self.sources is not None:
            caption = f"{caption}; {shorten(self.sources[position], SOURCE_WIDTH)}"
        return Tile(pixels(self.images[position]), caption)


def mistakes(predictions: Predictions, per_class: int = MISTAKES) -> list[Card]:
    """Each class's most confident mistakes, each beside right examples of both classes."""
    names = predictions.class_names
    short = [shorten(name) for name in names]
    rows = []
    for true in range(min(len(names), CLASSES)):
        for wrong in predictions.most_confident(true, right=False, count=per_class):
            called = int(predictions.predicted[wrong])
            confidence = float(predictions.confidence[wrong])
            tiles = [predictions.tile(wrong, f"called {short[called]}, {confidence:.0%} sure")]
            for example in (true, called):
                for position in predictions.most_confident(example, right=True, count=1):
                    tiles.append(predictions.tile(position, f"right: {short[example]}"))
            rows.append(Card(f"True class: {names[true]}", tiles))
    return rows


def attention(
    predictions: Predictions, inference: Inference, kinds: Sequence[bool] = (True, False)
) -> list[Card]:
    """Grad-CAM maps of each class's most confident right (True) and wrong (False) prediction."""
    names = predictions.class_names
    shown = [
        (position, true, right)
        for true in range(min(len(names), CLASSES))
        for right in kinds
        for position in predictions.most_confident(true, right, count=1)
    ]
    if not shown:
        return []
    positions = torch.tensor([position for position, _, _ in shown])
    images = predictions.images[positions.to(predictions.images.device)]
    maps = grad_cam(
        inference.network,
        normalise(images.to(inference.device), inference.mean, inference.std),
        predictions.predicted[positions].to(inference.device),
    ).cpu()
    rows = []
    for (position, true, right), evidence in zip(shown, maps, strict=True):
        called = shorten(names[int(predictions.predicted[position])])
        confidence = f"{float(predictions.confidence[position]):.0%} sure"
        overlay = _overlay(predictions.images[position].cpu(), evidence)
        rows.append(
            Card(
                f"{'Right' if right else 'Wrong'}: {names[true]}",
                [
                    predictions.tile(position, "the image"),
                    Tile(overlay, f"evidence for {called}, {confidence}"),
                ],
            )
        )
    return rows


def card_sheet(cards: Sequence[Card], title: str) -> bytes:
    """Cards as a PNG, in rows of up to `SHEET_COLUMNS` images; first captions begin with titles."""
    width = max(len(card.tiles) for card in cards)
    tiles: list[Tile | None] = []
    for card in cards:
        first, *others = card.tiles
        row = [Tile(first.pixels, f"{card.title}, {first.caption}"), *others]
        tiles += [*row, *[None] * (width - len(row))]
    return tile_sheet(tiles, SHEET_COLUMNS // width * width, f"{title} ({len(cards)})")


def _overlay(image: Tensor, evidence: Tensor) -> NDArray[np.uint8]:
    """`evidence` [S, S], 0 to 1, in colour over the grey image: uint8 [k S, k S, 3]."""
    grey = image.float().mean(0).div(255).numpy()[..., np.newaxis]
    # Dark to bright in every kind of colour vision, and in grey print.
    colour = colormaps["viridis"](evidence.numpy())[..., :3]
    mixed = OVERLAY_WEIGHT * colour + (1 - OVERLAY_WEIGHT) * grey
    times = max(1, OVERLAY_PIXELS // image.shape[-1])
    return np.rint(255 * mixed).astype(np.uint8).repeat(times, 0).repeat(times, 1)
