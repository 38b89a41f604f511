"""tools.compare: its statistics on hand-made curves, its refusals, and what it writes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from errors import UserError
from reporting.forecast import SMALLEST_ERROR, forecast
from run_folder.description import Goal, RunDescription
from tools.compare import __main__ as command
from tools.compare import statistics
from tools.compare.comparison import compare
from tools.compare.runs import find_runs
from tools.compare.tables import plus_minus, saving_text
from tools.evaluate.report import forecast_note
from training.hyperparameters import Hyperparameters

BUDGETS = np.array([100.0, 200.0, 300.0, 400.0])


def write_run(
    folder: Path,
    strategy: str,
    seed: int,
    accuracy: Sequence[float],
    labels: Sequence[int] = (100, 200, 300, 400),
    data: str = "d" * 40,
    **settings: Any,
) -> Path:
    """A run folder with what a comparison reads; test accuracies lie .01 below validation's."""
    folder.mkdir(parents=True)
    settings = {"query_strategy": strategy, "dataset": "digits", "seed": seed, **settings}
    description = RunDescription(
        dataset="digits",
        fingerprint=data,
        seed=seed,
        settings={**Hyperparameters().resolved(), "label_budget": 400, **settings},
        class_names=("a", "b"),
        image_size=8,
        channels=1,
        mean=(0.5,),
        std=(0.2,),
        goal=Goal(),
        versions={},
    )
    (folder / "run.json").write_text(description.to_json())
    rows = [
        {"round": i, "labeled_samples": n, "val_accuracy": a, "test_accuracy": a - 0.01}
        for i, (n, a) in enumerate(zip(labels, accuracy, strict=True))
    ]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two strategies and three seeds; margin needs half the labels of random."""
    for seed in range(3):
        base = 0.001 * seed
        slow = [base + x for x in (0.5, 0.6, 0.7, 0.8)]
        fast = [base + x for x in (0.5, 0.7, 0.9, 0.92)]
        write_run(tmp_path / "grid" / f"random{seed}", "random", seed, slow)
        write_run(tmp_path / "grid" / f"margin{seed}", "margin", seed, fast)
    return tmp_path / "grid"


class TestStatistics:
    def test_validation_chooses_the_round_of_a_test_figure(self) -> None:
        val, test = np.array([0.5, 0.8, 0.7, 0.8, 0.9]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
        assert statistics.chosen_by_validation(val, test).tolist() == [0.1, 0.2, 0.2, 0.2, 0.5]

    def test_area_is_a_mean_accuracy(self) -> None:
        budgets = np.array([0.0, 10.0, 40.0])
        assert statistics.area(budgets, np.array([0.7, 0.7, 0.7])) == pytest.approx(0.7)
        assert statistics.area(budgets, np.array([0.0, 1.0, 1.0])) == pytest.approx(35 / 40)
        assert statistics.area(budgets[:1], np.array([[0.3], [0.4]])).tolist() == [0.3, 0.4]

    def test_holm_by_hand(self) -> None:
        # Sorted .01 .02 .03 .04 times 4 3 2 1, then made non-decreasing: .04 .06 .06 .06.
        assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
        assert statistics.holm([0.5, 0.9]).tolist() == [1.0, 1.0]
        corrected = statistics.holm([np.nan, 0.02, 0.5])
        assert np.isnan(corrected[0])
        assert corrected[1:] == pytest.approx([0.04, 0.5])

    def test_interval_by_hand(self) -> None:
        # n = 2, values 1 and 3: standard error 1, t(0.975, 1 degree of freedom) = 12.706.
        values = np.array([1.0, 3.0])
        assert statistics.half_width(values) == pytest.approx(12.7062, abs=1e-4)
        assert np.isnan(statistics.half_width(np.array([1.0])))
        assert plus_minus(values) == "2.000 ± 12.706"
        assert plus_minus(values[:1]) == "1.000"
        # Student's t is 4.303; a width of 0.000 would say nothing.
        assert plus_minus(np.array([0.9990, 0.9991, 0.9992])) == "0.9991 ± 0.0002"
        assert plus_minus(np.array([0.5, 0.5])) == "0.500 ± 0.000"

    def test_paired_differences(self) -> None:
        same = np.array([0.1, 0.5, 0.9])
        assert statistics.paired_p(same, same) == 1
        assert statistics.paired_p(same + 0.25, same) < 1e-6
        assert np.isnan(statistics.paired_p(same[:1], same[1:2]))
        # Differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.464, p = 0.0742 with 2 degrees of freedom.
        difference = np.array([1.0, 2.0, 3.0])
        assert statistics.paired_p(difference, np.zeros(3)) == pytest.approx(0.0742, abs=1e-4)

    @pytest.mark.parametrize(
        ("target", "labels"), [(0.4, 100), (0.5, 100), (0.7, 200), (0.65, 175), (0.85, 275)]
    )
    def test_labels_needed(self, target: float, labels: float) -> None:
        curve = np.array([0.5, 0.7, 0.9])
        assert statistics.labels_needed(BUDGETS[:3], curve, target) == pytest.approx(labels)

    def test_an_accuracy_that_is_not_reached(self) -> None:
        assert np.isnan(statistics.labels_needed(BUDGETS[:2], np.array([0.5, 0.6]), 0.7))

    def test_one_lucky_round_does_not_count(self) -> None:
        lucky = np.array([0.5, 0.9, 0.5, 0.7])
        assert statistics.monotone(lucky) == pytest.approx([0.5, 0.7, 0.7, 0.7])

    def test_saving_is_the_geometric_mean_of_the_seeds(self) -> None:
        random = np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
        strategy = np.array([[0.4, 0.5, 0.5, 0.5], [0.1, 0.4, 0.5, 0.5]])
        one = statistics.saving(BUDGETS, strategy, random, 0.4)
        assert one.ratio == pytest.approx((4 * 2) ** 0.5)
        # The logarithms differ by log 2, so the standard error is (log 2) / 2.
        half = 12.7062 * np.log(2) / 2
        assert np.log(one.high / one.ratio) == pytest.approx(half, rel=1e-4)
        assert np.log(one.ratio / one.low) == pytest.approx(half, rel=1e-4)
        assert (one.at_least, one.strategy_missed) == (False, 0)

    def test_a_seed_of_the_baseline_that_misses_the_target_is_censored(self) -> None:
        random = np.array([[0.1, 0.2, 0.3, 0.4]] * 3)
        strategy = np.array([[0.1, 0.6, 0.6, 0.6]] * 3)
        one = statistics.saving(BUDGETS, strategy, random, 0.6)
        assert one.ratio == pytest.approx(2)
        assert one.baseline_missed == 3
        assert saving_text(one) == "≥ 2.00 (2.00 to 2.00), 3 of 3 censored"

    def test_no_saving_is_stated_where_the_strategy_misses_the_target(self) -> None:
        random = np.array([[0.1, 0.2, 0.3, 0.4]] * 3)
        strategy = np.array([[0.1, 0.4, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1], [0.4, 0.4, 0.4, 0.4]])
        one = statistics.saving(BUDGETS, strategy, random, 0.4)
        assert np.isnan(one.ratio)
        assert saving_text(one) == "missed by 1 of 3"

    def test_penalties_count_clear_wins_only(self) -> None:
        generator = np.random.default_rng(0)
        noise = generator.normal(0, 0.01, (8, 3))
        matrix = statistics.penalties(
            BUDGETS[:3],
            {
                "random": 0.5 + noise,
                # Better at the last two budgets, by more than the noise.
                "good": 0.5 + noise + [[0.0, 0.1, 0.1]] + generator.normal(0, 1e-3, (8, 3)),
                "level": 0.5 + generator.normal(0, 0.01, (8, 3)),
            },
        )
        assert matrix[1, 0] == pytest.approx(2 / 3)
        assert matrix[1, 2] == pytest.approx(2 / 3)
        assert matrix[0].sum() == matrix[2].sum() == 0


class TestForecast:
    def test_a_power_law_is_continued_exactly(self) -> None:
        labels = np.arange(100.0, 1100.0, 100.0)
        expected = forecast(labels, 1 - 3 * labels**-0.5, more=200)
        assert expected is not None
        assert expected.accuracy == pytest.approx(1 - 3 * 1200**-0.5)
        assert expected.gain == pytest.approx(3 * 1000**-0.5 - 3 * 1200**-0.5)
        assert expected.low < expected.accuracy < expected.high
        assert expected.text().startswith("200 more labels are expected to change")

    def test_more_labels_never_harm_and_few_rounds_say_nothing(self) -> None:
        labels = np.array([100.0, 200.0, 300.0, 400.0])
        falling = forecast(labels, np.array([0.9, 0.89, 0.88, 0.87]))
        assert falling is not None
        assert falling.gain == 0
        assert forecast(labels[:3], np.array([0.5, 0.6, 0.7])) is None
        perfect = forecast(labels, np.ones(4))
        assert perfect is not None
        assert perfect.accuracy == pytest.approx(1 - SMALLEST_ERROR)

    def test_the_report_of_a_run_words_it(self) -> None:
        rounds = [
            {"labeled_samples": n, "val_accuracy": 1 - 4 * n**-0.5} for n in (100, 200, 300, 400)
        ]
        assert forecast_note(rounds[:3]) == ""
        assert "100 more labels are expected to change the validation accuracy by +2.1 points" in (
            forecast_note(rounds)
        )

    def test_noise_widens_the_interval(self) -> None:
        labels = np.arange(100.0, 700.0, 100.0)
        clean = 1 - 2 * labels**-0.5
        noisy = clean + 0.02 * np.array([1, -1, 1, -1, 1, -1])
        widths = []
        for curve in (clean, noisy):
            expected = forecast(labels, curve)
            assert expected is not None
            widths.append(expected.high - expected.low)
        assert widths[1] > 1.5 * widths[0]


class TestComparison:
    def test_runs_are_grouped_by_what_differs(self, grid: Path) -> None:
        comparison = compare(find_runs([grid]))
        assert set(comparison.groups) == {"random", "margin"}
        assert (comparison.baseline, comparison.seeds) == ("random", (0, 1, 2))
        assert comparison.saving("margin", 0.8).ratio == pytest.approx(400 / 250, rel=0.01)

    def test_a_run_folder_and_its_checkpoints_are_read(self, small_run: Path) -> None:
        (run,) = find_runs([small_run])
        assert len(run.labels) == 3
        assert run.settings["dataset"] == "digits"
        checkpoints = find_runs([small_run / "checkpoints"])
        last = max(checkpoints, key=lambda one: len(one.labels))
        assert last.val.tolist() == run.val.tolist()
        assert (last.settings, last.data, last.seed) == (run.settings, run.data, run.seed)

    def test_other_settings_name_the_group(self, tmp_path: Path) -> None:
        for queries in (50, 100):
            folder = tmp_path / f"run{queries}"
            write_run(folder, "margin", 0, [0.5, 0.6, 0.7, 0.8], samples_to_label=queries)
        comparison = compare(find_runs([tmp_path]))
        assert list(comparison.groups) == ["samples_to_label=100", "samples_to_label=50"]
        assert comparison.baseline == "samples_to_label=100"

    def test_rounds_of_other_sizes_are_compared_at_the_same_labels(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a", "random", 0, [0.5, 0.6, 0.7, 0.8])
        write_run(tmp_path / "b", "margin", 0, [0.5, 0.9], labels=(100, 400))
        comparison = compare(find_runs([tmp_path]))
        assert comparison.budgets.tolist() == [100, 200, 300, 400]
        assert comparison.groups["margin"].test[0] == pytest.approx(
            [0.49, 0.49 + 0.4 / 3, 0.49 + 0.8 / 3, 0.89]
        )

    def test_seeds_that_one_group_lacks_are_left_out(self, grid: Path) -> None:
        write_run(grid / "extra", "margin", 7, [0.5, 0.6, 0.7, 0.8])
        assert compare(find_runs([grid])).left_out == (7,)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"data": "e" * 40}, r"trained on digits \(fingerprint eeee.*but .* on digits \(fin"),
            ({"labels": (100, 200, 300, 500)}, r"100 to 500 labels, but 100 to 400 labels in"),
            ({"evaluation_size": 50}, r"evaluation_size is 50, but 0 in"),
            ({"strategy": "random", "seed": 0}, r"the same settings and seed 0 as"),
            ({"strategy": "badge"}, r"no seed that all groups have .*badge: \[9\]"),
        ],
    )
    def test_runs_that_do_not_compare_are_refused(
        self, grid: Path, changes: dict[str, Any], message: str
    ) -> None:
        values = {"strategy": "margin", "seed": 9, "accuracy": [0.5, 0.6, 0.7, 0.8], **changes}
        write_run(grid / "zz_other", **values)
        with pytest.raises(UserError, match=message):
            compare(find_runs([grid]))

    def test_a_folder_without_runs_and_a_damaged_run_are_named(self, grid: Path) -> None:
        with pytest.raises(UserError, match="holds no run"):
            find_runs([grid / "random0" / "nothing"])
        (grid / "random0" / "metrics.csv").write_text("round,labeled_samples,val_accuracy\n0,x,1\n")
        with pytest.raises(UserError, match=r"random0: not a whole run"):
            find_runs([grid])
        (grid / "random0" / "metrics.csv").write_text("round,labeled_samples\n0,10\n")
        with pytest.raises(UserError, match=r"no round has been evaluated"):
            find_runs([grid])


class TestCommand:
    def test_it_writes_a_figure_a_page_and_a_table(
        self, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "comparison"
        assert command.main([str(grid), "--output", str(output), "--targets", "0.7", "0.8"]) == 0
        printed = capsys.readouterr().out
        assert "| margin | 0.491 ± 0.002 |" in printed
        assert "| margin | 1.50 (1.50 to 1.50) | 1.60 (1.60 to 1.60) |" in printed
        assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
        html = (output / "comparison.html").read_text(encoding="utf-8")
        assert "<h2>Label savings</h2>" in html
        assert "http" not in html
        with (output / "comparison.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {row["quantity"] for row in rows} == {
            "test accuracy", "val accuracy", "test AUBC", "val AUBC", "label saving",
            "p against random",
        }  # fmt: skip
        first = next(row for row in rows if row["quantity"] == "test accuracy")
        assert float(first["low"]) < float(first["mean"]) < float(first["high"])

    def test_one_run_is_shown_without_intervals(self, grid: Path, tmp_path: Path) -> None:
        output = tmp_path / "comparison"
        assert command.main([str(grid / "margin0"), "--output", str(output)]) == 0
        assert "Label savings" not in (output / "comparison.html").read_text(encoding="utf-8")

    def test_mistakes_end_with_one_line(
        self, grid: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert command.main([str(grid), "--baseline", "bald"]) == 2
        error = capsys.readouterr().err
        assert error == "error: --baseline bald: no such group; there are margin, random\n"
