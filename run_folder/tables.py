"""metrics.csv and queries.csv: the run so far, in tables that travel in every checkpoint."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from data_sources.sources import Sources
from reporting.files import csv_text
from run_folder.names import METRICS
from training.pool import ImageState, Pool

QUERY_COLUMNS = (
    "round",
    "index",
    "source",
    "label",
    "class",
    "true_label",
    "uncertainty",
    "annotator",
    "skipped",
)


class MetricsTable:
    """One row of named numbers per round."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    @classmethod
    def read(cls, folder: Path) -> MetricsTable:
        """The table in `folder`'s metrics.csv; empty where there is no such file.

        Raises:
            ValueError, OSError, LookupError, csv.Error: the file is damaged.
        """
        table = cls()
        for row in read_csv(folder / METRICS):
            values = {name: _number(text) for name, text in row.items() if text != ""}
            table.rows[int(row["round"])] = values
        return table

    def add(self, round_: int, values: Mapping[str, float]) -> None:
        """Put `values` into the round's row."""
        self.rows.setdefault(round_, {"round": round_}).update(values)

    def latest(self, name: str) -> float | None:
        """The value of `name` in the last row that has one."""
        for row in reversed(self.rows.values()):
            if name in row:
                return row[name]
        return None

    def to_csv(self) -> str:
        """The text of metrics.csv."""
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        rows = [[row.get(name, "") for name in columns] for row in self.rows.values()]
        return csv_text(columns, rows)


def queries_csv(
    pool: Pool, class_names: Sequence[str], sources: Sources, truth: Tensor | None
) -> str:
    """The text of queries.csv: the images asked for and answered, by round and query order.

    Args:
        sources: where each training image came from.
        truth: true labels, int64 [N], where a simulated oracle knows them.
    """
    rows = []
    for round_ in range(int(pool.round.max()) + 1):
        for index in pool.query_of(round_).tolist():
            state = ImageState(int(pool.state[index]))
            if state is ImageState.ASKED:
                continue
            label = int(pool.labels[index])
            labelled = state is ImageState.LABELLED
            uncertainty = float(pool.uncertainty[index])
            rows.append(
                (
                    round_,
                    index,
                    sources[index],
                    label if labelled else "",
                    class_names[label] if labelled else "",
                    "" if truth is None else int(truth[index]),
                    "" if uncertainty != uncertainty else f"{uncertainty:.6f}",
                    pool.annotators[int(pool.annotator[index])],
                    "" if labelled else state.name.removeprefix("SKIPPED_").lower(),
                )
            )
    return csv_text(QUERY_COLUMNS, rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(text: str) -> Any:
    return int(text) if text.lstrip("-").isdigit() else float(text)
