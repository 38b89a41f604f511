"""The evaluation report's diagrams as PNG bytes, in colours that colour-blind people tell apart.

Diagrams that grow with the number of classes have a bound, and show the classes that tell most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import roc_curve
from torch import Tensor

from reporting.figures import BLUE, ORANGE, png
from reporting.intervals import Estimate
from reporting.measures import ECE_BINS, confidence_bins
from reporting.names import shorten
from reporting.numbers import value_text

# Okabe & Ito 2008, without the yellow that white paper swallows.
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "^", "s", "D")
GREY = "#BBBBBB"
NAME_WIDTH = 24  # columns of a class name
DARK = 0.6  # a cell of a deeper shade has white text
COLUMNS = 16  # of rounds in a table of cells, at most
# Classes shown at most: rows of a table of cells, small diagrams, curves, pairs of bars.
CELLS, PANELS, CURVES, BARS = 30, 24, 20, 40


def losses(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Training and validation loss of each round; `rows` are rows of metrics.csv."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, label, colour, style, marker in (
        ("train_loss", "training (end of the round)", BLUE, "-", "o"),
        ("val_loss", "validation", ORANGE, "--", "s"),
    ):
        points = [(row["round"], row[name]) for row in rows if name in row]
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, style, color=colour, marker=marker, markersize=4, label=label)
    axes.set(xlabel="round", ylabel="cross-entropy, nats")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return png(figure)


def telling_classes(ranks: Tensor, most: int) -> list[int]:
    """The `most` classes with the lowest `ranks` [C], NaN last, in the order of the classes."""
    order = ranks.double().nan_to_num(torch.inf).argsort(stable=True)
    return sorted(order[:most].tolist())


def confusion_matrix(counts: Tensor, class_names: Sequence[str], most: int = CELLS) -> bytes:
    """Counts [C, C]: rows are true classes, shaded by their share of the row.

    Of more than `most` classes, those with the most errors are shown; the others are one class.
    """
    names = list(class_names)
    if len(names) > most:
        chosen = confused_classes(counts, most - 1)
        counts, names = _merged(counts, chosen), [names[c] for c in chosen]
        names.append(f"{len(class_names) - len(chosen)} others")
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    names = [shorten(name, NAME_WIDTH) for name in names]
    side = max(4.0, 0.55 * len(names))
    figure = Figure(figsize=(side + 3, side + 1.6), layout="constrained")
    axes = figure.subplots()
    texts = [[f"{int(count)}" if count else "" for count in row] for row in counts.tolist()]
    _cells(axes, shares, texts)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class")
    return png(figure)


def confused_classes(counts: Tensor, most: int) -> list[int]:
    """The `most` classes that have most to do with errors, by confusion counts [C, C]."""
    errors = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    return telling_classes(-errors, most)


def _merged(counts: Tensor, chosen: Sequence[int]) -> Tensor:
    """Counts of the chosen classes [k + 1, k + 1]; the last row and column hold all others."""
    place = torch.full((len(counts),), len(chosen))
    place[list(chosen)] = torch.arange(len(chosen))
    size = len(chosen) + 1
    merged = counts.new_zeros(size, len(counts)).index_add_(0, place, counts)
    return counts.new_zeros(size, size).index_add_(1, place, merged)


def class_mix(
    counts: Tensor, class_names: Sequence[str], pool: Tensor | None = None, most: int = CELLS
) -> bytes:
    """Queried images of each class: counts [rounds, C], shaded by their share of the round.

    `pool` [C] is the number of images in the whole pool, shown in a column of its own. Of more than
    `most` classes, the most queried are shown; the others are one class. Many rounds share columns.
    """
    names = list(class_names)
    counts, ticks = _merged_rounds(counts)
    table = counts if pool is None else torch.cat([counts, pool.unsqueeze(0)])
    if len(names) > most:
        chosen = telling_classes(-counts.sum(0), most - 1)
        rest = table.sum(1, keepdim=True) - table[:, chosen].sum(1, keepdim=True)
        table = torch.cat([table[:, chosen], rest], dim=1)
        names = [*(names[c] for c in chosen), f"{len(names) - len(chosen)} others"]
    names = [shorten(name, NAME_WIDTH) for name in names]
    rounds = len(counts)
    shares = table.double() / table.sum(1, keepdim=True).clamp(min=1)
    texts = [[f"{int(count)}" for count in row] for row in table[:rounds].T.tolist()]
    if pool is not None:
        ticks.append("whole\npool")
        for row, share in zip(texts, shares[-1].tolist(), strict=True):
            row.append(f"{share:.0%}")
    width = min(14.0, 3.2 + 0.62 * (rounds + 1))
    figure = Figure(figsize=(max(5.0, width), 1.2 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    _cells(axes, shares.T, texts)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_yticks(range(len(names)), names)
    if pool is not None:
        axes.axvline(rounds - 0.5, color="black", linewidth=2)
    axes.set(xlabel="round")
    return png(figure)


def _merged_rounds(counts: Tensor) -> tuple[Tensor, list[str]]:
    """Counts [rounds, C] in at most `COLUMNS` rows, and which rounds each of them holds."""
    size = -(-len(counts) // COLUMNS)
    parts = counts.split(size)
    firsts = range(0, len(counts), size)
    names = [
        str(first) if len(part) == 1 else f"{first}-{first + len(part) - 1}"
        for first, part in zip(firsts, parts, strict=True)
    ]
    return torch.stack([part.sum(0) for part in parts]), names


def class_curves(
    rows: Sequence[Mapping[str, float]], class_names: Sequence[str], most: int = PANELS
) -> bytes:
    """Precision and recall of each class on the validation split against all labels spent.

    `rows` are rows of metrics.csv; a class's own number of labels is in its title. Of more than
    `most` classes, those with the lowest recall in the last round are shown.
    """
    recalls = [rows[-1].get(f"val_recall_{name}", float("nan")) for name in class_names]
    shown = telling_classes(torch.tensor(recalls), most)
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(9, 0.8 + 1.75 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, c in zip(grid, shown, strict=False):
        name = class_names[c]
        for measure, colour, style, marker in (
            ("precision", BLUE, "-", "o"),
            ("recall", ORANGE, "--", "s"),
        ):
            points = [
                (row["labeled_samples"], row[f"val_{measure}_{name}"])
                for row in rows
                if f"val_{measure}_{name}" in row
            ]
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(x, y, style, color=colour, marker=marker, markersize=4, label=measure)
        spent = sum(int(row.get(f"queried_{name}", 0)) for row in rows)
        axes.set_title(f"{shorten(name, NAME_WIDTH)} ({spent} labels)", fontsize=9)
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
    for axes in grid[len(shown) :]:
        axes.axis("off")
    figure.supxlabel("labelled images, of all classes", fontsize=10)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return png(figure)


def _cells(axes: Axes, shares: Tensor, texts: Sequence[Sequence[str]]) -> None:
    """A table of cells shaded by `shares`, from 0 to the largest."""
    top = max(float(shares.max()), 1e-9)
    axes.imshow(shares.numpy() / top, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            dark = float(shares[row, column]) / top > DARK
            axes.text(
                column, row, text, ha="center", va="center", fontsize=8,
                color="white" if dark else "black",
            )  # fmt: skip


def reliability(before: Tensor, after: Tensor, labels: Tensor) -> bytes:
    """Accuracy against confidence, with the number of images in each bin below.

    `before` and `after` are [N, C] probabilities without and with temperature scaling.
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, height_ratios=[3, 1])
    edges = np.arange(ECE_BINS) / ECE_BINS
    for column, (title, probabilities) in enumerate(
        (("before temperature scaling", before), ("after temperature scaling", after))
    ):
        confidence, predicted = probabilities.max(1)
        bins = confidence_bins(confidence)
        images = torch.bincount(bins, minlength=ECE_BINS)
        right = torch.bincount(bins[predicted == labels], minlength=ECE_BINS)
        upper, lower = grid[0][column], grid[1][column]
        shown = (images > 0).numpy()
        accuracy = (right / images.clamp(min=1)).numpy()
        upper.bar(
            edges[shown], accuracy[shown], 1 / ECE_BINS, align="edge",
            color=BLUE, edgecolor="white", label="accuracy of the bin",
        )  # fmt: skip
        upper.plot([0, 1], [0, 1], "--", color=ORANGE, label="calibrated: confidence = accuracy")
        upper.set(title=title, xlim=(0, 1), ylim=(0, 1.02))
        lower.bar(edges, images.numpy(), 1 / ECE_BINS, align="edge", color=GREY, edgecolor="white")
        lower.set(xlabel="confidence: probability of the predicted class")
    grid[0][0].set_ylabel("accuracy")
    grid[1][0].set_ylabel("images")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return png(figure)


