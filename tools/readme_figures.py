"""The README's figures as PNG bytes: of data and method, and of what a run found."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from data import ImageStore
from reporting.figures import BLUE, ORANGE, learning_curve, png
from reporting.galleries import Predictions, attention, card_sheet
from reporting.pool_map import pool_map
from reporting.tile_sheet import contact_sheet
from run_folder.reader import Run
from tools.evaluate.measure import evaluate_split

PER_CLASS = 3
MAP_POINTS = 300  # of each kind
CORNER = 8  # pixels of the image's corner whose values are printed

STEPS = {
    "query": (
        "one sweep over the pool, in eval",
        "mode: embeddings, probabilities",
        "of all passes; the strategy",
        "picks dataset indices",
    ),
    "label": (
        "the oracle, and nobody else,",
        "looks at the hidden labels",
        "of the picked images",
    ),
    "train": (
        "batches_per_round steps of AdamW",
        "on all labels so far; the rate",
        "warms up and falls to 0",
    ),
    "evaluate": (
        "validation: chooses the best round;",
        "test: is reported only;",
        "checkpoint, pause or go on",
    ),
}


def sample_sheet(store: ImageStore) -> bytes:
    """`PER_CLASS` images of each class, the first ones in the store."""
    chosen = torch.cat(
        [(store.labels == c).nonzero().flatten()[:PER_CLASS] for c in range(store.num_classes)]
    )
    title = "PathMNIST: training images, 28 x 28 pixels"
    return contact_sheet(store.images[chosen], store.labels[chosen], store.class_names, title)


def tensor_figure(store: ImageStore) -> bytes:
    """The first image of the store beside the values of its red channel's upper left corner."""
    image = store.images[0]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(image.permute(1, 2, 0).numpy())
    left.set_title(store.class_names[int(store.labels[0])], fontsize=10)
    left.axis("off")
    corner = image[0, :CORNER, :CORNER]
    right.imshow(corner.numpy(), cmap="Reds_r", vmin=0, vmax=255)
    for row in range(CORNER):
        for column in range(CORNER):
            value = int(corner[row, column])
            colour = "white" if value < 128 else "black"
            right.text(column, row, str(value), ha="center", va="center", fontsize=8, color=colour)
    shape = " x ".join(map(str, image.shape))
    right.set_title(f"uint8 {shape}: red, upper left {CORNER} x {CORNER}", fontsize=10)
    right.axis("off")
    return png(figure)


def round_figure() -> bytes:
    """Four boxes in a row, and the way back to the first."""
    figure = Figure(figsize=(11, 2.9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 4.4), ylim=(0, 1.15))
    axes.axis("off")
    for place, (title, lines) in enumerate(STEPS.items()):
        x = 0.12 + place * 1.06
        colour = ORANGE if title == "label" else BLUE
        box = FancyBboxPatch(
            (x, 0.42), 0.88, 0.58, boxstyle="round,pad=0.02", fill=False, edgecolor=colour, lw=2
        )
        axes.add_patch(box)
        axes.text(x + 0.44, 0.88, title, ha="center", weight="bold", fontsize=12, color=colour)
        text = "\n".join(lines)
        axes.text(x + 0.44, 0.63, text, ha="center", va="center", fontsize=8.5)
        if place:
            axes.add_patch(
                FancyArrowPatch(
                    (x - 0.15, 0.71), (x - 0.03, 0.71), arrowstyle="->", mutation_scale=14
                )
            )
    back = FancyArrowPatch(
        (3.74, 0.38), (0.56, 0.38), arrowstyle="->", mutation_scale=14,
        connectionstyle="arc3,rad=-0.08",
    )  # fmt: skip
    axes.add_patch(back)
    axes.text(
        2.15, 0.06, "next round, until rounds or label budget are used up, or a rule says stop",
        ha="center", fontsize=9,
    )  # fmt: skip
    return png(figure)


def run_figures(run: Run) -> dict[str, bytes]:
    """The figures of a run by what they show."""
    names = run.class_names
    test = evaluate_split(run, "test")
    confidence, predicted = test.probabilities.max(1)
    predictions = Predictions(
        run.splits.test.images, test.store.labels, predicted, confidence, names
    )
    wrong = attention(predictions, run.inference, kinds=(False,))
    return {
        "learning_curve": learning_curve(run.metrics, run.dataset),
        "map": pool_map(
            run.splits.train.images, run.pool.acquired_round, run.round, run.inference, names,
            run.seed, MAP_POINTS,
        ),
        "mistakes": card_sheet(wrong, "Most confident mistakes on test images, with Grad-CAM"),
    }  # fmt: skip
