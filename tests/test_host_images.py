"""Images on the host, brought to a device ahead of their use: the logic, on any machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from active_learning import ActiveLearner
from tests.conftest import ask
from training import host_images
from training.host_images import AHEAD, batches_on

CPU = torch.device("cpu")
IMAGES = torch.arange(20 * 3 * 2 * 2, dtype=torch.uint8).view(20, 3, 2, 2)
BATCHES = [torch.tensor(batch) for batch in ([3, 1], [7], [19, 0, 3], [5, 5], [2, 8], [4])]


class Recorder:
    """Copies batches at once; says which were begun, in which thread, and when each was taken."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, batch: Tensor) -> Callable[[], Tensor]:
        self.begun.append(len(self.begun))
        self.threads.add(threading.get_ident())
        return lambda: batch.clone()

    def wait_for(self, count: int) -> None:
        limit = time.monotonic() + 5
        while len(self.begun) < count and time.monotonic() < limit:
            time.sleep(0.001)


@pytest.mark.parametrize("copy", [None, Recorder()])
def test_batches_come_in_order_and_whole(copy: Recorder | None) -> None:
    batches = list(batches_on(CPU, IMAGES, BATCHES, copy))
    assert len(batches) == len(BATCHES)
    for batch, indices in zip(batches, BATCHES, strict=True):
        assert torch.equal(batch, IMAGES[indices])


def test_the_next_batches_are_copied_while_one_is_used() -> None:
    copy = Recorder()
    feed = batches_on(CPU, IMAGES, BATCHES, copy)
    for used in range(len(BATCHES)):
        next(feed)
        expected = min(used + 1 + AHEAD, len(BATCHES))
        copy.wait_for(expected)
        assert len(copy.begun) == expected  # that many ahead, and no more in memory
    assert copy.threads != {threading.get_ident()}


def test_indices_are_asked_for_no_further_ahead() -> None:
    asked: list[int] = []

    def indices() -> Iterator[Tensor]:
        for batch in BATCHES:
            asked.append(len(asked))
            yield batch

    feed = batches_on(CPU, IMAGES, indices(), Recorder())
    assert asked == []
    next(feed)
    assert len(asked) == AHEAD + 1


def test_an_error_of_reading_arrives_where_the_batch_is_used() -> None:
    feed = batches_on(CPU, IMAGES, [BATCHES[0], torch.tensor([99])], Recorder())
    next(feed)
    with pytest.raises((IndexError, RuntimeError)):
        next(feed)


def test_a_feed_that_is_left_ends_its_thread() -> None:
    before = threading.active_count()
    feed = batches_on(CPU, IMAGES, BATCHES, Recorder())
    next(feed)
    assert threading.active_count() == before + 1
    feed.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_run_on_host_images_is_the_same(
    make_learner: Callable[..., ActiveLearner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that images on the host take, down to the weights, without a GPU."""

    def weights(interrupted: bool = False) -> dict[str, Tensor]:
        learner = make_learner(self_supervised_steps=3, self_supervised_batch_size=16)
        learner.pretrain()
        ask(learner)
        for step in range(learner.hp.batches_per_round):
            if interrupted and step == 1:
                learner._planned_round = -1  # as after a resume in the middle of a round
            learner.train_step()
        ask(learner)
        learner.train_step()
        return learner.network.state_dict()

    expected = weights()
    monkeypatch.setattr(host_images, "is_elsewhere", lambda images, device: True)
    monkeypatch.setattr("active_learning.is_elsewhere", lambda images, device: True)
    for found in (weights(), weights(interrupted=True)):
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_batches_for_a_gpu_are_gathered_into_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The asynchronous copy to a GPU needs it; here there is none, so the copy is a recorder."""
    pinned: list[bool] = []
    empty = torch.empty

    def recorded(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        pinned.append(pin_memory)
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", recorded)
    batches = list(batches_on(torch.device("cuda"), IMAGES, BATCHES, Recorder()))
    assert pinned == [True] * len(BATCHES)
    for batch, indices in zip(batches, BATCHES, strict=True):
        assert torch.equal(batch, IMAGES[indices])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_come_without_waiting_for_it() -> None:
    device = torch.device("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(batches_on(device, IMAGES, BATCHES))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch, indices in zip(batches, BATCHES, strict=True):
        assert torch.equal(batch.cpu(), IMAGES[indices])
