"""How well annotators agree: Cohen's kappa for two, Fleiss' kappa for more, with an interval.

Cohen, Educational and Psychological Measurement 20, 1960; Fleiss, Psychological Bulletin 76, 1971.
The interval is a percentile bootstrap over images (Efron & Tibshirani 1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelling.batch import Batch
from labelling.log import ANNOTATOR, Answer
from labelling.outcome import tally
from labelling.settings import LabellingSettings

RESAMPLES = 2000
BLOCK_NUMBERS = 2**22  # that one step of the bootstrap holds in memory


@dataclass(frozen=True)
class Agreement:
    """`kappa` of `annotators` on `images` that all of them gave a class, with its 95 % interval.

    NaN where it is not defined: with fewer than two images, or where only one class was given.
    """

    statistic: str
    annotators: tuple[str, ...]
    images: int
    kappa: float
    low: float
    high: float


def agreement(batch: Batch, lines: Sequence[Answer], annotators: Sequence[str]) -> Agreement | None:
    """The agreement of `annotators` on one batch; None with fewer than two of them."""
    if len(annotators) < 2:
        return None
    votes = tally(batch, lines, LabellingSettings()).votes
    rows = []
    for item in batch.images:
        given = [votes[item.index].get((ANNOTATOR, name)) for name in annotators]
        names = [vote.answer for vote in given if vote is not None and vote.answer is not None]
        if len(names) == len(annotators):
            rows.append([batch.class_index(name) for name in names])
    ratings = np.array(rows, dtype=np.int64).reshape(-1, len(annotators))
    classes = len(batch.class_names)
    statistic = "Cohen's kappa" if len(annotators) == 2 else "Fleiss' kappa"
    low, high = interval(ratings, classes)
    return Agreement(statistic, tuple(annotators), len(ratings), kappa(ratings, classes), low, high)


def kappa(ratings: NDArray[np.int64], classes: int) -> float:
    """Kappa of class indices int64 [images, annotators]: Cohen's for two columns, else Fleiss'."""
    return float(_kappas(ratings[None], classes)[0])


def interval(ratings: NDArray[np.int64], classes: int, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of `kappa`, by resampling images; NaN where it is not defined."""
    if len(ratings) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_NUMBERS // (ratings.size * classes))
    parts = []
    for start in range(0, RESAMPLES, block):
        size = (min(block, RESAMPLES - start), len(ratings))
        parts.append(_kappas(ratings[generator.integers(len(ratings), size=size)], classes))
    values = np.concatenate(parts)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _kappas(ratings: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """One kappa for each sample: ratings int64 [samples, images, annotators] -> [samples]."""
    samples, images, annotators = ratings.shape
    if images < 2:
        return np.full(samples, np.nan)
    # How often each class was given to each image: [samples, images, classes].
    counts = (ratings[..., None] == np.arange(classes)).sum(axis=2)
    pairs = annotators * (annotators - 1)
    observed = ((counts * (counts - 1)).sum(axis=2) / pairs).mean(axis=1)
    if annotators == 2:
        # Cohen: each annotator has a distribution of their own.
        shares = (ratings[..., None] == np.arange(classes)).mean(axis=1)
        expected = (shares[:, 0] * shares[:, 1]).sum(axis=1)
    else:
        # Fleiss: all annotators share one.
        expected = np.square(counts.mean(axis=1) / annotators).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)
