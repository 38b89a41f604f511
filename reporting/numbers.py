"""Estimates as text: as many decimals as their interval supports, and no rounding to 0 or 1."""

from __future__ import annotations

import math

from reporting.intervals import Estimate

FEWEST, MOST = 2, 6  # decimals
NOT_DEFINED = "not defined"


def decimals(estimate: Estimate) -> int:
    """How many decimals tell something: two significant digits of the interval's width.

    A value other than 0 and 1 gets as many as it takes not to look like one of them.
    """
    width = estimate.high - estimate.low
    digits = FEWEST if width <= 0 else math.ceil(1 - math.log10(width))
    digits = min(MOST, max(FEWEST, digits))
    while digits < MOST and _looks_extreme(estimate.value, digits):
        digits += 1
    return digits


def _looks_extreme(value: float, digits: int) -> bool:
    return value not in (0, 1) and round(value, digits) in (0, 1)


def value_text(estimate: Estimate) -> str:
    """The value alone."""
    if math.isnan(estimate.value):
        return NOT_DEFINED
    return f"{estimate.value:.{decimals(estimate)}f}"


def interval_text(estimate: Estimate) -> str:
    """The interval alone, in brackets; nothing where the value is not defined."""
    if math.isnan(estimate.value):
        return ""
    digits = decimals(estimate)
    return f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def estimate_text(estimate: Estimate) -> str:
    """Value and interval."""
    return f"{value_text(estimate)} {interval_text(estimate)}".rstrip()
