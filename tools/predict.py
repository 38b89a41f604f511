"""Classifies images with the network of a finished run: class, probability and uncertainty.

    python -m tools.predict RUN image.png folder/ file.npz file.h5 [--output predictions.csv]

PNG, JPEG, TIFF and BMP files, folders of them, and arrays of images in NPZ or HDF5, of any size:
they are resized to the network's. The table on the terminal, or the CSV file, has one row per
image: its name; the class; that class's probability (softmax, dropout off, as in evaluation); the
uncertainty, predictive entropy in nats by the run's choice of MC dropout, test-time augmentation or
softmax, as in its queries; and the size that the image had. The run's data set is not needed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from errors import UserError, exit_status
from reporting.files import csv_text, write_atomically
from run_folder.reader import Model, add_run_arguments, open_model
from tools.image_inputs import ImageBatch, find_inputs, read_batches
from training.inference import Passes, query_passes

COLUMNS = ("image", "class", "probability", "uncertainty", "size")
SIZES_SHOWN = 5


def predict(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    files = find_inputs(arguments.inputs)
    run = open_model(arguments.run, arguments.checkpoint, arguments.data_dir)
    rows, sizes = _rows(run, files)
    if arguments.output is None:
        print(text_table(rows))
    else:
        try:
            write_atomically(arguments.output, csv_text(COLUMNS, rows))
        except OSError as error:
            raise UserError(
                f"--output {arguments.output}: cannot be written ({error.strerror}); "
                "name a file in an existing folder"
            ) from error
    print(_resize_note(sizes, run.hp.image_size), file=sys.stderr)


def _rows(run: Model, files: Sequence[Path]) -> tuple[list[list[str]], Counter[str]]:
    """The CSV's rows, and how many images there were of each size."""
    passes = query_passes(run.hp, run.inference.network, run.seed, run.round + 1)
    channels, batch_size = run.channels, run.hp.scoring_batch_size
    rows: list[list[str]] = []
    sizes: Counter[str] = Counter()
    with tqdm(desc="predicting", unit=" images", leave=False, disable=None) as bar:
        for batch in read_batches(files, run.hp.image_size, channels, batch_size):
            rows += _classify(run, batch, passes)
            sizes.update(batch.sizes)
            bar.update(len(batch.names))
    return rows, sizes


def _classify(run: Model, batch: ImageBatch, passes: Passes) -> list[list[str]]:
    embeddings = run.inference.embed_batch(batch.images)
    probability, predicted = run.inference.logits(embeddings).softmax(1).max(1)
    uncertainty = run.inference.uncertainty(batch.images, embeddings, passes)
    names = run.class_names
    return [
        [name, names[c], f"{p:.6f}", f"{u:.6f}", size]
        for name, c, p, u, size in zip(
            batch.names,
            predicted.tolist(),
            probability.tolist(),
            uncertainty.tolist(),
            batch.sizes,
            strict=True,
        )
    ]


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows under `COLUMNS`, aligned for a terminal: names to the left, numbers to the right."""
    lines = [COLUMNS, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{'<' if name in ('image', 'class') else '>'}{width}}"
            for name, cell, width in zip(COLUMNS, line, widths, strict=True)
        )
        for line in lines
    )


def _resize_note(sizes: Counter[str], size: int) -> str:
    """What was resized, in one line."""
    total = sizes.total()
    others = {one: count for one, count in sizes.most_common() if one != f"{size}x{size}"}
    if not others:
        return f"{total} images of {size}x{size} pixels, none resized"
    shown = [f"{one} ({count})" for one, count in list(others.items())[:SIZES_SHOWN]]
    more = f" and {len(others) - SIZES_SHOWN} other sizes" if len(others) > SIZES_SHOWN else ""
    return (
        f"{sum(others.values())} of {total} images resized to {size}x{size} pixels: "
        f"{', '.join(shown)}{more}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_arguments(parser)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGES")
    parser.add_argument(
        "--output", type=Path, metavar="CSV", help="default: a table on the terminal"
    )
    arguments = parser.parse_args(argv)
    return exit_status(lambda: predict(arguments))


if __name__ == "__main__":
    sys.exit(main())
