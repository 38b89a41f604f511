"""Query strategies written the slow and obvious way, in NumPy float64, for tests to compare with.

They all return positions 0..n-1; of equal values the smaller position wins.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def ranking(values: Array, k: int) -> list[int]:
    """Positions of the k largest values, best first."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def entropy_of(distribution: Array) -> float:
    return -sum(float(p) * math.log(p) for p in distribution if p > 0)


def entropies(probabilities: Array) -> Array:
    return np.array([entropy_of(p) for p in probabilities.mean(axis=0)])


def margins(probabilities: Array) -> Array:
    return np.array([1 - (sorted(p)[-1] - sorted(p)[-2]) for p in probabilities.mean(axis=0)])


def least_confidences(probabilities: Array) -> Array:
    return np.array([1 - max(p) for p in probabilities.mean(axis=0)])


def mutual_informations(probabilities: Array) -> Array:
    passes, n, _ = probabilities.shape
    return np.array(
        [
            entropy_of(probabilities[:, i].mean(axis=0))
            - sum(entropy_of(probabilities[t, i]) for t in range(passes)) / passes
            for i in range(n)
        ]
    )


def squared_distance(a: Array, b: Array) -> float:
    return float(((a - b) ** 2).sum())


def nearest_squared(points: Array, centres: Array) -> Array:
    """Squared distance of each point to the nearest centre; inf where there is none."""
    nearest = np.full(len(points), np.inf)
    for centre in centres:
        nearest = np.minimum(nearest, ((points - centre) ** 2).sum(axis=1))
    return nearest


