"""Finds cells: white cells by their nuclear stain, all cells by their density, cells by phase.

All lengths are shares of the diameter of a cell, so that one setting fits every magnification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import isotropic_closing, isotropic_dilation
from skimage.segmentation import watershed

from segmentation.stain import nuclear_stain

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]

WHITE_TO_RED = 1.9  # diameter of a white cell, as in BCCD's boxes, over that of a lone red cell

# Floors of the thresholds, which otherwise split the noise of an image without cells.
NUCLEUS_FLOOR = 0.2  # amount of nuclear stain
DENSITY_FLOOR = 0.06  # mean optical density
PHASE_FLOOR = 0.3  # radians

SMOOTHING = 0.03  # sigma, in diameters
CLOSING = 0.12  # joins the lobes of a nucleus across gaps of up to twice this, in diameters
SMALLEST_NUCLEUS = 0.1  # area, in squared diameters; platelets and specks are smaller
CYTOPLASM = 0.2  # its width around a nucleus, in diameters
EDGE_SHARE = 0.5  # of that area suffices at the edge of the image, which cuts cells
LONGEST_NUCLEUS = 1.25  # side of the box, in diameters; longer ones are several cells that touch
SMALLEST_CELL = 0.25  # area, in squared diameters; a disc has 0.79
LONE_CELL_PIXELS = 50  # smaller regions are noise
LONE_CELL_SOLIDITY = 0.93  # area over that of the convex hull; cells that touch have less
LONE_CELL_ECCENTRICITY = 0.65  # 0 for a circle; two cells that overlap have 0.75 and more
LONE_CELL_EXCLUDED = 0.05  # share of a red cell's area that may have nuclear stain
PEAK_DISTANCE = 0.3  # between the centres of two cells, in diameters


@dataclass(frozen=True)
class Cell:
    """One cell: its kind (white, other or phase) and where it lies.

    `box` is (left, top, right, bottom) in pixels, the last two exclusive, around the stained
    nucleus of a white cell and around the whole of another cell. `area` is in pixels, `centre`
    (x, y) the region's centre of mass.
    """

    kind: str
    box: tuple[int, int, int, int]
    area: int
    centre: tuple[float, float]


def find_white_cells(density: NDArray[np.float32], diameter: float) -> list[Cell]:
    """White cells in optical densities [H, W, 3], by Otsu's threshold on the nuclear stain.

    Args:
        diameter: of a white cell, in pixels.
    """
    return _cells(_nuclei(density, diameter), "white", SMALLEST_NUCLEUS * diameter**2)


def find_all_cells(density: NDArray[np.float32], diameter: float) -> list[Cell]:
    """White cells and, approximately, all others: those that overlap are split by a watershed.

    Args:
        diameter: of a white cell, in pixels.
    """
    nuclei = _nuclei(density, diameter)
    white = _cells(nuclei, "white", SMALLEST_NUCLEUS * diameter**2)
    red = diameter / WHITE_TO_RED
    values = density.mean(axis=2)
    # The cytoplasm around a nucleus belongs to the white cell, and the nucleus itself is so dense
    # that Otsu's threshold would miss pale red cells.
    values[isotropic_dilation(nuclei > 0, CYTOPLASM * diameter)] = 0
    mask = _foreground(values, DENSITY_FLOOR, red)
    return white + _cells(_split(mask, red), "other", SMALLEST_CELL * red**2)


def find_phase_cells(phase: NDArray[np.float32], diameter: float) -> list[Cell]:
    """Cells in a quantitative-phase image [H, W], radians, by a threshold on the phase.

    Args:
        diameter: of a cell, in pixels.
    """
    mask = _foreground(phase - np.median(phase), PHASE_FLOOR, diameter)
    return _cells(_split(mask, diameter), "phase", SMALLEST_CELL * diameter**2)


def red_cell_diameters(density: NDArray[np.float32]) -> list[float]:
    """Diameters in pixels of the red cells that lie alone in optical densities [H, W, 3]."""
    nuclear = nuclear_stain(density) > NUCLEUS_FLOOR  # of white cells and of platelets
    return _diameters_of_lone_cells(density.mean(axis=2), DENSITY_FLOOR, nuclear)


def phase_cell_diameters(phase: NDArray[np.float32]) -> list[float]:
    """Diameters in pixels of the cells that lie alone in a quantitative-phase image [H, W]."""
    values = phase - np.median(phase)
    return _diameters_of_lone_cells(values, PHASE_FLOOR, np.zeros(values.shape, dtype=bool))


def typical_diameter(diameters: Sequence[float]) -> float | None:
    """The diameter above which cells make up half of the area; None without cells.

    By area, because specks and platelets may be many but are small.
    """
    if not diameters:
        return None
    ordered = np.sort(np.asarray(diameters))
    area = np.cumsum(ordered**2)
    return float(ordered[np.searchsorted(area, area[-1] / 2)])


def _diameters_of_lone_cells(
    values: NDArray[np.float32], floor: float, excluded: Mask
) -> list[float]:
    mask = ndimage.binary_fill_holes(_above(gaussian(values, 1), floor))
    height, width = mask.shape
    diameters = []
    for region in regionprops(label(mask)):
        top, left, bottom, right = region.bbox
        is_inside = top > 0 and left > 0 and bottom < height and right < width
        if (
            is_inside
            and region.area >= LONE_CELL_PIXELS
            and region.solidity > LONE_CELL_SOLIDITY
            and region.eccentricity < LONE_CELL_ECCENTRICITY
            and excluded[top:bottom, left:right][region.image].mean() < LONE_CELL_EXCLUDED
        ):
            diameters.append(float(region.equivalent_diameter_area))
    return diameters


def _nuclei(density: NDArray[np.float32], diameter: float) -> Labels:
    """The nuclei, numbered; a nucleus of several lobes has one number."""
    stain = gaussian(nuclear_stain(density), SMOOTHING * diameter)
    mask = stain > max(threshold_otsu(stain), NUCLEUS_FLOOR)
    margin = int(diameter)  # else the closing draws masks away from the edge of the image
    mask = isotropic_closing(np.pad(mask, margin), CLOSING * diameter)
    regions: Labels = label(mask[margin:-margin, margin:-margin])
    for region in regionprops(regions):
        top, left, bottom, right = region.bbox
        if max(bottom - top, right - left) > LONGEST_NUCLEUS * diameter:
            parts = _split(region.image, diameter)
            window = regions[top:bottom, left:right]
            window[parts > 0] = parts[parts > 0] + regions.max()
    return regions


def _foreground(values: NDArray[np.float32], floor: float, diameter: float) -> Mask:
    """Where there are cells, with their pale centres filled."""
    mask = _above(gaussian(values, SMOOTHING * diameter), floor)
    holes, count = ndimage.label(~mask)
    areas = np.bincount(holes.ravel(), minlength=count + 1)
    small = areas < SMALLEST_CELL * diameter**2
    small[0] = False  # label 0 is the mask itself
    return np.asarray(mask | small[holes])


def _above(values: NDArray[np.float32], floor: float) -> Mask:
    """Where `values` are above half of what is usual in a cell, and above `floor`.

    Otsu's threshold would separate two cells that overlap from one cell, in a crowded smear.
    """
    cells = values[values > floor]
    return values > max(floor, 0.5 * float(np.median(cells)) if cells.size else floor)


def _split(mask: Mask, diameter: float) -> Labels:
    """Cells that touch or overlap, numbered: a watershed from the points deepest inside."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    smooth = gaussian(distance, SMOOTHING * diameter)
    peaks = peak_local_max(
        smooth,
        min_distance=max(1, round(PEAK_DISTANCE * diameter)),
        labels=label(mask),
        exclude_border=False,
    )
    markers = np.zeros(mask.shape, dtype=np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(watershed(-smooth, markers, mask=mask), dtype=np.int32)


def _cells(regions: Labels, kind: str, smallest: float) -> list[Cell]:
    """A cell for each region of at least `smallest` pixels, from top to bottom.

    Half of that suffices at the edge of the image.
    """
    height, width = regions.shape
    cells = []
    for region in regionprops(regions):
        top, left, bottom, right = region.bbox
        is_cut = top == 0 or left == 0 or bottom == height or right == width
        if region.area >= smallest * (EDGE_SHARE if is_cut else 1):
            y, x = region.centroid
            cells.append(Cell(kind, (left, top, right, bottom), int(region.area), (x, y)))
    return sorted(cells, key=lambda cell: (cell.box[1], cell.box[0]))
