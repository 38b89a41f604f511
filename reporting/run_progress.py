"""Progress bars, on terminals only and from the first rank only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from active_learning import ActiveLearner
from training.ranks import Ranks
from training.scoring import Progress


def progress_bar(ranks: Ranks) -> Progress:
    """A bar around an iterable, with a title; it vanishes when the iterable ends."""

    def bar(iterable: Iterable[Any], title: str) -> Iterable[Any]:
        # None leaves it to tqdm, which writes to terminals only.
        return tqdm(iterable, desc=title, leave=False, disable=True if ranks.rank else None)

    return bar


class StepsBar:
    """How far a round's training is."""

    def __init__(self, ranks: Ranks) -> None:
        self._hidden = True if ranks.rank else None
        self._bar: tqdm[Any] | None = None

    def step(self, learner: ActiveLearner) -> None:
        """One optimizer step was taken."""
        if self._bar is None:
            round_ = learner.pool.rounds - 1
            self._bar = tqdm(
                total=learner.hp.batches_per_round,
                desc=f"round {round_} ({round_ + 1} of {len(learner.query_sizes)})",
                unit="step",
                leave=False,
                disable=self._hidden,
            )
        self._bar.update()

    def close(self) -> None:
        """The round is over."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
