"""The diagrams of the data exploration, as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from data_sources.sources import Sources
from reporting.figures import BLUE, ORANGE, png
from reporting.names import shorten
from reporting.prediction_figures import BARS, NAME_WIDTH, telling_classes
from reporting.tile_sheet import Tile, pixels, tile_sheet

STYLES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), ("#000000", ":", "^"))  # of the three splits
SOURCE_WIDTH = 36  # columns of a file's name


def class_shares(counts: Tensor, split_names: Sequence[str], class_names: Sequence[str]) -> bytes:
    """The share of each class in each split; `counts` int64 [splits, C].

    Of more than `BARS` classes, those with the fewest training images are shown.
    """
    shown = telling_classes(counts[0], BARS)
    figure = Figure(figsize=(9, 1.1 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    shares = counts[:, shown].double() / counts.sum(1, keepdim=True).clamp(min=1)
    for row, name, (colour, _, marker), shift in zip(
        shares, split_names, STYLES, (-0.2, 0.0, 0.2), strict=True
    ):
        places = np.arange(len(shown)) + shift
        axes.hlines(places, 0, row.numpy(), color=colour, linewidth=2)
        axes.plot(row.numpy(), places, marker, color=colour, markersize=6, label=name)
    axes.set_yticks(range(len(shown)), [shorten(class_names[c], NAME_WIDTH) for c in shown])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("share of the split's images")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=3)
    return png(figure)


def pixel_histograms(
    histograms: Tensor, split_names: Sequence[str], channels: Sequence[str]
) -> bytes:
    """How often each value occurs in each split; `histograms` int64 [splits, channels, 256]."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    grid = figure.subplots(1, len(channels), sharey=True, squeeze=False)[0]
    levels = np.arange(256)
    for channel, (axes, title) in enumerate(zip(grid, channels, strict=True)):
        for split, name, (colour, style, _) in zip(histograms, split_names, STYLES, strict=True):
            share = split[channel] / split[channel].sum()
            axes.plot(levels, share.numpy(), style, color=colour, linewidth=1.4, label=name)
        # A black or white margin has its share in the table; here it would flatten all the rest.
        inside = histograms[:, channel, 1:-1] / histograms[:, channel].sum(1, keepdim=True)
        axes.set_ylim(0, 1.1 * max(float(inside.max()), 1e-9))
        axes.set(title=title, xlabel="value", xlim=(0, 255))
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("share of pixels")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return png(figure)


def sample_sheet(
    images: Tensor,
    labels: Tensor,
    sources: Sources,
    class_names: Sequence[str],
    per_class: int,
    title: str,
    generator: torch.Generator,
) -> bytes:
    """Images drawn at random, a row for each class; images uint8 [N, C, S, S]."""
    tiles: list[Tile | None] = []
    for c, name in enumerate(class_names):
        members = (labels == c).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)[:per_class]
        row: list[Tile] = []
        for index in members[order].tolist():
            source = shorten(sources[index], SOURCE_WIDTH)
            row.append(Tile(pixels(images[index]), source if row else f"{shorten(name)}: {source}"))
        tiles += [*row, *[None] * (per_class - len(row))]
    return tile_sheet(tiles, per_class, title)
