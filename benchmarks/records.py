"""CSV files of benchmarks that continue where they were stopped: a record for each finished run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reporting.files import csv_text, write_atomically


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records in the CSV file, by column; an empty list if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def write_records(path: Path, columns: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Write these columns of the records to the CSV file."""
    rows = ([record[column] for column in columns] for record in records)
    write_atomically(path, csv_text(columns, rows))
