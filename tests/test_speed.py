"""The speed benchmark runs, tiny, and its CSV, table and plot hold what it measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks.records import read_records
from benchmarks.speed import __main__ as speed
from benchmarks.speed import naive as speed_naive
from benchmarks.speed import rows as speed_rows
from benchmarks.speed.rows import COLUMNS, Row
from benchmarks.speed.timing import Spread
from training.precision import compute_dtype

from . import strategy_reference as reference


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    files = ["--csv", str(folder / "speed.csv"), "--plot", str(folder / "speed.png")]
    speed.main(["--quick", *files])
    return folder


def test_every_section_is_measured_beside_its_baseline(measured: Path) -> None:
    with (measured / "speed.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    limits = 1 + (compute_dtype("auto", device) != torch.float32)
    assert [row["section"] for row in rows] == (
        ["limit"] * limits + ["training", "scoring", "round"] + ["selection"] * 7 + ["memory"]
    )
    assert tuple(rows[0]) == COLUMNS
    for row in rows:
        low, median, high = (float(row[name]) for name in ("low", "median", "high"))
        assert 0 < low <= median <= high
        alone = row["section"] in ("limit", "memory") or "radius" in row["item"]
        assert bool(row["ratio"]) != alone
        if row["ratio"]:
            ratio = float(row["baseline_median"]) / median
            more = row["unit"].endswith("/s")
            assert float(row["ratio"]) == pytest.approx(1 / ratio if more else ratio, rel=1e-2)
        if row["section"] == "selection" and row["ratio"]:
            assert "reckoned from" in row["note"]
    shares = {row["section"] for row in rows if row["share_of_limit"]}
    assert shares == {"training", "scoring"}
    assert 0.05 < float(rows[-1]["median"]) < 8  # GB, of a Python process with torch in it
    assert (measured / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_tables_have_a_line_for_every_row(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speed.main(["--table", "--csv", str(measured / "speed.csv")])
    network, selection = capsys.readouterr().out.strip().split("\n\n| selection")
    assert f"torch {torch.__version__}" in network.splitlines()[0]
    limits = network.count("| limit: ")
    assert len([line for line in network.splitlines() if line.startswith("| ")]) == 2 + limits + 4
    assert len(selection.splitlines()) == 2 + 7


def test_selection_table_puts_sizes_beside_each_other() -> None:
    def record(name: str, size: str, seconds: float, note: str) -> dict[str, str]:
        times = Spread.of([seconds]), Spread.of([8.0])
        return Row("selection", f"{name} {size}, 49 picks", "s", *times, note=note).record("m", "v")

    found = speed_rows.selection_table(
        [
            record("k-means++ seeding", "1,000 x 32", 1, "first"),
            record("k-means++ seeding", "3,000 x 32", 2, "second"),
            record("badge", "3,000 x 32", 4, "third"),
        ]
    )
    assert found.splitlines() == [
        "| selection, s | 1,000 x 32 | 3,000 x 32 | at the last size |",
        "| --- | --- | --- | --- |",
        "| k-means++ seeding | 1 (8x) | 2 (4x) | second |",
        "| badge |  | 4 (2x) | third |",
    ]


def test_a_section_replaces_its_older_self_on_that_machine_only(tmp_path: Path) -> None:
    def record(machine: str, section: str, value: float) -> dict[str, str]:
        return Row(section, "x", "s", Spread.of([value])).record(machine, "versions")

    path = tmp_path / "speed.csv"
    speed_rows.merge(path, [record("a", "round", 1), record("a", "memory", 2)])
    speed_rows.merge(path, [record("b", "round", 3)])
    speed_rows.merge(path, [record("a", "round", 4)])
    found = {(r["machine"], r["section"]): r["median"] for r in read_records(path)}
    assert found == {("a", "round"): "4", ("a", "memory"): "2", ("b", "round"): "3"}


def test_ratios_are_above_one_where_the_package_is_better() -> None:
    one, two = Spread.of([1.0]), Spread.of([2.0])
    assert Row("round", "x", "s", one, two).ratio == 2
    assert Row("training", "x", "images/s", two, one).ratio == 2
    assert Spread.of([4.0, 1.0, 2.0]).per(8) == Spread(4.0, 2.0, 8.0, 3)


def test_naive_strategies_do_the_same_job() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 5, generator=generator).numpy()
    expected = reference.k_center(points.astype(float), points[:1].astype(float), 10)
    assert speed_naive.k_center(points, 10).tolist() == expected
    weights = torch.rand(40, generator=generator).numpy()
    picked = speed_naive.weighted_d2_sampling(points, weights, 40)
    assert sorted(picked.tolist()) == list(range(40))
    nearest = speed_naive.lloyd_assignment(points, points[:7])
    assert (
        nearest.tolist()
        == torch.cdist(torch.from_numpy(points), torch.from_numpy(points[:7])).argmin(1).tolist()
    )
