"""The rules that end a run, and the reason that they give.

They depend only on the results of the rounds, so an interrupted run ends where an undisturbed one
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class RoundResult:
    """The result of a finished round.

    val_loss: in nats, on the evaluated part of the validation split.
    val_accuracy: 0 to 1, on the same images.
    pool_uncertainty: mean predictive entropy in nats of the next query's candidates; None if no
        rule needs it, and after the last round.
    temperature: calibrates the round's network; fitted on the same images.
    minutes: of annotation so far.
    """

    val_loss: float
    val_accuracy: float
    pool_uncertainty: float | None
    temperature: float = 1.0
    minutes: float = 0.0


@dataclass(frozen=True)
class StopReason:
    """Why a run ends.

    rule: target, no_gain, low_uncertainty, minutes, budget, rounds or pool.
    text: the reason in words.
    """

    rule: str
    text: str


def reason_to_stop(
    hp: Hyperparameters,
    query_sizes: Sequence[int],
    results: Sequence[RoundResult],
    pool_exhausted: bool,
) -> StopReason | None:
    """Why a run ends after the rounds of `results`; None if it continues.

    A run always ends when its budget, its rounds or the pool are used up (`pool_exhausted`: every
    image is labelled or skipped). Each other rule is off if its hyperparameter is 0:

    - `stop_at_val_accuracy`: the last round reached this accuracy.
    - `stop_after_rounds_without_gain`: none of this many last rounds had a lower val_loss than the
      best round before them. The rule uses the loss because the loss also chooses the best round,
      and because it moves in smaller steps than the accuracy of a small split.
    - `stop_below_uncertainty`: the pool's mean predictive entropy is below this. This is the
      overall-uncertainty rule of Zhu, Wang & Hovy 2008, "Multi-Criteria-Based Strategy to Stop
      Active Learning for Data Annotation".

    - `minutes_budget`: it does not pay for the next round, by `minutes_of_next_round`.

    If several rules hold, the first one gives the reason.
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
                f"no round since round {losses.index(best)} had a val_loss below its {best:.4f} "
                f"(stop_after_rounds_without_gain: {patience})",
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
        needed = minutes_of_next_round(hp, query_sizes, results)
        # Sums of seconds are not exact.
        if 0 < hp.minutes_budget < (last.minutes + needed) * (1 - 1e-9):
            return StopReason(
                "minutes",
                f"{last.minutes:.1f} minutes are spent, and a further round of {needed:.1f} would "
                f"exceed minutes_budget: {hp.minutes_budget}",
            )
        return None
    if sum(query_sizes) >= hp.label_budget:
        return StopReason("budget", f"label_budget: {hp.label_budget} is spent")
    return StopReason("rounds", f"all rounds are finished (rounds: {hp.rounds})")


def minutes_of_next_round(
    hp: Hyperparameters, query_sizes: Sequence[int], results: Sequence[RoundResult]
) -> float:
    """What the annotation of the round after those of `results` takes, in minutes.

    For people it is an estimate: their mean time per label so far, times the round's labels.
    """
    size = query_sizes[len(results)]
    if hp.oracle == "people":
        return results[-1].minutes / sum(query_sizes[: len(results)]) * size
    expert = hp.expert_labels(size) * hp.expert_seconds_per_label
    return (size * hp.seconds_per_label + expert) / 60
