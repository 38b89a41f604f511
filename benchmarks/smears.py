"""Draws blood smears with known cells, for tests, for trying the tools, and for benchmarks.

    python -m benchmarks.smears --output data/smears --images 40 --seed 0

OUTPUT/smear_000.png and the following files look like smears with Wright's stain at a magnification
of 100. They show red cells with pale centres, alone and overlapping; white cells of four classes,
which can lie at the edge or touch; platelets; and uneven light, blur, noise and JPEG artefacts.
OUTPUT/truth.csv has a row for each white and red cell: image, kind, and box in pixels.

The stains have the optical densities measured on the public BCCD smears. Real nuclei have more
texture and real red cells more shapes, so figures on these images are an upper limit.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from errors import exit_status
from reporting.files import csv_text, write_atomically

Plane = NDArray[np.float32]

WHITE_KINDS = ("neutrophil", "lymphocyte", "monocyte", "eosinophil")
COLUMNS = ("image", "kind", "left", "top", "right", "bottom")

# Optical densities of red, green and blue.
NUCLEUS = np.array([0.46, 0.72, 0.06])
RED_CELL = np.array([0.15, 0.30, 0.30])
CYTOPLASM = {
    "neutrophil": np.array([0.10, 0.20, 0.06]),
    "lymphocyte": np.array([0.18, 0.20, 0.04]),
    "monocyte": np.array([0.16, 0.22, 0.08]),
    "eosinophil": np.array([0.12, 0.34, 0.26]),
}
WHITE_POINT = np.array([205.0, 211.0, 207.0])  # colour of the light between the cells
WHITE_TO_RED = 1.9  # diameter of a white cell over that of a red cell


@dataclass(frozen=True)
class DrawnCell:
    """A cell and its box (left, top, right, bottom) in pixels, clipped to the image."""

    kind: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Look:
    """The appearance of a smear. Lengths are in pixels; `diameter` is that of a white cell."""

    height: int = 480
    width: int = 640
    diameter: float = 170.0
    white: int = 2
    red: int = 24
    platelets: int = 4
    uneven_light: float = 0.15  # share of the light that is lost in the darkest corner
    touching: bool = False  # white cells come in pairs that touch
    at_edge: bool = False  # white cells lie on the edge of the image
    noise: float = 2.5  # standard deviation, of 255


class _Canvas:
    """Optical densities [H, W, 3] of the image, and the cells drawn so far."""

    def __init__(self, look: Look, generator: np.random.Generator) -> None:
        self.generator = generator
        self.density = np.zeros((look.height, look.width, 3), dtype=np.float32)
        self.cells: list[DrawnCell] = []

    def patch(self, x: float, y: float, radius: float) -> _Patch:
        """The part of the canvas that a cell of this radius at (x, y) can cover."""
        height, width = self.density.shape[:2]
        reach = 1.5 * radius + 3
        rows = slice(max(int(y - reach), 0), min(int(y + reach) + 1, height))
        columns = slice(max(int(x - reach), 0), min(int(x + reach) + 1, width))
        return _Patch(self, rows, columns)


class _Patch:
    """A window [h, w] of a canvas, so that the cost of drawing depends on the cell's size."""

    def __init__(self, canvas: _Canvas, rows: slice, columns: slice) -> None:
        self.canvas, self.generator = canvas, canvas.generator
        self.rows, self.columns = rows, columns
        self.y, self.x = np.mgrid[rows, columns].astype(np.float32)

    def blob(self, x: float, y: float, radius: float, wobble: float = 0.04) -> Plane:
        """Distance [h, w] to (x, y), divided by that of the blob's outline: 1 on the outline."""
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        angle = np.arctan2(dy, dx)
        outline = np.ones_like(angle)
        for waves in (2, 3, 5):
            phase = np.float32(self.generator.uniform(0, 2 * np.pi))
            height = np.float32(self.generator.normal(0, wobble / waves**0.5))
            outline += height * np.cos(waves * angle + phase)
        return np.hypot(dx, dy) / (np.float32(radius) * outline)

    def texture(self, grain: float) -> Plane:
        """Noise [h, w] of mean 0 and standard deviation 1, with spots of `grain` pixels."""
        noise = self.generator.standard_normal(self.x.shape).astype(np.float32)
        smooth: Plane = ndimage.gaussian_filter(noise, grain)
        return smooth / max(float(smooth.std()), 1e-6)

    def add(self, amount: Plane, stain: NDArray[np.float64]) -> None:
        self.canvas.density[self.rows, self.columns] += amount[..., None] * stain.astype(np.float32)

    def note(self, kind: str, inside: NDArray[np.bool_]) -> None:
        """Record a cell by its mask [h, w], unless it lies outside the image."""
        if inside.any():
            (rows,), (columns,) = np.nonzero(inside.any(1)), np.nonzero(inside.any(0))
            left, right = self.columns.start + columns[[0, -1]]
            top, bottom = self.rows.start + rows[[0, -1]]
            box = (int(left), int(top), int(right) + 1, int(bottom) + 1)
            self.canvas.cells.append(DrawnCell(kind, box))


