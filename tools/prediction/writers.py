"""Where predictions go: a table on the terminal, a CSV file, or a file of JSON lines."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from data_sources.names import printable
from errors import UserError
from reporting.files import open_atomically
from reporting.names import columns, padded
from tools.prediction.predictor import Prediction

COLUMNS = (
    "image", "class", "probability", "uncertainty", "outlier", "outlier_distance", "size",
)  # fmt: skip
TEXT_COLUMNS = ("image", "class")  # to the left in a table; numbers stand to the right
JSON_SUFFIXES = {".jsonl", ".ndjson"}
DECIMALS = 6
DISTANCE_DECIMALS = 4  # more would depend on how many images are in a batch


class Writer(Protocol):
    """Takes predictions as they come."""

    def write(self, predictions: Iterable[Prediction]) -> None:
        """Write some more predictions."""


@contextmanager
def open_writer(path: Path | None, class_names: Sequence[str]) -> Iterator[Writer]:
    """The writer for `path`, by its ending; the terminal for None.

    The file appears, whole, when the block ends without an error.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        yield TableWriter(sys.stdout)
        return
    try:
        with open_atomically(path) as file:
            if path.suffix.lower() in JSON_SUFFIXES:
                yield JsonWriter(file, class_names)
            else:
                yield CsvWriter(file, class_names)
    except OSError as error:
        raise UserError(
            f"--output {path}: cannot be written ({error.strerror}); name a file in an existing "
            "folder with free space"
        ) from error


class CsvWriter:
    """`COLUMNS`, then a column for the probability of each class."""

    def __init__(self, file: TextIO, class_names: Sequence[str]) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        names = (f"probability_{printable(name)}" for name in class_names)
        self._writer.writerow([*COLUMNS, *names])

    def write(self, predictions: Iterable[Prediction]) -> None:
        """See `Writer`."""
        for one in predictions:
            probabilities = (f"{value:.{DECIMALS}f}" for value in one.probabilities)
            self._writer.writerow([*_cells(one), *probabilities])


class JsonWriter:
    """One JSON object per line; `probabilities` maps class names to numbers."""

    def __init__(self, file: TextIO, class_names: Sequence[str]) -> None:
        self._file = file
        self._names = [printable(name) for name in class_names]

    def write(self, predictions: Iterable[Prediction]) -> None:
        """See `Writer`."""
        for one in predictions:
            values = {
                "image": printable(one.image),
                "class": printable(one.class_name),
                "probability": round(one.probability, DECIMALS),
                "uncertainty": round(one.uncertainty, DECIMALS),
                "outlier": one.outlier,
                "outlier_distance": one.distance and round(one.distance, DISTANCE_DECIMALS),
                "size": one.size,
                "probabilities": {
                    name: round(value, DECIMALS)
                    for name, value in zip(self._names, one.probabilities, strict=True)
                },
            }
            self._file.write(json.dumps(values, ensure_ascii=False) + "\n")


class TableWriter:
    """Aligned columns; widths come from the first predictions and grow where they must."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._widths: list[int] = []

    def write(self, predictions: Iterable[Prediction]) -> None:
        """See `Writer`."""
        rows = [_cells(one) for one in predictions]
        lines = rows if self._widths else [list(COLUMNS), *rows]
        widths = [max(map(columns, column)) for column in zip(*lines, strict=True)]
        self._widths = [max(pair) for pair in zip(widths, self._widths or widths, strict=True)]
        for line in lines:
            cells = (
                padded(cell, width, right=title not in TEXT_COLUMNS)
                for title, cell, width in zip(COLUMNS, line, self._widths, strict=True)
            )
            print("  ".join(cells).rstrip(), file=self._file)


def _cells(one: Prediction) -> list[str]:
    """The values of `COLUMNS` as text; empty where they are not known."""
    return [
        printable(one.image),
        printable(one.class_name),
        f"{one.probability:.{DECIMALS}f}",
        f"{one.uncertainty:.{DECIMALS}f}",
        "" if one.outlier is None else str(one.outlier).lower(),
        "" if one.distance is None else f"{one.distance:.{DISTANCE_DECIMALS}f}",
        one.size,
    ]
