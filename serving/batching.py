"""Runs the images of concurrent requests through the network together.

A worker that is free takes all that wait, up to a batch, and never waits for more to come. So a
lone request is not delayed, and under load the batches grow by themselves.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")


class Batcher(Generic[Result]):
    """Collects images for a function of batches. Use it as an asynchronous context manager.

    Args:
        function: images uint8 [B, C, S, S] to a list of B results; called in a thread.
        workers: how many threads call it.
        max_batch: images in one call; 1 turns batching off.
        observe: receives the size of every batch, in one of the threads.
    """

    def __init__(
        self,
        function: Callable[[NDArray[np.uint8]], list[Result]],
        workers: int,
        max_batch: int,
        observe: Callable[[int], None],
    ) -> None:
        self._function = function
        self._max_batch = max_batch
        self._observe = observe
        self._arrived: list[tuple[NDArray[np.uint8], asyncio.Future[Result]]] = []
        self._waiting: deque[tuple[NDArray[np.uint8], asyncio.Future[Result]]] = deque()
        self._changed = threading.Condition()  # of `_waiting` and `_is_over`
        self._is_over = False
        self._threads = [
            threading.Thread(target=self._work, name=f"network {number}", daemon=True)
            for number in range(workers)
        ]

    async def __aenter__(self) -> Batcher[Result]:
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    async def run(self, images: list[NDArray[np.uint8]]) -> list[Result]:
        """The function's results for the images, uint8 [C, S, S] each."""
        futures = [self._loop.create_future() for _ in images]
        if not self._arrived:  # what comes in the same turn of the event loop is one batch
            self._loop.call_soon(self._hand_over)
        self._arrived.extend(zip(images, futures, strict=True))
        try:
            return [await future for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def _hand_over(self) -> None:
        """Give the images that have arrived to the threads."""
        with self._changed:
            self._waiting.extend(self._arrived)
            self._changed.notify(len(self._arrived))
        self._arrived.clear()

    def _work(self) -> None:
        """What each thread does: batch after batch, until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_over)
                if not self._waiting:
                    return
                count = min(len(self._waiting), self._max_batch)
                taken = [self._waiting.popleft() for _ in range(count)]
            batch = [(image, future) for image, future in taken if not future.cancelled()]
            if not batch:
                continue
            outcome: list[Result] | Exception
            try:
                outcome = self._function(np.array([image for image, _ in batch]))
            except Exception as error:
                outcome = error
            self._loop.call_soon_threadsafe(_deliver, [future for _, future in batch], outcome)
            self._observe(len(batch))


def _deliver(futures: list[asyncio.Future[Result]], outcome: list[Result] | Exception) -> None:
    """Give each future its result, or all of them the error."""
    for position, future in enumerate(futures):
        if future.done():  # whoever asked has gone
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome[position])
