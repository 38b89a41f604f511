"""The benchmarks of the service: the load test, the soak and the rates of the outlier flag."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks import outliers, service_soak, serving
from data import Splits
from errors import UserError


def test_load_test_has_a_row_for_every_setting(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "WARM_UP_SECONDS", 0.1)
    monkeypatch.setattr(serving, "CLIENTS", (1, 8))
    output = tmp_path / "rows.csv"
    arguments = [str(exported), "--rounds", "1", "--seconds", "0.4", "--output", str(output)]
    assert serving.main(arguments) == 0
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["workers"], row["clients"]) for row in rows] == [
        ("bare model, single images", "1", "0"),
        ("bare model, single images, 10 ms apart", "1", "0"),
        ("bare model", "1", "0"),
        ("bare model", "2", "0"),
        *(("service, no batching", "1", clients) for clients in ("1", "8")),
        *(("service", "1", clients) for clients in ("1", "8")),
        ("service, 10 ms apart", "1", "1"),
        ("service", "2", "8"),
    ]
    for row in rows:
        assert 0 < float(row["p50"]) <= float(row["p95"]) <= float(row["p99"])
        assert float(row["images_per_second"]) > 0


def test_figures_are_medians_of_rounds() -> None:
    rows = [
        serving.Row("m", "service", 1, 8, rate, 2.0, 3.0, 4.0, 0.5, 0.1) for rate in (9.0, 7.0, 8.0)
    ]
    assert serving.median_row(rows) == dataclasses.replace(rows[0], images_per_second=8.0)


def test_soak_sends_every_kind_of_request(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_soak, "GROWTH", 10.0)  # in a second nothing has settled
    monkeypatch.setattr(service_soak, "BROKEN_EVERY", 10)
    monkeypatch.setattr(service_soak, "HUGE", 6000)
    assert service_soak.main([str(exported), "--seconds", "2", "--rate", "0"]) == 0
    output = capsys.readouterr().out
    statuses, broken = output.split("answers by status: ")[1].splitlines()[0].split("; ")
    for status in (200, 400, 413, 415):
        assert f"{status}: " in statuses
    assert int(broken.split()[0]) > 0


def test_growing_memory_fails_the_soak() -> None:
    service_soak.check_growth([90.0, 100.0, *[103.0] * 20])
    with pytest.raises(UserError, match="grows"):
        service_soak.check_growth([90.0, 100.0, 100.0, *range(100, 130)])


def test_rates_of_the_outlier_flag(exported: Path, digits: Splits, tmp_path: Path) -> None:
    own, other = tmp_path / "own.npz", tmp_path / "noise.npz"
    arrays = {
        f"{name}_images": getattr(digits, name).images.squeeze(1).numpy()
        for name in ("train", "val", "test")
    }
    np.savez(own, **arrays)
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(other, images=noise)
    rows = {row.images_of: row for row in outliers.measure(exported, own, [other])}
    assert set(rows) == {"own:val_images", "own:test_images", "noise:images"}
    assert rows["own:val_images"].flagged == pytest.approx(0.05, abs=0.01)
    assert rows["own:test_images"].low < 0.08
    assert rows["noise:images"].flagged > 0.9


def test_wilson_interval() -> None:
    """Of 1 in 10: 0.0179 to 0.4042 (Agresti & Coull 1998)."""
    assert outliers.wilson(np.arange(10) == 0) == pytest.approx((0.0179, 0.4042), abs=1e-4)
