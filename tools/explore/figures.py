"""The data exploration's diagrams, as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from reporting.figures import BLUE, ORANGE, Tile, pixels, png, shorten, tile_sheet
from reporting.prediction_figures import NAME_WIDTH

STYLES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), ("#000000", ":", "^"))  # of the three splits


def class_shares(counts: Tensor, split_names: Sequence[str], class_names: Sequence[str]) -> bytes:
    """The share of each class in each split; `counts` int64 [splits, C]."""
    figure = Figure(figsize=(9, 1.1 + 0.42 * len(class_names)), layout="constrained")
    axes = figure.subplots()
    shares = counts.double() / counts.sum(1, keepdim=True)
    for row, name, (colour, _, marker), shift in zip(
        shares, split_names, STYLES, (-0.2, 0.0, 0.2), strict=True
    ):
        places = np.arange(len(class_names)) + shift
        axes.hlines(places, 0, row.numpy(), color=colour, linewidth=2)
        axes.plot(row.numpy(), places, marker, color=colour, markersize=6, label=name)
    axes.set_yticks(range(len(class_names)), [shorten(name, NAME_WIDTH) for name in class_names])
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
        # A margin of black or white is told in the table; here it would flatten all the rest.
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
        chosen = members[order].tolist()
        row = [
            Tile(pixels(images[index]), f"#{index}" if place else f"{shorten(name)} #{index}")
            for place, index in enumerate(chosen)
        ]
        tiles += [*row, *[None] * (per_class - len(row))]
    return tile_sheet(tiles, per_class, title)
