"""95 % intervals of measures that lie between 0 and 1, for single images and for groups of images.

Every measure here is a `Measure`: its value, and its influence function, which says how much each
image moves the value. The influences give the variance; images of one group (a patient, a slide)
are added up first, because they do not vary independently. Value and variance together say how
many independent images the measure is worth, and the interval is Wilson's for a share of so many.
That interval contains the value, stays between 0 and 1, and has a width where every image is right.

- One share of independent images: Wilson 1927, doi 10.1080/01621459.1927.10502953, exactly.
- Groups: Korn & Graubard 1998, "Confidence intervals for proportions with small expected number of
  positive counts estimated from survey data", Survey Methodology 24, with Wilson's interval.
- Area under the ROC curve: the variance of DeLong et al. 1988, doi 10.2307/2531595; for groups
  Obuchowski 1997, doi 10.2307/2533958.

The calibration error and the Brier score are no shares; `bootstrap` draws images, or whole groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

LEVEL = 0.95
NORMAL_QUANTILE = 1.959964
BLOCK_ELEMENTS = 2**22  # resamples times units that are held at a time


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval. NaN: not defined on these images."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Measure:
    """A value between 0 and 1 and what it rests on.

    members: int64 [n], the images that count. influence: float64 [n], how much each moves the
    value; the influences add up to 0.
    most: the largest number of independent images that the measure can be worth.
    unanimous: that number where the influences are all 0, as when every image is right.
    """

    value: float
    members: Tensor
    influence: Tensor
    most: float
    unanimous: float

    def estimate(self, groups: Tensor | None) -> Estimate:
        """The value with Wilson's interval; `groups` int64 [N] are the groups of all images."""
        quantile, unanimous = NORMAL_QUANTILE, self.unanimous
        if groups is None:
            variance = float(self.influence.square().sum())
        else:
            present, group = groups[self.members].unique(return_inverse=True)
            count = len(present)
            if count < 2:
                return wilson(self.value, min(1.0, self.unanimous))
            sums = torch.zeros(count, dtype=torch.float64).index_add_(0, group, self.influence)
            variance = float(sums.square().sum()) * count / (count - 1)
            quantile = float(stdtrit(count - 1, (1 + LEVEL) / 2))
            unanimous = min(unanimous, count)
        spread = self.value * (1 - self.value)
        worth = min(spread / variance, self.most) if variance > 0 and spread > 0 else unanimous
        return wilson(self.value, worth, quantile)


def wilson(share: float, count: float, quantile: float = NORMAL_QUANTILE) -> Estimate:
    """`share` of `count` images, which need not be a whole number, with Wilson's interval."""
    if count <= 0:
        return Estimate(share, 0.0, 1.0)
    square = quantile**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = (quantile / (1 + square / count)) * (
        share * (1 - share) / count + square / (4 * count**2)
    ) ** 0.5
    # Rounding must not push a limit past the value where the two are equal.
    return Estimate(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def share(hits: Tensor, members: Tensor) -> Measure:
    """The share of True in `hits` bool [n]; of no image the share is 0, and nothing is known."""
    count = len(hits)
    value = float(hits.double().mean()) if count else 0.0
    influence = (hits.double() - value) / max(count, 1)
    return Measure(value, members, influence, count, count)


def f1_score(hits: Tensor, members: Tensor) -> Measure:
    """F1 of a class: `hits` bool [n], among the images that are of the class or called so.

    The share J of hits is Jaccard's index, and F1 is 2 J / (1 + J).
    """
    jaccard = share(hits, members)
    slope = 2 / (1 + jaccard.value) ** 2
    worth = len(hits) / slope
    value = 2 * jaccard.value / (1 + jaccard.value)
    return Measure(value, members, slope * jaccard.influence, worth, worth)


def roc_area(scores: Tensor, positive: Tensor) -> Measure | None:
    """The area under the ROC curve of `scores` [N] for `positive` bool [N]; None without one.

    The share of pairs of a positive and a negative image in which the positive has the higher
    score, ties counting half.
    """
    above, below = positive.nonzero().flatten(), (~positive).nonzero().flatten()
    if not len(above) or not len(below):
        return None
    won = _share_below(scores[above], scores[below])
    lost = 1 - _share_below(scores[below], scores[above])
    value = float(won.mean())
    influence = torch.zeros(len(scores), dtype=torch.float64)
    for members, placements in ((above, won), (below, lost)):
        count = len(members)
        if count > 1:  # one image shows no variance
            influence[members] = (placements - value) / (count * (count - 1)) ** 0.5
    fewer = min(len(above), len(below))
    most = len(scores) if fewer > 1 else 1
    return Measure(value, torch.arange(len(scores)), influence, most, fewer)


def _share_below(scores: Tensor, others: Tensor) -> Tensor:
    """For each of `scores` the share of `others` that lie below, equal ones counting half."""
    ordered = others.sort().values
    lower = torch.searchsorted(ordered, scores)
    upper = torch.searchsorted(ordered, scores, right=True)
    return (lower + upper).double() / (2 * len(others))


class Mean:
    """The mean of several measures of the same images, taken up one by one."""

    def __init__(self, images: int) -> None:
        self._influence = torch.zeros(images, dtype=torch.float64)
        self._count, self._value, self._most, self._unanimous = 0, 0.0, 0.0, 0.0

    def add(self, measure: Measure) -> None:
        """Take up one more measure."""
        self._influence.index_add_(0, measure.members, measure.influence)
        self._count += 1
        self._value += measure.value
        self._most += 1 / max(measure.most, 1.0)
        self._unanimous += 1 / max(measure.unanimous, 1.0)

    def measure(self) -> Measure | None:
        """The mean of what was added; None of nothing.

        Of C shares of n images each, it is worth C n images.
        """
        if not self._count:
            return None
        return Measure(
            self._value / self._count,
            torch.arange(len(self._influence)),
            self._influence / self._count,
            self._count**2 / self._most,
            self._count**2 / self._unanimous,
        )


def bootstrap(
    values: Tensor, groups: Tensor | None, resamples: int, generator: torch.Generator
) -> Tensor:
    """Sums of `values` float64 [N, K] over `resamples` draws of N images: [resamples, K].

    With `groups`, whole groups are drawn, as many as there are (the cluster bootstrap: Davison &
    Hinkley 1997, "Bootstrap Methods and their Application", section 3.8).
    """
    if groups is not None:
        present, group = groups.unique(return_inverse=True)
        values = torch.zeros(len(present), values.shape[1], dtype=torch.float64).index_add_(
            0, group, values
        )
    count = len(values)
    sums = []
    for start in range(0, resamples, max(1, BLOCK_ELEMENTS // count)):
        block = min(resamples - start, max(1, BLOCK_ELEMENTS // count))
        drawn = torch.randint(count, (block, count), generator=generator)
        weights = torch.zeros(block, count, dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones(1, dtype=torch.float64).expand(block, count))
        sums.append(weights @ values)
    return torch.cat(sums)
