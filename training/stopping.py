"""When no more labels are to be bought, and why: the rules that end a run.

They look at what a round left behind and at nothing else, so that a run that was interrupted ends
where an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class RoundResult:
    """What a finished round left behind.

    val_loss: nats; val_accuracy: 0 to 1; both of the whole evaluated validation split.
    pool_uncertainty: mean predictive entropy of the next query's candidates under the network as
    it is now, nats; None where no rule asks for it, and after the last round.
    """

    val_loss: float
    val_accuracy: float
    pool_uncertainty: float | None


@dataclass(frozen=True)
class StopReason:
    """rule: target, no_gain, low_uncertainty, budget, rounds or pool; text: a sentence for it."""

    rule: str
    text: str


def reason_to_stop(
    hp: Hyperparameters,
    query_sizes: Sequence[int],
    results: Sequence[RoundResult],
    pool_exhausted: bool,
) -> StopReason | None:
    """Why a run is over after the rounds of `results`; None while it goes on.

    A run always ends with its budget, its rounds or the pool (`pool_exhausted`: every image is
    labelled or skipped). Each further rule is off where its hyperparameter is 0:

    - `stop_at_val_accuracy`: the last round reached this accuracy.
    - `stop_after_rounds_without_gain`: none of so many last rounds came below the lowest val_loss
      before them. The loss, since it also chooses the best round and moves in smaller steps than
      the accuracy of a small split.
    - `stop_below_uncertainty`: the pool's mean predictive entropy is below it, the
      overall-uncertainty rule of Zhu, Wang & Hovy 2008, "Multi-Criteria-Based Strategy to Stop
      Active Learning for Data Annotation".

    Where several hold, the first one is named.
    """
    if not results:
        return None
    last, patience = results[-1], hp.stop_after_rounds_without_gain
    if 0 < hp.stop_at_val_accuracy <= last.val_accuracy:
        return StopReason(
            "target",
            f"val_accuracy {last.val_accuracy:.4f} has reached "
            f"stop_at_val_accuracy: {hp.stop_at_val_accuracy}",
        )
    if 0 < patience < len(results):
        losses = [one.val_loss for one in results]
        best = min(losses[:-patience])
        if min(losses[-patience:]) >= best:
            return StopReason(
                "no_gain",
                f"val_loss has not come below the {best:.4f} of round {losses.index(best)} in "
                f"stop_after_rounds_without_gain: {patience}",
            )
    uncertainty = last.pool_uncertainty
    if uncertainty is not None and uncertainty < hp.stop_below_uncertainty:
        return StopReason(
            "low_uncertainty",
            f"the pool's mean uncertainty {uncertainty:.4f} nats is below "
            f"stop_below_uncertainty: {hp.stop_below_uncertainty}",
        )
    if len(results) < len(query_sizes):
        if pool_exhausted:
            return StopReason("pool", "every image of the pool is labelled or skipped")
        return None
    if sum(query_sizes) >= hp.label_budget:
        return StopReason("budget", f"label_budget: {hp.label_budget} is spent")
    return StopReason("rounds", f"rounds: {hp.rounds} are done")
