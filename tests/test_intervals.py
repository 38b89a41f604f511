"""Intervals of measures: known values, coverage on made-up data, groups, and their text."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest, norm

from reporting.intervals import Estimate, Mean, bootstrap, f1_score, roc_area, share, wilson
from reporting.measures import estimates
from reporting.numbers import estimate_text, value_text


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("right", "count"), [(8, 8), (0, 8), (1, 1), (57, 60), (500, 1000)])
def test_share_has_wilsons_interval(right: int, count: int) -> None:
    hits = torch.arange(count) < right
    expected = binomtest(right, count).proportion_ci(method="wilson")
    found = share(hits, torch.arange(count)).estimate(None)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert found.low <= found.value <= found.high


def test_nothing_is_known_of_no_image() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert share(none.bool(), none).estimate(None) == Estimate(0.0, 0.0, 1.0)


def test_f1_of_a_faultless_class_is_not_certain() -> None:
    found = f1_score(torch.ones(8, dtype=torch.bool), torch.arange(8)).estimate(None)
    jaccard = wilson(1.0, 8)
    assert found.high == 1
    assert found.low == pytest.approx(2 * jaccard.low / (1 + jaccard.low), abs=0.01)


def test_roc_area_has_delongs_variance() -> None:
    # By hand: shares of negatives below each positive 1/3, 1, 1; of positives above each negative.
    scores = torch.tensor([0.3, 0.8, 0.9, 0.1, 0.5, 0.7])
    area = roc_area(scores, torch.tensor([1, 1, 1, 0, 0, 0]).bool())
    assert area is not None
    assert area.value == pytest.approx(7 / 9)
    positives, negatives = torch.tensor([1 / 3, 1, 1]), torch.tensor([1, 2 / 3, 2 / 3])
    variance = positives.var() / 3 + negatives.var() / 3
    assert area.influence.square().sum().item() == pytest.approx(variance.item())
    assert roc_area(scores, torch.ones(6, dtype=torch.bool)) is None


@pytest.mark.parametrize(("true", "positives", "negatives"), [(0.8, 30, 60), (0.99, 10, 90)])
def test_area_intervals_cover_near_the_end_too(true: float, positives: int, negatives: int) -> None:
    shift = math.sqrt(2) * norm.ppf(true)
    covered = 0
    numbers = torch.randn(400, positives + negatives, generator=generator()).double()
    positive = torch.arange(positives + negatives) < positives
    for row in numbers:
        area = roc_area(row + shift * positive, positive)
        assert area is not None
        found = area.estimate(None)
        assert found.low <= found.value <= found.high
        covered += found.low <= true <= found.high
    assert covered / 400 > 0.91


def test_mean_of_faultless_classes_counts_all_images() -> None:
    mean = Mean(24)
    for c in range(3):
        mean.add(share(torch.ones(8, dtype=torch.bool), torch.arange(8 * c, 8 * c + 8)))
    measure = mean.measure()
    assert measure is not None
    assert measure.estimate(None) == wilson(1.0, 24)
    assert Mean(3).measure() is None


@pytest.mark.parametrize("calibrated", [True, False])
def test_calibration_error_covers_and_holds_its_value(calibrated: bool) -> None:
    covered = 0
    for seed in range(60):
        draws = generator(seed)
        confidence = 0.5 + 0.5 * torch.rand(400, generator=draws).double()
        rate = confidence if calibrated else confidence - 0.1
        right = torch.rand(400, generator=draws) < rate
        probabilities = torch.stack([confidence, 1 - confidence], dim=1)
        scores, _ = estimates(probabilities, probabilities, (~right).long(), None, 200, draws)
        found = scores["ece"]
        assert found.low <= found.value <= found.high
        covered += found.low <= (0.0 if calibrated else 0.1) <= found.high
    assert covered / 60 > 0.9


class TestGroups:
    def grouped(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Twenty groups of ten images; a group is right or wrong nearly as a whole."""
        rates = torch.tensor([0.05, 0.95]).repeat(10)
        groups = torch.arange(20).repeat_interleave(10)
        return torch.rand(200, generator=generator(seed)) < rates[groups], groups

    def test_equal_images_of_a_group_count_once(self) -> None:
        hits = torch.tensor([True, True, False, True]).repeat_interleave(50)
        groups = torch.arange(4).repeat_interleave(50)
        found = share(hits, torch.arange(200)).estimate(groups)
        assert found.high - found.low > 0.7
        alone = share(hits, torch.arange(200)).estimate(None)
        assert alone.high - alone.low < 0.15

    def test_a_faultless_share_rests_on_its_groups(self) -> None:
        hits, groups = torch.ones(200, dtype=torch.bool), torch.arange(200) % 8
        found = share(hits, torch.arange(200)).estimate(groups)
        assert found.high == 1
        assert 0.5 < found.low < wilson(1.0, 8).low

    def test_one_group_says_hardly_anything(self) -> None:
        found = share(torch.ones(9, dtype=torch.bool), torch.arange(9)).estimate(
            torch.zeros(9).long()
        )
        assert found.low < 0.3

    @pytest.mark.parametrize("measure", ["accuracy", "brier"])
    def test_every_interval_is_wider_with_groups(self, measure: str) -> None:
        for seed in range(5):
            hits, groups = self.grouped(seed)
            confidence = 0.5 + 0.4 * torch.rand(200, generator=generator(seed + 100)).double()
            probabilities = torch.stack([confidence, 1 - confidence], dim=1)
            together, alone = (
                estimates(probabilities, probabilities, (~hits).long(), of, 200, generator())[0]
                for of in (groups, None)
            )
            wider, narrower = together[measure], alone[measure]
            assert wider.high - wider.low > 1.5 * (narrower.high - narrower.low)

    def test_the_share_of_groups_is_covered(self) -> None:
        covered = 0
        for seed in range(100):
            draws = generator(seed)
            rates = (torch.rand(30, generator=draws) < 0.5).double() * 0.8 + 0.1  # 0.1 or 0.9
            groups = torch.arange(30).repeat_interleave(10)
            hits = torch.rand(300, generator=draws) < rates[groups]
            found = share(hits, torch.arange(300)).estimate(groups)
            covered += found.low <= 0.5 <= found.high
        assert covered > 90

    def test_the_bootstrap_draws_whole_groups(self) -> None:
        values = torch.ones(12, 1, dtype=torch.float64)
        groups = torch.tensor([0] * 10 + [1] * 2)
        sums = bootstrap(values, groups, 50, generator())
        assert set(sums[:, 0].tolist()) <= {20.0, 12.0, 4.0}
        assert bootstrap(values, None, 5, generator())[:, 0].tolist() == [12.0] * 5


class TestText:
    @pytest.mark.parametrize(
        ("estimate", "text"),
        [
            (Estimate(0.9989, 0.9981, 0.9994), "0.9989 [0.9981, 0.9994]"),
            (Estimate(0.83, 0.78, 0.88), "0.83 [0.78, 0.88]"),
            (Estimate(0.853, 0.833, 0.872), "0.853 [0.833, 0.872]"),
            (Estimate(1.0, 0.6756, 1.0), "1.00 [0.68, 1.00]"),
            (Estimate(0.997, 0.8, 1.0), "0.997 [0.800, 1.000]"),
            (Estimate(0.5, 0.5, 0.5), "0.50 [0.50, 0.50]"),
            (Estimate(math.nan, math.nan, math.nan), "not defined"),
        ],
    )
    def test_decimals_follow_the_width(self, estimate: Estimate, text: str) -> None:
        assert estimate_text(estimate) == text

    def test_no_value_rounds_to_certainty(self) -> None:
        assert value_text(Estimate(0.99996, 0.9, 1.0)) == "0.99996"
        assert value_text(Estimate(0.0004, 0.0, 0.3)) == "0.0004"
