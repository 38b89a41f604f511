"""The label-efficiency benchmark: its statistics on hand-made curves, and a tiny real study."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import comparison, label_efficiency
from benchmarks.comparison import Results
from tests.conftest import ROOT, SMALL


def results(**curves: np.ndarray) -> Results:
    budgets = np.array([100.0, 200.0, 300.0])
    seeds = tuple(range(len(next(iter(curves.values())))))
    upper = np.array([0.9])
    return Results("study", "made up", seeds, budgets, curves, upper, 1000, curves)


class TestStatistics:
    def test_validation_chooses_the_round_of_a_test_figure(self) -> None:
        val, test = np.array([0.5, 0.8, 0.7, 0.8, 0.9]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
        chosen = comparison.chosen_by_validation(val, test)
        assert chosen.tolist() == [0.1, 0.2, 0.2, 0.2, 0.5]

    def test_area_is_a_mean_accuracy(self) -> None:
        budgets = np.array([0.0, 10.0, 40.0])
        assert comparison.area(budgets, np.array([0.7, 0.7, 0.7])) == pytest.approx(0.7)
        assert comparison.area(budgets, np.array([0.0, 1.0, 1.0])) == pytest.approx(35 / 40)

    def test_holm_by_hand(self) -> None:
        # Sorted .01 .02 .03 .04 times 4 3 2 1, then made non-decreasing: .04 .06 .06 .06.
        assert comparison.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
        assert comparison.holm([0.5, 0.9]).tolist() == [1.0, 1.0]

    def test_interval_by_hand(self) -> None:
        # n = 2, values 1 and 3: standard error 1, t(0.975, 1 degree of freedom) = 12.706.
        assert comparison.half_width(np.array([1.0, 3.0])) == pytest.approx(12.7062, abs=1e-4)
        assert np.isnan(comparison.half_width(np.array([1.0])))

    def test_paired_differences(self) -> None:
        same = np.array([0.1, 0.5, 0.9])
        assert comparison.paired_p(same, same) == 1
        assert comparison.paired_p(same + 0.25, same) < 1e-6
        # Differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.464, p = 0.0742 with 2 degrees of freedom.
        difference = np.array([1.0, 2.0, 3.0])
        assert comparison.paired_p(difference, np.zeros(3)) == pytest.approx(0.0742, abs=1e-4)

    @pytest.mark.parametrize(
        ("target", "labels"), [(0.5, 100), (0.7, 200), (0.65, 175), (0.85, 275)]
    )
    def test_labels_needed(self, target: float, labels: float) -> None:
        curve = np.array([0.5, 0.7, 0.9])
        budgets = np.array([100.0, 200.0, 300.0])
        assert comparison.labels_needed(budgets, curve, target) == pytest.approx(labels)

    def test_an_accuracy_never_reached(self) -> None:
        budgets = np.array([100.0, 200.0])
        assert np.isnan(comparison.labels_needed(budgets, np.array([0.5, 0.6]), 0.7))

    def test_label_saving_of_a_strategy_twice_as_good(self) -> None:
        budgets = np.array([100.0, 200.0, 300.0, 400.0])
        slow = np.array([[0.1, 0.2, 0.3, 0.4]] * 3)
        fast = np.array([[0.2, 0.4, 0.6, 0.8]] * 3)
        assert comparison.label_saving(budgets, fast, slow) == pytest.approx((2, 2, 2))
        assert np.isnan(comparison.label_saving(budgets, slow, fast)[0])

    def test_label_saving_at_an_accuracy(self) -> None:
        budgets = np.array([100.0, 200.0, 300.0, 400.0])
        slow = np.array([[0.1, 0.2, 0.3, 0.4]] * 3)
        fast = np.array([[0.2, 0.4, 0.6, 0.8]] * 3)
        assert comparison.label_saving(budgets, fast, slow, 0.3) == pytest.approx((2, 2, 2))
        # The slow one never gets to 0.6, so needs its 400 at least, where the fast one needs 300.
        assert comparison.label_saving(budgets, fast, slow, 0.6) == pytest.approx((4 / 3,) * 3)
        text = comparison.table(results(random=slow[:, :3], good=fast[:, :3]), 0.35)
        assert "labels for 0.350" in text.splitlines()[0]
        assert [line.split(" | ")[-2:] for line in text.splitlines()[2:4]] == [
            ["175", "1.71 (1.71 to 1.71) |"],
            ["not reached", "1 |"],
        ]

    def test_penalties_count_clear_wins_only(self) -> None:
        generator = np.random.default_rng(0)
        noise = generator.normal(0, 0.01, (8, 3))
        found = comparison.penalties(
            results(
                random=0.5 + noise,
                # Better at the last two budgets, by more than the noise.
                good=0.5 + noise + [[0.0, 0.1, 0.1]] + generator.normal(0, 1e-3, (8, 3)),
                level=0.5 + generator.normal(0, 0.01, (8, 3)),
            )
        )
        assert found[1, 0] == pytest.approx(2 / 3)
        assert found[1, 2] == pytest.approx(2 / 3)
        assert found[0].sum() == found[2].sum() == 0

    def test_validation_names_the_best_first(self) -> None:
        curves = {"random": np.array([[0.5, 0.6, 0.7]] * 2), "good": np.array([[0.8] * 3] * 2)}
        line = comparison.validation_line(results(**curves))
        assert line.endswith(": good 0.800 ± 0.000, random 0.600 ± 0.000")

    def test_table_names_losers_too(self) -> None:
        curves = {"random": np.array([[0.5, 0.6, 0.7]] * 2), "worse": np.array([[0.3] * 3] * 2)}
        text = comparison.table(results(**curves))
        assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == [
            "| random",
            "| worse",
            "| all 1000 labels, as many steps",
        ]
        assert "not reached" in text


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A study of two strategies and two seeds on the digits, done in two goes; its command."""
    folder = tmp_path_factory.mktemp("study") / "digits"
    values = {**SMALL, "dataset": "digits", "stain_jitter": 0.0}
    values["query_strategy"] = "{vals: [random, margin]}"
    values["seed"] = "{vals: [0, 1]}"
    command = ["--config", str(ROOT / "configs" / "strategies.yaml"), "--output", str(folder)]
    command += ["--set", *(f"hyperparameters.{name}={value}" for name, value in values.items())]
    assert label_efficiency.main(command) == 0
    return folder, command


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestStudy:
    def test_every_run_has_its_row(self, study: tuple[Path, list[str]]) -> None:
        rows = read(study[0])
        names = ("all labels", "random", "margin")
        assert {(r["strategy"], r["seed"]) for r in rows} == {(n, s) for n in names for s in "01"}
        for row in rows:
            whole = row["strategy"] == "all labels"
            assert row["labels"] == ("1259" if whole else "10 16 22")
            for column in ("val_accuracy", "test_accuracy", "val_auc", "test_auc"):
                assert len(row[column].split()) == (1 if whole else 3)

    def test_a_seed_starts_all_strategies_alike(self, study: tuple[Path, list[str]]) -> None:
        first = {
            (row["strategy"], row["seed"]): (
                row["val_accuracy"].split()[0],
                row["val_auc"].split()[0],
            )
            for row in read(study[0])
        }
        for seed in "01":
            assert first["random", seed] == first["margin", seed]
        assert first["random", "0"] != first["random", "1"]

    def test_only_missing_runs_are_done_again(self, study: tuple[Path, list[str]]) -> None:
        folder, command = study
        before = (folder / "runs.csv").read_text(encoding="utf-8")
        kept = before.splitlines()[:-1]
        lost = before.splitlines()[-1].split(",")
        (folder / "runs.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
        assert label_efficiency.main(command) == 0
        after = (folder / "runs.csv").read_text(encoding="utf-8").splitlines()
        assert after[:-1] == kept
        assert after[-1].split(",")[:-2] == lost[:-2]  # all but the seconds

    def test_other_settings_are_refused(
        self, study: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert label_efficiency.main([*study[1], "hyperparameters.learning_rate=0.1"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: hyperparameters.learning_rate: 0.1, but the runs in")
        assert error.count("\n") == 1

    def test_other_ranges_are_refused(
        self, study: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        setting = "hyperparameters.learning_rate={type: categorical, vals: [1]}"
        assert label_efficiency.main([*study[1], setting]) == 2
        assert "hyperparameters.learning_rate: a range" in capsys.readouterr().err

    def test_comparison_of_it(
        self, study: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert comparison.main([str(study[0]), "--output", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert "digits, small_cnn, 2 seeds" in printed
        assert "| margin | " in printed
        assert "all 1259 labels" in printed
        for name in ("digits_curves", "digits_savings", "penalties"):
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def test_versions_are_kept(self, study: tuple[Path, list[str]]) -> None:
        settings = json.loads((study[0] / "study.json").read_text(encoding="utf-8"))
        assert {"torch", "numpy", "python", "device", "cores"} <= settings.keys()
        assert not {"seed", "query_strategy", "data_dir"} & settings["hyperparameters"].keys()