def draw_smear(
    generator: np.random.Generator, look: Look
) -> tuple[NDArray[np.uint8], list[DrawnCell]]:
    """Draw a smear uint8 [H, W, 3]; returns it and its cells, white cells first, then red cells."""
    canvas = _Canvas(look, generator)
    centres = _white_centres(generator, look)
    for x, y in centres:
        _draw_white(canvas, x, y, look.diameter * generator.uniform(0.8, 1.15))
    red = look.diameter / WHITE_TO_RED
    placed: list[tuple[float, float]] = []
    for _ in range(20 * look.red):
        if len(placed) == look.red:
            break
        x, y = generator.uniform(0, look.width), generator.uniform(0, look.height)
        is_free = all(np.hypot(x - a, y - b) > 0.8 * look.diameter for a, b in centres)
        if is_free and all(np.hypot(x - a, y - b) > 0.55 * red for a, b in placed):
            placed.append((x, y))
            _draw_red(canvas, x, y, red * generator.uniform(0.85, 1.15))
    for _ in range(generator.integers(0, look.platelets + 1)):
        x, y = generator.uniform(0, look.width), generator.uniform(0, look.height)
        radius = look.diameter * generator.uniform(0.05, 0.11)
        patch = canvas.patch(x, y, radius)
        amount = np.float32(generator.uniform(0.4, 0.9))
        patch.add(amount * _soft(patch.blob(x, y, radius, 0.15), 0.3), NUCLEUS)
    return _photograph(canvas, look), canvas.cells


def draw_phase(
    generator: np.random.Generator, cells: int = 8, diameter: float = 60.0
) -> tuple[Plane, list[DrawnCell]]:
    """Draw a phase image float32 [384, 512] in radians; returns it and its separate cells."""
    look = Look(height=384, width=512, diameter=diameter)
    canvas = _Canvas(look, generator)
    whole = canvas.patch(look.width / 2, look.height / 2, look.width)
    tilt = generator.normal(0, 0.1, 2).astype(np.float32)
    phase = tilt[0] * whole.x / look.width + tilt[1] * whole.y / look.height
    placed: list[tuple[float, float]] = []
    for _ in range(20 * cells):
        x, y = generator.uniform(0, look.width), generator.uniform(0, look.height)
        if len(placed) < cells and all(np.hypot(x - a, y - b) > diameter for a, b in placed):
            placed.append((x, y))
            blob = whole.blob(x, y, diameter / 2 * generator.uniform(0.8, 1.15))
            height = np.float32(generator.uniform(1.5, 4.5))
            phase += height * np.sqrt(np.clip(1 - blob**2, 0, 1))
            whole.note("phase", blob < 1)
    return phase + np.float32(0.1) * whole.texture(1.5), canvas.cells


def _white_centres(generator: np.random.Generator, look: Look) -> list[tuple[float, float]]:
    centres: list[tuple[float, float]] = []
    for _ in range(200):
        if len(centres) >= look.white:
            break
        x, y = generator.uniform(0, look.width), generator.uniform(0, look.height)
        if look.at_edge:
            side = generator.integers(4)
            x = (0.1 * look.diameter, x, look.width - 0.1 * look.diameter, x)[side]
            y = (y, 0.1 * look.diameter, y, look.height - 0.1 * look.diameter)[side]
        if any(np.hypot(x - a, y - b) < 1.3 * look.diameter for a, b in centres):
            continue
        centres.append((x, y))
        if look.touching:
            angle, gap = generator.uniform(0, 2 * np.pi), generator.uniform(0.95, 1.05)
            a = x + gap * look.diameter * np.cos(angle)
            b = y + gap * look.diameter * np.sin(angle)
            if 0 <= a < look.width and 0 <= b < look.height:
                centres.append((float(a), float(b)))
    return centres


