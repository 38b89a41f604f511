"""The pictures that each round sends to TensorBoard: what is among them, and their bounds."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from PIL import Image

from reporting.round_pictures import RoundEnd, round_pictures
from resnet_custom import SplitNetwork
from training.inference import Inference

NAMES = {
    "queried", "queried_classes", "map_of_the_pool", "confusion_matrix", "precision_and_recall",
    "roc_curves", "reliability", "mistakes", "grad_cam",
}  # fmt: skip


def made_up(classes: int, pool: int = 300, val: int = 200) -> RoundEnd:
    """Two rounds of a third of the pool each, random images and random predictions."""
    generator = torch.Generator().manual_seed(0)
    network = SplitNetwork("small_cnn", classes, 3, generator).eval()
    rounds = torch.arange(pool) % 3 - 1
    labels = torch.randint(0, classes, (pool,), generator=generator)
    return RoundEnd(
        round=1,
        seed=0,
        class_names=tuple(f"a class with a long name, number {c}" for c in range(classes)),
        val_images=torch.randint(0, 256, (val, 3, 12, 12), dtype=torch.uint8, generator=generator),
        val_labels=torch.arange(val) % classes,
        logits=torch.randn(val, classes, generator=generator),
        pool_images=torch.randint(
            0, 256, (pool, 3, 12, 12), dtype=torch.uint8, generator=generator
        ),
        acquired_round=rounds,
        labels=labels.where(rounds >= 0, -1),
        inference=Inference(network, torch.full((3,), 0.5), torch.ones(3), torch.float32, 64),
    )


@pytest.mark.parametrize("classes", [2, 60])
def test_bounded_whatever_the_number_of_classes(classes: int) -> None:
    pictures = dict(round_pictures(made_up(classes)))
    assert set(pictures) == NAMES
    for name, png in pictures.items():
        with Image.open(io.BytesIO(png)) as image:
            assert image.width * image.height < 1.5e6, name
            assert image.convert("L").getextrema()[0] < 100, name
    assert sum(map(len, pictures.values())) < 1.5e6


def test_nothing_wrong_and_nothing_random() -> None:
    end = made_up(3)
    right = 5.0 * torch.nn.functional.one_hot(end.val_labels, 3)
    end = dataclasses.replace(end, logits=right)
    before = torch.random.get_rng_state()
    first = dict(round_pictures(end))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert set(first) == NAMES - {"mistakes"}
    assert dict(round_pictures(end)) == first
