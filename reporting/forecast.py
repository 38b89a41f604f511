"""How much would more labels gain? A power law through the last rounds, with an interval.

The error rate of a growing labelled set falls about as a power of its size (Hestness et al. 2017,
arXiv 1712.00409). So the logarithm of the error is fitted as a straight line over the logarithm of
the number of labels, and continued. `python -m benchmarks.forecast` measures on recorded runs how
often the intervals hold the accuracy that came.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

COVERAGE = 0.90
ROUNDS = 5  # the last ones; the slope of earlier ones is another
FEWEST_ROUNDS = 4
# Standard deviation of the slope's change; chosen so that intervals on bloodmnist hold 90 %.
SLOPE_DRIFT = 0.2
SMALLEST_ERROR = 5e-4  # an error of 0 has no logarithm

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Forecast:
    """The accuracy expected after more labels; low and high hold it with probability `COVERAGE`.

    now: the accuracy at the labels of today, by the same line, so that chance is smoothed out.
    """

    labels: float
    more: float
    now: float
    accuracy: float
    low: float
    high: float

    @property
    def gain(self) -> float:
        """Accuracy that the further labels are expected to add."""
        return self.accuracy - self.now

    def text(self) -> str:
        """One sentence for a report."""
        return (
            f"{self.more:.0f} more labels are expected to change the validation accuracy by "
            f"{100 * self.gain:+.1f} points, from {self.now:.3f} to {self.accuracy:.3f} "
            f"({COVERAGE:.0%} interval {self.low:.3f} to {self.high:.3f})"
        )


def forecast(labels: Floats, accuracy: Floats, more: float = 100) -> Forecast | None:
    """The validation accuracy after `more` labels than labels[-1].

    labels, accuracy: after each round, [R], labels ascending. None below `FEWEST_ROUNDS` rounds.

    The line is fitted to the last `ROUNDS` rounds. The interval is the one for a new observation in
    least squares with normal errors, by Student's t, widened for a slope that changes.
    """
    if len(labels) < FEWEST_ROUNDS:
        return None
    x = np.log(labels[-ROUNDS:])
    y = np.log(np.maximum(1 - accuracy[-ROUNDS:], SMALLEST_ERROR))
    fit = stats.linregress(x, y)
    slope = min(float(fit.slope), 0.0)  # labels are not expected to harm
    middle, spread = x.mean(), ((x - x.mean()) ** 2).sum()
    freedom = len(x) - 2
    residual = y - y.mean() - slope * (x - middle)
    noise = np.sqrt((residual**2).sum() / freedom)
    ahead = np.log(labels[-1] + more)
    expected = y.mean() + slope * (ahead - middle)
    error = noise * np.sqrt(1 + 1 / len(x) + (ahead - middle) ** 2 / spread)
    error = np.hypot(error, SLOPE_DRIFT * (ahead - x[-1]))
    half = stats.t.ppf((1 + COVERAGE) / 2, freedom) * error
    now = y.mean() + slope * (x[-1] - middle)
    return Forecast(
        labels=float(labels[-1]),
        more=float(more),
        now=float(1 - np.exp(now)),
        accuracy=float(1 - np.exp(expected)),
        low=float(max(0.0, 1 - np.exp(expected + half))),
        high=float(1 - np.exp(expected - half)),
    )
