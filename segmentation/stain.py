"""Separates the stains of a Wright or Giemsa smear: how much nuclear stain is in each pixel.

Light that passes a stain falls off exponentially, so in optical density (the negative logarithm of
the transmitted share) the stains of a pixel add up, and a matrix takes them apart: colour
deconvolution (Ruifrok & Johnston 2001, Analytical and Quantitative Cytology and Histology 23,
291-299).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Optical densities of red, green and blue, of length 1. Thiazine dyes in nuclei absorb red and
# green. Red cells (haemoglobin and eosin) absorb green and blue. Measured as medians over nuclei
# and red cells of the public BCCD smears; nuclei of the BloodMNIST cells, from another laboratory,
# have (0.53, 0.83, 0.20).
NUCLEUS = np.array([0.53, 0.83, 0.17], dtype=np.float32)
RED_CELL = np.array([0.34, 0.66, 0.67], dtype=np.float32)

BLOCKS = 12  # the light is measured in this many blocks per side
BRIGHT = 90  # percentile of a block's pixels that is taken for the background between cells
FIT_ROUNDS = 8
TOLERANCE = 0.03  # share by which a block may be darker than the fit and still count
DARKEST = 1e-3  # transmitted share; keeps the logarithm finite


def optical_density(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density [H, W, 3] of uint8 [H, W, 3], with uneven light and its colour removed.

    The background between the cells has density 0.
    """
    density = np.empty(rgb.shape, dtype=np.float32)
    for channel in range(3):
        intensity: NDArray[np.float32] = rgb[..., channel] / np.float32(255)
        transmitted = intensity / _background(intensity)
        density[..., channel] = -np.log(np.clip(transmitted, DARKEST, 1))
    return density


def nuclear_stain(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """Amount of nuclear stain [H, W] in optical densities [H, W, 3]; about 1 in a nucleus."""
    residual = np.cross(NUCLEUS, RED_CELL)
    unmixing = np.linalg.inv(np.stack([NUCLEUS, RED_CELL, residual]))
    return density @ unmixing[:, 0].astype(np.float32)


def _background(intensity: NDArray[np.float32]) -> NDArray[np.float32]:
    """The light [H, W] of one channel without cells: a surface of second degree.

    Fitted to the brightest pixels of each block. Blocks that cells cover are darker than the
    surface; they are dropped round by round, until those left agree.
    """
    height, width = intensity.shape
    rows = np.array_split(np.arange(height), min(BLOCKS, height))
    columns = np.array_split(np.arange(width), min(BLOCKS, width))
    points = np.array(
        [
            (r.mean() / height, c.mean() / width, np.percentile(block, BRIGHT))
            for r in rows
            for c in columns
            for block in [intensity[r[0] : r[-1] + 1, c[0] : c[-1] + 1]]
        ]
    )
    kept = np.ones(len(points), dtype=bool)
    for _ in range(FIT_ROUNDS):
        terms = _terms(points[kept, 0], points[kept, 1])
        weights = np.linalg.lstsq(terms, points[kept, 2], rcond=None)[0]
        fitted = _terms(points[:, 0], points[:, 1]) @ weights
        still = points[:, 2] >= (1 - TOLERANCE) * fitted
        if still.sum() < 2 * terms.shape[1] or (still == kept).all():
            break
        kept = still
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    surface = (
        weights[0]
        + (weights[1] * y + weights[3] * y**2)[:, None]
        + (weights[2] * x + weights[4] * x**2)[None, :]
        + weights[5] * y[:, None] * x[None, :]
    )
    return np.maximum(surface, DARKEST).astype(np.float32)


def _terms(y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.ones_like(y), y, x, y**2, x**2, x * y], axis=1)
