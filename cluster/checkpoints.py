"""Which checkpoints of a trial stay in the cluster's storage while the trial runs.

Determined itself deletes none before the experiment ends. Only the latest checkpoint, which a
restart begins from, and the best one are of use; and only the latest needs the optimizer's state.
"""

from __future__ import annotations

import logging
from typing import Any

from determined import core

from cluster.master import Master, tolerated

logger = logging.getLogger("active_learning")


class KeptCheckpoints:
    """Deletes superseded checkpoints of one trial.

    Args:
        storage: the trial's checkpoints.
        master: shrinks the best one, once it is no longer the latest.
        with_optimizer: whether checkpoints hold the optimizer's state.
    """

    def __init__(
        self, storage: core.CheckpointContext, master: Master, with_optimizer: bool
    ) -> None:
        self._storage = storage
        self._master = master
        self._with_optimizer = with_optimizer
        self._kept: list[tuple[str, float]] = []  # id, and the cost that the best has least of

    def written(self, identifier: str, cost: float) -> None:
        """A checkpoint was written; `cost` is lower for a better one."""
        latest = (identifier, cost)
        known = [*self._kept, latest]
        best = min(known, key=lambda one: one[1])
        self._kept = [one for one in known if one in (best, latest)]
        for superseded, _ in known:
            if superseded not in (best[0], identifier):
                with tolerated(f"delete checkpoint {superseded}"):
                    self._storage.delete(superseded)
        if self._with_optimizer and best is not latest and known[-2] == best:
            self._master.remove_optimizer(best[0])

    def state(self) -> dict[str, Any]:
        """What is kept, as plain values."""
        return {"kept": [list(one) for one in self._kept]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`, which a checkpoint holds that is not in it yet."""
        self._kept = [(str(identifier), float(cost)) for identifier, cost in state["kept"]]