def _draw_white(canvas: _Canvas, x: float, y: float, diameter: float) -> None:
    generator = canvas.generator
    kind = WHITE_KINDS[generator.integers(len(WHITE_KINDS))]
    radius = diameter / 2 * (0.75 if kind == "lymphocyte" else 1.0)
    patch = canvas.patch(x, y, radius)
    cell = patch.blob(x, y, radius)
    grains = {"eosinophil": 0.35, "neutrophil": 0.15}.get(kind, 0.08)
    texture = 1 + np.float32(grains) * patch.texture(diameter / 60)
    patch.add(_soft(cell, 0.05) * np.clip(texture, 0, 2), CYTOPLASM[kind])
    nucleus = _nucleus(patch, kind, x, y, radius)
    amount = np.float32(generator.uniform(0.75, 1.35))
    chromatin = np.clip(1 + np.float32(0.15) * patch.texture(diameter / 30), 0, 2)
    patch.add(amount * nucleus * chromatin, NUCLEUS)
    patch.note(kind, cell < 1)


def _nucleus(patch: _Patch, kind: str, x: float, y: float, radius: float) -> Plane:
    """Coverage [h, w] by the nucleus: round, kidney-shaped, or two to five lobes on an arc."""
    generator = patch.generator
    turn = generator.uniform(0, 2 * np.pi)
    if kind == "lymphocyte":
        return _soft(patch.blob(x, y, 0.85 * radius), 0.05)
    if kind == "monocyte":
        bean = _soft(patch.blob(x, y, 0.68 * radius, 0.06), 0.05)
        dent_x, dent_y = x + 0.65 * radius * np.cos(turn), y + 0.65 * radius * np.sin(turn)
        return bean * (1 - _soft(patch.blob(dent_x, dent_y, 0.35 * radius), 0.1))
    lobes = 2 if kind == "eosinophil" else int(generator.integers(3, 6))
    size, spread = (0.38, 0.42) if lobes == 2 else (0.31, 0.43)
    covered = np.zeros_like(patch.x)
    for lobe in range(lobes):
        angle = turn + lobe * (2.2 if lobes == 2 else 1.6 * np.pi / lobes)
        lobe_x = x + spread * radius * np.cos(angle)
        lobe_y = y + spread * radius * np.sin(angle)
        blob = patch.blob(lobe_x, lobe_y, size * radius * generator.uniform(0.9, 1.15), 0.08)
        covered = np.maximum(covered, _soft(blob, 0.1))
    return covered


def _draw_red(canvas: _Canvas, x: float, y: float, diameter: float) -> None:
    generator = canvas.generator
    patch = canvas.patch(x, y, diameter / 2)
    cell = patch.blob(x, y, diameter / 2, 0.06)
    pale = np.float32(generator.uniform(0.3, 0.95)) * np.exp(-((cell / 0.5) ** 4))
    amount = np.float32(generator.uniform(0.7, 1.3))
    patch.add(amount * _soft(cell, 0.06) * (1 - pale), RED_CELL)
    patch.note("red", cell < 1)


def _soft(blob: Plane, width: float) -> Plane:
    """1 inside the outline and 0 outside, with a soft edge of `width` radii."""
    return np.clip((1 - blob) / np.float32(width) + np.float32(0.5), 0, 1)


def _photograph(canvas: _Canvas, look: Look) -> NDArray[np.uint8]:
    """Turn the densities into a photograph with uneven light, blur, noise and JPEG."""
    generator = canvas.generator
    brightest = generator.uniform(0.3, 0.7, 2)
    y, x = np.ogrid[: look.height, : look.width]
    away = (x / look.width - brightest[0]) ** 2 + (y / look.height - brightest[1]) ** 2
    light = WHITE_POINT * (1 - look.uneven_light * (away / away.max()))[..., None]
    picture = light * np.exp(-canvas.density)
    blur = look.diameter / 170 * generator.uniform(0.7, 1.6)
    picture = ndimage.gaussian_filter(picture, (blur, blur, 0))
    picture += generator.normal(0, look.noise, picture.shape)
    jpeg = io.BytesIO()
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=88)
    return np.asarray(Image.open(jpeg).convert("RGB"), dtype=np.uint8)


def write_smears(folder: Path, images: int, seed: int, look: Look) -> None:
    """Write `images` smears and their truth.csv into `folder`, which is created if needed."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(images):
        pixels, cells = draw_smear(generator, look)
        name = f"smear_{number:03d}"
        Image.fromarray(pixels).save(folder / f"{name}.png")
        rows += [[name, cell.kind, *cell.box] for cell in cells]
    write_atomically(folder / "truth.csv", csv_text(COLUMNS, rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    return exit_status(
        lambda: write_smears(arguments.output, arguments.images, arguments.seed, Look())
    )


if __name__ == "__main__":
    sys.exit(main())
