"""What a trial asks of the cluster's master besides reporting, through Determined's public client.

No failed request is a failure of the trial: it is logged, and the trial continues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import determined as det
from determined.experimental import client

from run_folder.names import OPTIMIZER

SECONDS_BETWEEN_QUESTIONS = 10.0
# Trials in these states are over for the searcher. ASHA ends a pruned trial as STOPPING_COMPLETED,
# and the master of 0.38 sends it no other signal.
STOPPING = {
    client.TrialState.STOPPING_CANCELED,
    client.TrialState.STOPPING_COMPLETED,
    client.TrialState.STOPPING_ERROR,
    client.TrialState.STOPPING_KILLED,
}
DESCRIPTION_LENGTH = 255

logger = logging.getLogger("active_learning")


class Master:
    """Asks the master about one trial, and tells it about mistakes.

    Args:
        info: the trial's.
        now: a clock, in seconds.
    """

    def __init__(self, info: det.ClusterInfo, now: Callable[[], float] = time.monotonic) -> None:
        self._trial_id = info.trial.trial_id
        self._experiment_id = info.trial.experiment_id
        self._now = now
        self._asked: float | None = None

    def wants_trial_to_stop(self) -> bool:
        """Whether the searcher has ended the trial; asked every few seconds at most."""
        if self._asked is not None and self._now() - self._asked < SECONDS_BETWEEN_QUESTIONS:
            return False
        self._asked = self._now()
        with tolerated("ask whether the search has stopped this trial"):
            return client.get_trial(self._trial_id).state in STOPPING
        return False

    def description(self) -> str:
        """The experiment's description; empty where the master does not say."""
        with tolerated("read the experiment's description"):
            return client.get_experiment(self._experiment_id).description or ""
        return ""

    def describe_experiment(self, text: str) -> None:
        """Replace the experiment's description."""
        with tolerated("describe the experiment"):
            client.get_experiment(self._experiment_id).set_description(text)

    def pause_experiment(self, reason: str) -> None:
        """Put `reason` into the experiment's description and pause the experiment."""
        with tolerated("pause the experiment"):
            experiment = client.get_experiment(self._experiment_id)
            experiment.set_description(reason[:DESCRIPTION_LENGTH])
            experiment.pause()

    def end_experiment(self, reason: str) -> None:
        """Put `reason` into the experiment's description and end the experiment."""
        with tolerated("end the experiment"):
            experiment = client.get_experiment(self._experiment_id)
            experiment.set_description(f"error: {reason}"[:DESCRIPTION_LENGTH])
            # Killing it would end this container before its log has arrived.
            experiment.cancel()

    def remove_optimizer(self, checkpoint: str) -> None:
        """Delete the optimizer's state from a checkpoint that no run continues from."""
        with tolerated(f"shrink checkpoint {checkpoint}"):
            client.get_checkpoint(checkpoint).remove_files([OPTIMIZER])


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    try:
        yield
    # The client raises its own, requests' and urllib3's errors; all mean the same here.
    except Exception as error:
        logger.warning("cannot %s: %s", what, " ".join(str(error).split())[:200])