def roc_curves(
    probabilities: Tensor,
    labels: Tensor,
    areas: Sequence[Estimate],
    class_names: Sequence[str],
    most: int = CURVES,
) -> bytes:
    """One-against-rest ROC curves of all classes that have one; `areas` are for the legend.

    Of more than `most` classes, those with the smallest areas are shown.
    """
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    for c in telling_classes(torch.tensor([area.value for area in areas]), most):
        if np.isnan(areas[c].value):
            continue
        false_rate, true_rate, _ = roc_curve((labels == c).numpy(), probabilities[:, c].numpy())
        axes.plot(
            # Some eyes take some of the colours for each other: neighbours differ in their dashes.
            false_rate, true_rate, LINES[c % len(LINES)],
            color=COLOURS[c % len(COLOURS)], linewidth=1.6,
            # The number keeps a name that begins with "_" in the legend.
            label=f"{c}  {shorten(class_names[c], NAME_WIDTH)}: {value_text(areas[c])}",
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="chance: 0.5")
    axes.set(
        xlabel="false positive rate", ylabel="true positive rate",
        xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", title="area under the curve", fontsize=8)
    return png(figure)


def precision_and_recall(
    precision: Sequence[Estimate],
    recall: Sequence[Estimate],
    class_names: Sequence[str],
    most: int = BARS,
) -> bytes:
    """Both of each class, with their intervals as bars.

    Of more than `most` classes, those with the lowest recall are shown.
    """
    shown = telling_classes(torch.tensor([one.value for one in recall]), most)
    figure = Figure(figsize=(9, 1.1 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for name, values, colour, marker, shift in (
        ("precision", precision, BLUE, "o", -0.13),
        ("recall", recall, ORANGE, "s", 0.13),
    ):
        places = np.arange(len(shown)) + shift
        points = np.array([(values[c].value, values[c].low, values[c].high) for c in shown]).T
        axes.hlines(places, points[1], points[2], color=colour, linewidth=2)
        axes.plot(points[0], places, marker, color=colour, markersize=6, label=name)
    axes.set_yticks(range(len(shown)), [shorten(class_names[c], NAME_WIDTH) for c in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.01)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=2)
    return png(figure)


def embedding_map(
    points: Tensor,
    status: Tensor,
    predicted: Tensor,
    class_names: Sequence[str],
    most: int = CURVES,
) -> bytes:
    """Two views of the same points [n, 2]: what is labelled, and what is predicted.

    Of more than `most` predicted classes, the most frequent have colours; the others are grey.

    Args:
        status: int64 [n]; 0 unlabelled, 1 labelled earlier, 2 labelled in the last round.
        predicted: int64 [n].
    """
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for value, name, colour, marker, size in (
        (0, "unlabelled", "#999999", ".", 24),
        (1, "labelled in earlier rounds", BLUE, "o", 16),
        (2, "queried in the last round", ORANGE, "^", 26),
    ):
        x, y = points[status == value].T.numpy()
        left.scatter(
            x, y, s=size, c=colour, marker=marker, linewidths=0.3,
            edgecolors="white" if value else "none", label=f"{name} ({len(x)})",
        )  # fmt: skip
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), fontsize=8)
    frequencies = torch.bincount(predicted, minlength=len(class_names))
    shown = [c for c in telling_classes(-frequencies, most) if frequencies[c]]
    others = points[~torch.isin(predicted, torch.tensor(shown))]
    if len(others):
        right.scatter(*others.T.numpy(), s=10, color=GREY, marker=".", label="other classes")
    for c in shown:
        chosen = points[predicted == c]
        x, y = chosen[chosen[:, 0].argsort()].T.numpy()
        repeat, place = divmod(c, len(COLOURS))
        colour, marker = COLOURS[place], MARKERS[repeat % len(MARKERS)]
        label = f"{c}  {shorten(class_names[c], NAME_WIDTH)}"
        right.scatter(x, y, s=10, color=colour, marker=marker, label=label)
        # Colours repeat, and some eyes take some of them for each other; numbers do not.
        for i in {len(x) // 8, len(x) // 2, len(x) - 1 - len(x) // 8}:
            right.text(
                float(x[i]), float(y[i]), str(c), fontsize=8, weight="bold", ha="center",
                va="center", bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": colour},
            )  # fmt: skip
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), fontsize=8, ncols=2)
    left.set_title("what is labelled")
    right.set_title("predicted class")
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
    return png(figure)
