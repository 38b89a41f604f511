"""Augmentation: exact where nothing is varied, and what it may vary where something is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.augmentation import Augmentation

NOTHING = Augmentation(False, 0, 0.0, 0.0)
EVERYTHING = Augmentation(True, 2, 0.2, 0.1)


def store(count: int = 6, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_varied_is_the_image() -> None:
    images, indices = store(), torch.tensor([4, 0, 4])
    batch = NOTHING.batch(images, indices, generator())
    assert torch.equal(batch, images[indices].float() / 255)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_flips_and_rotations_are_the_eight_symmetries() -> None:
    images = store(1)
    symmetries = {
        tuple(turned.flatten().tolist())
        for flipped in (images[0], images[0].flip(2))
        for turned in (torch.rot90(flipped, k, (1, 2)) for k in range(4))
    }
    batch = Augmentation(True, 0, 0.0, 0.0).batch(
        images, torch.zeros(200, dtype=torch.int64), generator()
    )
    seen = {tuple((image * 255).round().int().flatten().tolist()) for image in batch}
    assert len(symmetries) == 8
    assert seen == symmetries


def test_crops_are_those_of_the_reflected_image() -> None:
    images = store(1)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect")[0]
    crops = {
        tuple(padded[:, y : y + 8, x : x + 8].int().flatten().tolist())
        for y in range(5)
        for x in range(5)
    }
    batch = Augmentation(False, 2, 0.0, 0.0).batch(
        images, torch.zeros(400, dtype=torch.int64), generator()
    )
    seen = {tuple((image * 255).round().int().flatten().tolist()) for image in batch}
    assert seen == crops


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_and_stain_stay_in_range_and_near(channels: int) -> None:
    images, indices = store(6, channels), torch.arange(6)
    batch = Augmentation(False, 0, 0.1, 0.1).batch(images, indices, generator())
    difference = (batch - images.float() / 255).abs()
    assert 0.005 < difference.mean() < 0.15
    assert batch.min() >= 0
    assert batch.max() <= 1


def test_stain_of_no_change_is_the_image() -> None:
    # The jitter is a range around 1 and 0; its limit shows that unmixing and mixing cancel.
    images, indices = store(), torch.arange(6)
    batch = Augmentation(False, 0, 0.0, 1e-7).batch(images, indices, generator())
    expected = (images.float() / 255).clamp_min(1 / 255)
    torch.testing.assert_close(batch, expected, atol=1e-4, rtol=1e-3)


def test_depends_on_the_generator_alone() -> None:
    images, indices = store(), torch.arange(6)
    state = torch.get_rng_state()
    one = EVERYTHING.batch(images, indices, generator(1))
    assert torch.equal(one, EVERYTHING.batch(images, indices, generator(1)))
    assert not torch.equal(one, EVERYTHING.batch(images, indices, generator(2)))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(images, store())


def test_ranks_make_together_what_one_makes() -> None:
    images, indices = store(), torch.tensor([5, 1, 0, 3, 2, 4])
    whole = EVERYTHING.batch(images, indices, generator(3))
    for rank in range(3):
        part = slice(rank, None, 3)
        mine = EVERYTHING.batch(images, indices, generator(3), part)
        torch.testing.assert_close(mine, whole[part], atol=1e-6, rtol=1e-5)
