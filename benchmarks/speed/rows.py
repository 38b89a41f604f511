"""The rows of the speed table: stores them as CSV, and shows them as Markdown and as a plot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.records import read_records, write_records
from benchmarks.speed.timing import Spread
from reporting.figures import BLUE, ORANGE, png

COLUMNS = (
    *("machine", "section", "item", "unit", "median", "low", "high", "runs"),
    *("baseline_median", "baseline_low", "baseline_high", "baseline_runs"),
    *("ratio", "share_of_limit", "note", "versions"),
)
# Units for which a larger value is better.
RATES = ("images/s", "candidates/s", "TFLOP/s")
MARKS = "os^Dvx"


@dataclass(frozen=True)
class Row:
    """One measurement: the package's figure and, if there is one, the baseline's in the same unit.

    share_of_limit: rate relative to the device's matrix product, 0 to 1.
    """

    section: str
    item: str
    unit: str
    package: Spread
    baseline: Spread | None = None
    share_of_limit: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better than the baseline; above 1 is better, whatever the unit."""
        if self.baseline is None:
            return None
        more = self.package.median / self.baseline.median
        return more if self.unit in RATES else 1 / more

    def record(self, machine: str, versions: str) -> dict[str, str]:
        """The row as a record of the CSV file."""
        values = dict.fromkeys(COLUMNS, "")
        values |= {"machine": machine, "versions": versions, "section": self.section}
        values |= {"item": self.item, "unit": self.unit, "note": self.note}
        for prefix, spread in (("", self.package), ("baseline_", self.baseline)):
            if spread is not None:
                for name in ("median", "low", "high"):
                    values[prefix + name] = f"{getattr(spread, name):.6g}"
                values[prefix + "runs"] = str(spread.runs)
        if self.ratio is not None:
            values["ratio"] = f"{self.ratio:.4g}"
        if self.share_of_limit is not None:
            values["share_of_limit"] = f"{self.share_of_limit:.4g}"
        return values


