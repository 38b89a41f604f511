"""The stratified split: nothing lost, duplicates together, every class everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_sources.splitting import SplitRequest, duplicate_groups, stratified_split

REQUEST = SplitRequest(seed=0, validation_fraction=0.1, test_fraction=0.2)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.lists(st.integers(1, 5), min_size=3, max_size=30), min_size=2, max_size=4),
    seed=st.integers(0, 2**32),
    fractions=st.tuples(st.floats(0.01, 0.6), st.floats(0.01, 0.39)),
)
def test_what_every_split_keeps(
    sizes: list[list[int]], seed: int, fractions: tuple[float, float]
) -> None:
    """`sizes`: for each class, how many copies of each of its distinct images there are."""
    labels = np.repeat(np.arange(len(sizes)), [sum(copies) for copies in sizes])
    copies = [count for of_class in sizes for count in of_class]
    groups = np.repeat(np.cumsum([0, *copies[:-1]]), copies)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    labels, groups = labels[shuffled], groups[shuffled]
    names = [str(label) for label in range(len(sizes))]
    request = SplitRequest(seed, *fractions)

    parts = stratified_split(labels, groups, names, request)
    again = stratified_split(labels, groups, names, request)

    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    for part, same in zip(parts, again, strict=True):
        assert np.array_equal(part, same)
        assert np.array_equal(part, np.sort(part))
        assert set(labels[part]) == set(range(len(sizes)))
    train, val, test = (set(groups[part]) for part in parts)
    assert train.isdisjoint(val)
    assert train.isdisjoint(test)
    assert val.isdisjoint(test)


def test_shares_are_those_asked_for_in_every_class() -> None:
    labels = np.repeat([0, 1, 2], [1000, 100, 10])
    train, val, test = stratified_split(labels, np.arange(1110), ["a", "b", "c"], REQUEST)
    assert np.bincount(labels[train]).tolist() == [700, 70, 7]
    assert np.bincount(labels[val]).tolist() == [100, 10, 1]
    assert np.bincount(labels[test]).tolist() == [200, 20, 2]


def test_seeds_differ() -> None:
    labels, groups = np.arange(100) % 2, np.arange(100)
    _, first, _ = stratified_split(labels, groups, ["a", "b"], REQUEST)
    _, second, _ = stratified_split(labels, groups, ["a", "b"], SplitRequest(1, 0.1, 0.2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("count", "splits"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1])])
def test_a_small_class_reaches_the_splits_it_can(count: int, splits: list[int]) -> None:
    labels = np.array([0] * 9 + [1] * count)
    parts = stratified_split(labels, np.arange(len(labels)), ["common", "rare"], REQUEST)
    assert [int((labels[part] == 1).sum()) for part in parts] == splits


def test_images_without_a_label_are_split_like_a_class() -> None:
    labels = np.array([0] * 30 + [1] * 30 + [-1] * 100)
    parts = stratified_split(labels, np.arange(160), ["a", "b"], REQUEST)
    labelled = stratified_split(labels[:60], np.arange(60), ["a", "b"], REQUEST)
    shares = (labels[parts[1]] == -1).sum(), (labels[parts[2]] == -1).sum()
    assert shares == (100 * REQUEST.validation_fraction, 100 * REQUEST.test_fraction)
    for part, expected in zip(parts, labelled, strict=True):
        assert part[part < 60].tolist() == expected.tolist()


def test_equal_images_are_one_group() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    images[3] = images[1]
    images[5] = images[1]
    assert duplicate_groups(images).tolist() == [0, 1, 2, 1, 4, 1]
