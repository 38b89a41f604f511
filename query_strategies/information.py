"""BALD for batches: mutual information between the labels of a whole batch and the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .scores import PoolScores, pick_count, required_probabilities, top_k_stable
from .uncertainty import mutual_information, predictive_entropy

MAX_PICKS = 100
EPIG_TARGETS = 100
MAX_CONFIGURATIONS = 4096
# Elements of a temporary: candidates x classes x label configurations.
BLOCK_ELEMENTS = 2**20


def power_bald(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Candidates drawn without replacement in proportion to their BALD score.

    Kirsch et al. 2023, "Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning",
    with coldness 1, by the Gumbel top-k trick: the largest log score plus Gumbel noise, that is the
    largest score over a standard exponential. O(T n C). ValueError below two passes.
    """
    count = pick_count(scores, k)
    # With the floor, candidates without any score follow the others in random order.
    values = mutual_information(required_probabilities(scores, passes=2)).clamp_min(1e-12)
    noise = torch.empty_like(values).exponential_(generator=generator)
    return scores.candidates[top_k_stable(values.log() - noise.log(), count)]


def epig(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Candidates whose label would say most about the labels of the other images.

    Bickford Smith et al. 2023, "Prediction-Oriented Bayesian Active Learning": the expected
    predictive information gain, the mean over target images of the mutual information between the
    candidate's label and the target's label. BALD counts what a label says about the weights, also
    where that changes no prediction. The targets are `EPIG_TARGETS` random candidates.

    The passes must share dropout masks across images. O(T n m C^2), m = `EPIG_TARGETS`; memory of
    one block of `BLOCK_ELEMENTS` numbers. ValueError below two passes.
    """
    count = pick_count(scores, k)
    probabilities = required_probabilities(scores, passes=2)
    passes, n, classes = probabilities.shape
    chosen = torch.randperm(n, generator=generator, device=probabilities.device)[:EPIG_TARGETS]
    targets = probabilities[:, chosen].flatten(1)  # [T, m C]
    marginal = predictive_entropy(probabilities)
    expected = float(marginal[chosen].mean()) if n else 0.0
    values = torch.empty_like(marginal)
    step = max(1, BLOCK_ELEMENTS // (classes * max(1, targets.shape[1])))
    for start in range(0, n, step):
        block = probabilities[:, start : start + step]
        joint = block.flatten(1).T @ targets / passes  # [rows C, m C]
        entropies = torch.special.entr(joint).view(block.shape[1], classes, len(chosen), classes)
        mean_joint = entropies.sum(dim=(1, 3)).mean(dim=1)
        values[start : start + step] = marginal[start : start + step] + expected - mean_joint
    return scores.candidates[top_k_stable(values, count)]


def batch_bald(scores: PoolScores, k: int, generator: torch.Generator) -> Tensor:
    """Greedily the batch whose labels together say most about the weights.

    Kirsch et al. 2019, "BatchBALD: Efficient and Diverse Batch Acquisition for Deep Bayesian
    Active Learning". The gain of a candidate x is I(y_x; weights | labels of the picks), the mean
    over configurations of the picks' labels of the entropy of y_x under the posterior over passes
    which that configuration leaves, less the mean entropy of y_x within a pass. All configurations
    are enumerated while there are at most `MAX_CONFIGURATIONS`; from then on each keeps its weight,
    in a few copies, and draws a label for every further pick.

    Gains only fall as picks are added. So candidates are evaluated in the order of their last known
    gain, and only as far as one could still win (lazy greedy; under sampling, up to its noise).

    The passes must share dropout masks across images. Their number bounds what a batch can tell
    (log T nats), so large batches gain nothing: ValueError above `MAX_PICKS` picks, and below two
    passes. Time O(k n C M T) at most, M = `MAX_CONFIGURATIONS`.
    """
    count = pick_count(scores, k)
    probabilities = required_probabilities(scores, passes=2)
    if count > MAX_PICKS:
        raise ValueError(
            f"batch_bald selects at most {MAX_PICKS} images at a time, not {count}: "
            "take a smaller query size, or power_bald"
        )
    passes = len(probabilities)
    bounds = mutual_information(probabilities)
    within = bounds.new_zeros(len(bounds))
    for one_pass in probabilities:
        within += torch.special.entr(one_pass).sum(dim=-1) / passes
    # One configuration so far, the empty one: all passes equally likely.
    weights = probabilities.new_ones(1)
    posterior = probabilities.new_full((1, passes), 1 / passes)
    picked: list[Tensor] = []
    while len(picked) < count:
        best = _largest_gain(probabilities, within, weights, posterior, bounds)
        bounds[best] = -torch.inf
        picked.append(best)
        weights, posterior = _extend(
            weights, posterior, probabilities[:, best].squeeze(1), generator
        )
    return scores.candidates[torch.cat(picked)] if picked else scores.candidates[:0]


def _largest_gain(
    probabilities: Tensor, within: Tensor, weights: Tensor, posterior: Tensor, bounds: Tensor
) -> Tensor:
    """Position (int64 [1]) of the largest gain; lowers `bounds` to gains it computes."""
    order = top_k_stable(bounds, len(bounds))
    configurations, classes = len(weights), probabilities.shape[-1]
    step = max(1, BLOCK_ELEMENTS // (configurations * classes))
    highest = -torch.inf
    for start in range(0, len(order), step):
        if float(bounds[order[start]]) < highest:
            break
        rows = order[start : start + step]
        labels = torch.tensordot(posterior, probabilities[:, rows], dims=1)  # [M, rows, C]
        entropies = torch.special.entr(labels).sum(dim=-1)
        gains = weights @ entropies - within[rows]
        gains = torch.where(bounds[rows].isinf(), bounds[rows], gains)  # -inf: picked already
        bounds[rows] = gains
        highest = max(highest, float(gains.max()))
    return top_k_stable(bounds, 1)


def _extend(
    weights: Tensor, posterior: Tensor, pick: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Configurations with the label of one more pick.

    weights: [M], the probability of each configuration; posterior: [M, T], of each pass given the
    configuration; pick: [T, C], the pick's probabilities.
    """
    classes = pick.shape[-1]
    joint = posterior[:, :, None] * pick  # [M, T, C]
    labels = joint.sum(dim=1)  # [M, C], the label's distribution given the configuration
    rows = torch.arange(len(weights), device=weights.device)
    if len(weights) * classes <= MAX_CONFIGURATIONS:
        row = rows.repeat_interleave(classes)
        column = torch.arange(classes, device=weights.device).repeat(len(weights))
        weights = (weights[:, None] * labels).flatten()
    else:
        copies = max(1, MAX_CONFIGURATIONS // len(weights))
        row = rows.repeat_interleave(copies)
        # The floor: an impossible configuration, of weight 0, has no distribution to draw from.
        drawn = torch.multinomial(labels[row].clamp_min(1e-30), 1, generator=generator)
        column = drawn[:, 0]
        weights = weights[row] / copies
    posterior = joint[row, :, column]
    return weights, posterior / posterior.sum(dim=1, keepdim=True).clamp_min(1e-30)
