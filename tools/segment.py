"""Finds the cells in whole blood smears and cuts out one small picture per cell.

    python -m tools.segment smears/ --output data/cells
    python -m tools.segment smears/ --output data/cells --cell-diameter 180 --size 64
    python -m tools.segment smears/ --output data/cells --all-cells
    python -m tools.segment holograms.h5 --output data/cells

Image files are smears with Wright's or Giemsa's stain; the tool finds their white cells by the
stain of the nuclei. `--all-cells` adds red cells and whatever else is there; it is approximate,
because cells in a smear overlap. NPY files [H, W] or [N, H, W] and HDF5 files with phase/images
[N, H, W] are quantitative-phase images, in radians; the tool finds all their cells.

OUTPUT/crops/SMEAR_0000.png      one picture per cell, all at the same magnification
OUTPUT/overlays/SMEAR.png        the smear with the cells that were found, to look at
OUTPUT/cells.csv                 image, kind, box, area, centre, whether the cell touches the edge,
                                 side of the crop in pixels of the smear, and file of the crop

The crops are a data set: `dataset: folder:crops` with `data_dir: OUTPUT`.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import UserError, exit_status
from segmentation.reading import MAX_PIXELS, Smear, find_files, read

if TYPE_CHECKING:
    from segmentation.cells import Cell

COLUMNS = (
    *("image", "cell", "kind", "left", "top", "right", "bottom", "area"),
    *("centre_x", "centre_y", "at_edge", "crop_side", "file"),
)
SIZES = range(8, 1025)  # pixels of a crop's side
DIAMETERS = (4.0, 4000.0)  # pixels
SCALES = (0.5, 10.0)  # crop side over cell diameter
IMAGES_MEASURED = 20  # from which the diameter is estimated


def segment(arguments: argparse.Namespace) -> None:
    """Write the output folder, which appears when it is complete."""
    _check(arguments)
    files = find_files(arguments.images)
    output: Path = arguments.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: exists and is not an empty folder; name a new one")
    partial = output.with_name(f".{output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for part in ("crops", "overlays"):
            (partial / part).mkdir(parents=True)
        diameter = arguments.cell_diameter or _estimate(files, arguments.max_pixels)
        count = _write(files, diameter, arguments, partial)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        raise UserError(
            f"--output {output}: cannot be written ({error.strerror}); name another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{count} cells from {len(files)} files; look at {output / 'overlays'}")


def _check(arguments: argparse.Namespace) -> None:
    if arguments.size not in SIZES:
        raise UserError(
            f"--size {arguments.size}: not a side in pixels; give {SIZES[0]} to {SIZES[-1]}"
        )
    diameter = arguments.cell_diameter
    if diameter is not None and not DIAMETERS[0] <= diameter <= DIAMETERS[1]:
        raise UserError(
            f"--cell-diameter {diameter:g}: not a cell's diameter in pixels; "
            f"give {DIAMETERS[0]:g} to {DIAMETERS[1]:g}"
        )
    if not SCALES[0] <= arguments.scale <= SCALES[1]:
        raise UserError(
            f"--scale {arguments.scale:g}: not a side of a crop in cell diameters; "
            f"give {SCALES[0]:g} to {SCALES[1]:g}"
        )
    if arguments.max_pixels < 1:
        raise UserError(
            f"--max-pixels {arguments.max_pixels}: no image is so small; give 1 or more"
        )


def _estimate(files: Sequence[Path], max_pixels: int) -> float:
    """The diameter in pixels of a white cell, or of any cell in phase images.

    It is estimated from the cells that lie alone in the first images.
    """
    from segmentation.cells import (
        WHITE_TO_RED,
        phase_cell_diameters,
        red_cell_diameters,
        typical_diameter,
    )
    from segmentation.stain import optical_density

    diameters: list[float] = []
    for smear in itertools.islice(read(files, max_pixels), IMAGES_MEASURED):
        if smear.is_phase:
            diameters += phase_cell_diameters(smear.pixels)
        else:
            red = red_cell_diameters(optical_density(smear.pixels))
            diameters += [WHITE_TO_RED * diameter for diameter in red]
    typical = typical_diameter(diameters)
    if typical is None or not DIAMETERS[0] <= typical <= DIAMETERS[1]:
        raise UserError(
            f"{files[0]}: no cell that lies alone, to estimate --cell-diameter from; "
            "give the diameter in pixels"
        )
    print(
        f"--cell-diameter {typical:.0f} is an estimate from {len(diameters)} cells; "
        "give the same value for every smear of one microscope",
        file=sys.stderr,
    )
    return round(typical)


def _write(
    files: Sequence[Path], diameter: float, arguments: argparse.Namespace, folder: Path
) -> int:
    """Write crops, overlays and cells.csv into `folder`; the number of cells."""
    from tqdm import tqdm

    from reporting.files import csv_text, write_atomically
    from segmentation.crops import cut, display
    from segmentation.overlay import draw

    side = max(1, round(arguments.scale * diameter))
    rows: list[list[Any]] = []
    for smear in tqdm(read(files, arguments.max_pixels), unit=" images", disable=None):
        cells = _find(smear, diameter, arguments.all_cells)
        shown = display(smear.pixels)
        height, width = shown.shape[:2]
        for number, cell in enumerate(cells):
            file = f"crops/{smear.name}_{number:04d}.png"
            cut(shown, cell, side, arguments.size).save(folder / file)
            left, top, right, bottom = cell.box
            at_edge = left == 0 or top == 0 or right == width or bottom == height
            centre = [f"{middle:.1f}" for middle in cell.centre]
            row = [smear.name, number, cell.kind, *cell.box, cell.area]
            rows.append([*row, *centre, int(at_edge), side, file])
        draw(shown, cells, side).save(folder / "overlays" / f"{smear.name}.png")
    if not rows:
        raise UserError(
            f"no cells in {len(files)} files at --cell-diameter {diameter:g}; "
            "give a cell's diameter in pixels, or smears with Wright's or Giemsa's stain"
        )
    write_atomically(folder / "cells.csv", csv_text(COLUMNS, rows))
    return len(rows)


def _find(smear: Smear, diameter: float, all_cells: bool) -> list[Cell]:
    # Imported here, because scikit-image takes a second to load and --help needs none of it.
    from segmentation.cells import find_all_cells, find_phase_cells, find_white_cells
    from segmentation.stain import optical_density

    if smear.is_phase:
        return find_phase_cells(smear.pixels, diameter)
    find = find_all_cells if all_cells else find_white_cells
    return find(optical_density(smear.pixels), diameter)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="files or folders")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--cell-diameter",
        type=float,
        metavar="PIXELS",
        help="diameter of a white cell, in phase images of any cell; default: an estimate",
    )
    parser.add_argument(
        "--size", type=int, default=64, help="side of a crop as it is written, in pixels (64)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.4, help="side of a crop in the smear, in diameters (1.4)"
    )
    parser.add_argument(
        "--all-cells", action="store_true", help="red cells too; approximate: cells overlap"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        help=f"refuse larger images before they are decoded ({MAX_PIXELS:,})",
    )
    arguments = parser.parse_args(argv)
    return exit_status(lambda: segment(arguments))


if __name__ == "__main__":
    sys.exit(main())