def merge(path: Path, fresh: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Replace a machine's sections in the file by those in `fresh`; returns all records."""
    replaced = {(record["machine"], record["section"]) for record in fresh}
    kept = [r for r in read_records(path) if (r["machine"], r["section"]) not in replaced]
    # Sorted by machine; a machine's sections keep their order.
    machines = list(dict.fromkeys(record["machine"] for record in [*kept, *fresh]))
    records = [r for name in machines for r in [*kept, *fresh] if r["machine"] == name]
    write_records(path, COLUMNS, records)
    return records


def table(records: Iterable[dict[str, str]]) -> str:
    """The records as Markdown, one table per machine."""
    lines: list[str] = []
    machine = ""
    for record in records:
        if record["machine"] != machine:
            machine = record["machine"]
            lines += ["", f"{machine}; {record['versions']}:", ""]
            lines += ["| what | package | baseline | ratio | share of limit | |"]
            lines += ["| --- | --- | --- | --- | --- | --- |"]
        package, baseline = (_shown(record, prefix) for prefix in ("", "baseline_"))
        ratio = f"{float(record['ratio']):.3g}x" if record["ratio"] else ""
        share = f"{float(record['share_of_limit']):.0%}" if record["share_of_limit"] else ""
        name = f"{record['section']}: {record['item']}, {record['unit']}"
        lines.append(f"| {name} | {package} | {baseline} | {ratio} | {share} | {record['note']} |")
    return "\n".join(lines[1:])


def selection_table(records: Sequence[dict[str, str]]) -> str:
    """One machine's section "selection" as Markdown: a line per strategy, a column per size.

    Cells hold the seconds and, in brackets, the ratio of the baseline's seconds to them. The last
    column is the note of the last size.
    """
    sizes: dict[str, None] = {}
    cells: dict[str, dict[str, str]] = {}
    notes: dict[str, str] = {}
    for record in records:
        name, size = _strategy_and_size(record)
        sizes[size] = None
        ratio = f" ({float(record['ratio']):.3g}x)" if record["ratio"] else ""
        cells.setdefault(name, {})[size] = _number(record["median"]) + ratio
        notes[name] = record["note"]
    lines = ["| selection, s | " + " | ".join(sizes) + " | at the last size |"]
    lines.append("| --- |" + " --- |" * (len(sizes) + 1))
    for name, row in cells.items():
        lines.append(f"| {name} | " + " | ".join(row.get(size, "") for size in sizes))
        lines[-1] += f" | {notes[name]} |"
    return "\n".join(lines)


def tables(records: Sequence[dict[str, str]]) -> str:
    """All records as in docs/speed.md: two tables per machine."""
    parts = []
    for machine in dict.fromkeys(record["machine"] for record in records):
        own = [record for record in records if record["machine"] == machine]
        parts.append(table(record for record in own if record["section"] != "selection"))
        selection = [record for record in own if record["section"] == "selection"]
        if selection:
            parts.append(selection_table(selection))
    return "\n\n".join(parts)


def _strategy_and_size(record: dict[str, str]) -> tuple[str, str]:
    """Strategy and size of a selection record, such as "k_center" and "90,000 x 2,048"."""
    match = re.fullmatch(r"(.+?),? ([\d,]+ x [\d,]+), [\d,]+ picks", record["item"])
    assert match is not None, record["item"]
    return match[1], match[2]


def _shown(record: dict[str, str], prefix: str) -> str:
    """The median, with the extremes if there are several runs: "51.2 (50.8-51.9)"."""
    if not record[f"{prefix}median"]:
        return ""
    median, low, high = (_number(record[prefix + name]) for name in ("median", "low", "high"))
    return median if record[f"{prefix}runs"] == "1" else f"{median} ({low}–{high})"  # noqa: RUF001


def _number(text: str) -> str:
    value = float(text)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def plot(records: Sequence[dict[str, str]], machine: str) -> bytes:
    """Draw one machine's speed relative to the baseline, and its seconds of selection, as a PNG.

    The left side has a bar for each row with a baseline; of selection it shows only the last size.
    The right side has a line per strategy and dimension: seconds against number of candidates.
    """
    own = [record for record in records if record["machine"] == machine and record["ratio"]]
    bars = [record for record in own if record["section"] != "selection"]
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    last: dict[str, dict[str, str]] = {}
    for record in own:
        if record["section"] == "selection":
            name, size = _strategy_and_size(record)
            last[name] = record
            candidates, dimension = (text.replace(",", "") for text in size.split(" x "))
            point = (int(candidates), float(record["median"]))
            lines.setdefault((name, dimension), []).append(point)
    bars = [*bars, *last.values()][::-1]
    figure = Figure(figsize=(12, 1.6 + 0.3 * len(bars)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [f"{r['section']}: {r['item']}" for r in bars]
    ratios = [float(r["ratio"]) for r in bars]
    colours = [ORANGE if r["section"] == "selection" else BLUE for r in bars]
    drawn = left.barh(names, ratios, color=colours)
    left.bar_label(drawn, [f" {ratio:.3g}x" for ratio in ratios])
    left.set_xscale("log")
    left.set_xlim(0.5, 4 * max(ratios, default=1))
    left.axvline(1, color="black", linewidth=0.8)
    left.set_xlabel("times as fast as the baseline (logarithmic)")
    dimensions = list(dict.fromkeys(dimension for _, dimension in lines))
    for (name, dimension), points in lines.items():
        mark = MARKS[list(last).index(name) % len(MARKS)]
        style = ("--", "-")[dimension == dimensions[-1]]
        label = name if dimension == dimensions[-1] else None
        colour = f"C{list(last).index(name)}"
        right.plot(*zip(*points, strict=True), style, marker=mark, color=colour, label=label)
    if lines:
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_xlabel(f"candidates ({dimensions[-1]} dimensions solid)")
        right.set_ylabel("seconds to choose one in twenty")
        right.grid(alpha=0.3)
        right.legend(fontsize=8)
    else:
        right.axis("off")
    figure.suptitle(machine, fontsize=10)
    return png(figure)
