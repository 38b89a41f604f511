"""Measures how many cells `tools.segment` finds, on drawn smears and on real ones.

    python -m benchmarks.segmentation --output segmentation.csv
    python -m benchmarks.segmentation --bccd BCCD --output segmentation.csv

The drawn smears are those of `benchmarks.smears`, from fixed seeds. BCCD is a public data set of
364 smears with boxes around white and red cells (github.com/Shenggan/BCCD_Dataset, MIT licence);
`--bccd` names its folder with Annotations/ and JPEGImages/. The tool estimates the diameter of a
cell from the first 20 images. If no red cell lies alone, the benchmark uses the drawn diameter.

A cell is found if the centre of a region lies in its box; each box and each region counts once.
Recall is the share of cells found, precision the share of regions that are cells. Seconds are CPU
time per image, without the time to read the file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.smears import WHITE_KINDS, DrawnCell, Look, draw_phase, draw_smear
from errors import UserError, exit_status
from reporting.files import csv_text, write_atomically
from segmentation import cells as search
from segmentation.cells import Cell
from segmentation.reading import find_files, read
from segmentation.stain import optical_density

IMAGES = 40  # per kind of drawn smear
ESTIMATED_FROM = 20
COLUMNS = (
    *("images", "seed", "number", "mode", "cells", "found", "regions"),
    *("recall", "precision", "diameter", "seconds"),
)
DRAWN = {
    "plain": Look(uneven_light=0.05),
    "uneven light": Look(uneven_light=0.4),
    "crowded": Look(red=50),
    "at the edge": Look(at_edge=True),
    "touching": Look(touching=True),
    "small cells": Look(diameter=60, white=6, red=180, platelets=20),
    "no white cells": Look(white=0),
}

Example = tuple[NDArray[Any], Sequence[DrawnCell]]


@dataclass(frozen=True)
class Score:
    """Counts over a set of images: true cells, those found, and regions reported."""

    cells: int
    found: int
    regions: int


def matches(regions: Sequence[Cell], truth: Sequence[DrawnCell]) -> int:
    """Number of true boxes that contain the centre of a region; each is used once."""
    unmatched = list(truth)
    count = 0
    for region in regions:
        x, y = region.centre
        for drawn in unmatched:
            if drawn.box[0] <= x < drawn.box[2] and drawn.box[1] <= y < drawn.box[3]:
                unmatched.remove(drawn)
                count += 1
                break
    return count


def score(
    examples: Sequence[Example], find: Callable[[NDArray[Any]], list[Cell]]
) -> tuple[Score, float]:
    """The counts over `examples`, and the median CPU seconds of an image."""
    cells = found = regions = 0
    seconds = []
    for pixels, truth in examples:
        start = time.process_time()
        result = find(pixels)
        seconds.append(time.process_time() - start)
        cells += len(truth)
        found += matches(result, truth)
        regions += len(result)
    return Score(cells, found, regions), statistics.median(seconds)


def drawn_smears(look: Look, seed: int, images: int = IMAGES) -> list[Example]:
    """Smears uint8 [H, W, 3] with their white and red cells."""
    generator = np.random.default_rng(seed)
    return [draw_smear(generator, look) for _ in range(images)]


def drawn_phases(seed: int, images: int = IMAGES) -> list[Example]:
    """Quantitative-phase images float32 [H, W] with their cells."""
    generator = np.random.default_rng(seed)
    return [draw_phase(generator) for _ in range(images)]


def measure(
    name: str, seed: int | str, examples: Sequence[Example], drawn_diameter: float | None = None
) -> list[list[Any]]:
    """A row for white cells and a row for all cells of one set of stained smears."""
    red = [
        diameter
        for pixels, _ in examples[:ESTIMATED_FROM]
        for diameter in search.red_cell_diameters(optical_density(pixels))
    ]
    diameter = _diameter(name, [search.WHITE_TO_RED * diameter for diameter in red], drawn_diameter)
    white = [(p, [c for c in truth if c.kind in WHITE_KINDS]) for p, truth in examples]

    def find_white(pixels: NDArray[Any]) -> list[Cell]:
        return search.find_white_cells(optical_density(pixels), diameter)

    def find_all(pixels: NDArray[Any]) -> list[Cell]:
        return search.find_all_cells(optical_density(pixels), diameter)

    return [
        _row(name, seed, len(examples), "white cells", diameter, *score(white, find_white)),
        _row(name, seed, len(examples), "all cells", diameter, *score(examples, find_all)),
    ]


def measure_phase(seed: int, examples: Sequence[Example]) -> list[Any]:
    """The row of the quantitative-phase images."""
    lone = [
        diameter
        for pixels, _ in examples[:ESTIMATED_FROM]
        for diameter in search.phase_cell_diameters(pixels)
    ]
    diameter = _diameter("phase images", lone)
    result = score(examples, lambda phase: search.find_phase_cells(phase, diameter))
    return _row("phase images", seed, len(examples), "all cells", diameter, *result)


def _diameter(name: str, estimates: Sequence[float], drawn: float | None = None) -> int:
    diameter = search.typical_diameter(estimates) or drawn
    if diameter is None:
        raise UserError(f"{name}: no cell lies alone, so the diameter cannot be estimated")
    return round(diameter)


def _row(
    name: str, seed: int | str, number: int, mode: str, diameter: float, s: Score, seconds: float
) -> list[Any]:
    recall = f"{s.found / s.cells:.3f}" if s.cells else ""
    precision = f"{s.found / s.regions:.3f}" if s.regions else ""
    counts = [s.cells, s.found, s.regions]
    return [name, seed, number, mode, *counts, recall, precision, diameter, f"{seconds:.3f}"]


def bccd(folder: Path) -> list[Example]:
    """The smears of BCCD with their annotated cells."""
    files = find_files([folder / "JPEGImages"])
    return list(_annotated(folder, files))


def _annotated(folder: Path, files: Sequence[Path]) -> Iterator[Example]:
    for smear in read(files):
        path = folder / "Annotations" / f"{smear.name}.xml"
        try:
            objects = ElementTree.parse(path).getroot().findall("object")
        except (OSError, ElementTree.ParseError) as error:
            raise UserError(f"{path}: cannot be read ({error}); give the folder of BCCD") from error
        truth = []
        for item in objects:
            kind = {"WBC": WHITE_KINDS[0], "RBC": "red"}.get(item.findtext("name", ""))
            sides = [
                int(item.findtext(f"bndbox/{side}", "0"))
                for side in ("xmin", "ymin", "xmax", "ymax")
            ]
            if kind:
                truth.append(DrawnCell(kind, (sides[0], sides[1], sides[2], sides[3])))
        yield smear.pixels, truth


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="CSV", help="default: only print the rows")
    parser.add_argument(
        "--bccd", type=Path, metavar="FOLDER", help="also measure the smears of BCCD"
    )
    arguments = parser.parse_args(argv)

    def run() -> None:
        rows: list[list[Any]] = []
        for seed, (name, look) in enumerate(DRAWN.items()):
            rows += measure(name, seed, drawn_smears(look, seed), look.diameter)
        rows.append(measure_phase(len(DRAWN), drawn_phases(len(DRAWN))))
        if arguments.bccd:
            rows += measure("BCCD", "", bccd(arguments.bccd))
        text = csv_text(COLUMNS, rows)
        print(text, end="")
        if arguments.output:
            write_atomically(arguments.output, text)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
