"""What one sweep over the pool yields, and the helpers that all strategy families share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PoolScores:
    """The unlabelled pool as a strategy sees it; all tensors are on one device.

    candidates: int64 [n], distinct dataset indices of the unlabelled images, ascending.
    probabilities: float32 [T, n, C], T stochastic passes (T = 1: a plain softmax), or None.
    embeddings: float [n, D], half precision or uint8 allowed, or None.
    labelled_embeddings: float [m, D]; m may be 0; None where nothing is labelled yet.
    temperature: by which the logits behind `probabilities` are divided to calibrate them.
    """

    candidates: Tensor
    probabilities: Tensor | None
    embeddings: Tensor | None
    labelled_embeddings: Tensor | None
    temperature: float = 1.0

    def take(self, positions: Tensor) -> PoolScores:
        """The same scores for the candidates at `positions` (int64 [p]) alone.

        Positions are put in ascending order, so that `candidates` stays ascending.
        """
        kept = positions.sort().values
        return PoolScores(
            candidates=self.candidates[kept],
            probabilities=None if self.probabilities is None else self.probabilities[:, kept],
            embeddings=None if self.embeddings is None else self.embeddings[kept],
            labelled_embeddings=self.labelled_embeddings,
            temperature=self.temperature,
        )


def pick_count(scores: PoolScores, k: int) -> int:
    """How many images a request for `k` gets: min(k, n). ValueError where k is negative."""
    if k < 0:
        raise ValueError(f"cannot select {k} images: k must not be negative")
    return min(k, len(scores.candidates))


def required_probabilities(scores: PoolScores, passes: int = 1) -> Tensor:
    """`scores.probabilities`; ValueError where they are absent or of fewer than `passes` passes."""
    if scores.probabilities is None:
        raise ValueError("this strategy needs class probabilities, and the scores hold none")
    if scores.probabilities.shape[0] < passes:
        raise ValueError(
            f"this strategy needs at least {passes} stochastic passes, "
            f"and the scores hold {scores.probabilities.shape[0]}"
        )
    return scores.probabilities


def required_embeddings(scores: PoolScores) -> Tensor:
    """`scores.embeddings`; ValueError where they are absent."""
    if scores.embeddings is None:
        raise ValueError("this strategy needs embeddings, and the scores hold none")
    return scores.embeddings


def refuse_nan(values: Tensor) -> None:
    """ValueError where one of `values` is NaN."""
    if bool(values.isnan().any()):
        raise ValueError(
            f"{int(values.isnan().sum())} of {values.numel()} scores are NaN: "
            "the model's outputs are not finite"
        )


def top_k_stable(values: Tensor, k: int) -> Tensor:
    """Positions (int64 [min(k, n)]) of the largest `values` [n], best first.

    Ties go to the smaller position, hence to the smaller dataset index, on every device;
    `torch.topk` promises no order among equals. ValueError where a value is NaN.
    """
    refuse_nan(values)
    return values.sort(descending=True, stable=True).indices[:k]