def k_center(points: Array, labelled: Array, k: int, weights: Array | None = None) -> list[int]:
    """Greedy k-center, one pick at a time; the weights multiply the squared distances.

    With nothing labelled, it starts at the point nearest to the (lower) median of every coordinate.
    """
    weights = np.ones(len(points)) if weights is None else weights
    picked: list[int] = []
    if len(labelled) == 0 and k > 0:
        middle = np.sort(points, axis=0)[(len(points) - 1) // 2]
        picked = [int(np.argmin(((points - middle) ** 2).sum(axis=1)))]
    while len(picked) < k:
        nearest = nearest_squared(points, np.concatenate([labelled, points[picked]])) * weights
        nearest[picked] = -1
        picked.append(int(np.argmax(nearest)))
    return picked


def worst_regret(points: Array, labelled: Array, picked: list[int]) -> float:
    """The most by which a pick, in order, fell short of the farthest point at its time, relative
    to the spread of the points. Zero for a greedy k-center run, whichever way it breaks ties.
    """
    spread = float(((points - points.mean(axis=0)) ** 2).sum(axis=1).max()) or 1.0
    worst = 0.0
    for step in range(0 if len(labelled) else 1, len(picked)):
        centres = np.concatenate([labelled, points[picked[:step]]])
        nearest = nearest_squared(points, centres)
        worst = max(worst, float(nearest.max() - nearest[picked[step]]) / spread)
    return worst


def k_means(
    points: Array, seeds: list[int], rounds: int, weights: Array | None = None
) -> tuple[list[int], Array]:
    """Lloyd's algorithm: the cluster of each point, and the means."""
    weights = np.ones(len(points)) if weights is None else weights
    centres = points[seeds].copy()

    def assign() -> list[int]:
        return [int(np.argmin(((p - centres) ** 2).sum(axis=1))) for p in points]

    owner = assign()
    for _ in range(rounds):
        for j in range(len(centres)):
            members = [i for i in range(len(points)) if owner[i] == j]
            if weights[members].sum() > 0:
                centres[j] = np.average(points[members], axis=0, weights=weights[members])
        previous, owner = owner, assign()
        if owner == previous:
            break
    return owner, centres


def joint_information(probabilities: Array, chosen: list[int]) -> float:
    """I(labels of the chosen; weights): over all label configurations, probabilities [T, n, C]."""
    passes, _, classes = probabilities.shape
    within = sum(entropy_of(probabilities[t, i]) for t in range(passes) for i in chosen) / passes
    joint = []
    for labels in itertools.product(range(classes), repeat=len(chosen)):
        given_pass = [
            math.prod(float(probabilities[t, i, y]) for i, y in zip(chosen, labels, strict=True))
            for t in range(passes)
        ]
        joint.append(sum(given_pass) / passes)
    return entropy_of(np.array(joint)) - within


def batch_bald(probabilities: Array, k: int) -> list[int]:
    """Greedy maximisation of the joint information."""
    picked: list[int] = []
    while len(picked) < k:
        others = [i for i in range(probabilities.shape[1]) if i not in picked]
        picked.append(max(others, key=lambda i: joint_information(probabilities, [*picked, i])))
    return picked


def typicality(points: Array, owner: list[int], neighbours: int) -> Array:
    """One over the mean distance to the nearest neighbours in the same cluster; 0 if alone."""
    values = np.zeros(len(points))
    for i in range(len(points)):
        distances = sorted(
            math.sqrt(squared_distance(points[i], points[j]))
            for j in range(len(points))
            if j != i and owner[j] == owner[i]
        )[:neighbours]
        values[i] = len(distances) / sum(distances) if distances else 0.0
    return values


def max_cover(points: Array, labelled: Array, radius: float, k: int) -> list[int]:
    """Greedy maximum coverage by balls; stops where nothing is left to cover."""
    n = len(points)
    balls = [
        {j for j in range(n) if i == j or math.dist(points[i], points[j]) < radius}
        for i in range(n)
    ]
    uncovered = {i for i in range(n) if all(math.dist(points[i], x) >= radius for x in labelled)}
    picked: list[int] = []
    while len(picked) < k and uncovered:
        picked.append(max(range(n), key=lambda i: (len(balls[i] & uncovered), -i)))
        uncovered -= balls[picked[-1]]
    return picked


def mean_cosine(points: Array) -> Array:
    def cosine(a: Array, b: Array) -> float:
        return float(a @ b) / (math.hypot(*a) * math.hypot(*b))

    return np.array([sum(cosine(a, b) for b in points) / len(points) for a in points])


def unit(points: Array) -> Array:
    return np.array([point / math.hypot(*point) for point in points])


def herding_gains(
    points: Array, labelled: Array, picked: list[int], radius: float, weights: Array
) -> Array:
    """What each vector would add to the weighted similarity to the nearest labelled or picked one.

    The gain of a picked vector is -1.
    """
    points, labelled = unit(points), unit(labelled)
    n = len(points)
    similarity = [[math.exp(-squared_distance(a, b) / radius**2) for b in points] for a in points]
    covered = [
        max(
            [math.exp(-squared_distance(x, y) / radius**2) for y in labelled]
            + [similarity[i][j] for j in picked],
            default=0.0,
        )
        for i, x in enumerate(points)
    ]
    gains = [
        sum(weights[i] * max(0.0, similarity[i][j] - covered[i]) for i in range(n))
        for j in range(n)
    ]
    return np.array([-1.0 if j in picked else gain for j, gain in enumerate(gains)])


def expected_predictive_gain(probabilities: Array, targets: list[int]) -> Array:
    """EPIG: mean over targets of the mutual information of two labels, [T, n, C]."""
    passes, n, classes = probabilities.shape
    marginal = probabilities.mean(axis=0)
    values = np.zeros(n)
    for i in range(n):
        for target in targets:
            for y in range(classes):
                for z in range(classes):
                    joint = (
                        sum(
                            probabilities[t, i, y] * probabilities[t, target, z]
                            for t in range(passes)
                        )
                        / passes
                    )
                    apart = marginal[i, y] * marginal[target, z]
                    values[i] += joint * math.log(joint / apart) / len(targets)
    return values


def spread_margin(probabilities: Array, points: Array, labelled: Array, k: int) -> list[int]:
    """Greedy picks by (1 - margin) * (1 - exp(-d^2 / r^2)), one at a time."""
    points, labelled = unit(points), unit(labelled)
    between = [
        nearest_squared(labelled[[i]], np.delete(labelled, i, 0))[0] for i in range(len(labelled))
    ]
    radius = np.quantile(between, 0.05)
    picked: list[int] = []
    while len(picked) < k:
        nearest = nearest_squared(points, np.concatenate([labelled, points[picked]]))
        gains = margins(probabilities) * (1 - np.exp(-nearest / radius))
        gains[picked] = -1
        picked.append(int(np.argmax(gains)))
    return picked


def falcun_chances(probabilities: Array, k: int, gamma: float) -> dict[tuple[int, ...], float]:
    """The chance of every ordered k-tuple of picks under FALCUN; probabilities [n, C]."""
    n = len(probabilities)
    uncertainty = margins(probabilities[None])
    chances: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(n), k):
        chance, distance = 1.0, uncertainty.copy()
        for step, choice in enumerate(order):
            mass = (uncertainty + distance) ** gamma
            mass[list(order[:step])] = 0
            chance *= mass[choice] / mass.sum()
            apart = abs(probabilities - probabilities[choice]).sum(axis=1)
            distance = np.minimum(distance, apart)
            distance = distance - distance.min()
            distance = distance / max(distance.max(), 1e-12)
        chances[order] = chance
    return chances
