"""Progress bars. Only the first rank shows them, and only on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from active_learning import ActiveLearner
from training.ranks import Ranks
from training.scoring import Progress


def progress_bar(ranks: Ranks) -> Progress:
    """A bar with a title around an iterable; it disappears when the iterable ends."""

    def bar(iterable: Iterable[Any], title: str) -> Iterable[Any]:
        # With None, tqdm shows the bar on a terminal only.
        return tqdm(iterable, desc=title, leave=False, disable=True if ranks.rank else None)

    return bar


class StepsBar:
    """Progress of the training in one round."""

    def __init__(self, ranks: Ranks) -> None:
        self._hidden = True if ranks.rank else None
        self._bar: tqdm[Any] | None = None

    def step(self, learner: ActiveLearner) -> None:
        """Count one optimizer step."""
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
        """Remove the bar at the end of a round."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
