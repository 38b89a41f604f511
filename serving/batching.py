"""Runs the images of concurrent requests through the network together.

A worker that is free takes all that wait, up to a batch, and never waits for more to come. So a
lone request is not delayed, and under load the batches grow by themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = tuple[NDArray[Any], ...]


class Batcher:
    """Collects images for a function of batches. Use it as an asynchronous context manager.

    Args:
        function: images uint8 [B, C, S, S] to arrays of B rows each; called in a thread.
        workers: how many threads call it.
        max_batch: images in one call; 1 turns batching off.
        observe: receives the size of every batch.
    """

    def __init__(
        self,
        function: Callable[[NDArray[np.uint8]], Rows],
        workers: int,
        max_batch: int,
        observe: Callable[[int], None],
    ) -> None:
        self._function = function
        self._max_batch = max_batch
        self._observe = observe
        self._waiting: deque[tuple[NDArray[np.uint8], asyncio.Future[Rows]]] = deque()
        self._arrived = asyncio.Event()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="network")
        self._workers = workers
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Batcher:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown()

    async def run(self, images: list[NDArray[np.uint8]]) -> Rows:
        """What the function gives for the images, uint8 [C, S, S] each: arrays of as many rows."""
        loop = asyncio.get_running_loop()
        futures = []
        for image in images:
            future: asyncio.Future[Rows] = loop.create_future()
            self._waiting.append((image, future))
            futures.append(future)
        self._arrived.set()
        try:
            rows = [await future for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return tuple(np.stack(column) for column in zip(*rows, strict=True))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            count = min(len(self._waiting), self._max_batch)
            taken = [self._waiting.popleft() for _ in range(count)]
            batch = [(image, future) for image, future in taken if not future.cancelled()]
            if not batch:
                continue
            self._observe(len(batch))
            stacked = np.stack([image for image, _ in batch])
            try:
                outputs = await loop.run_in_executor(self._threads, self._function, stacked)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for index, (_, future) in enumerate(batch):
                if not future.done():
                    future.set_result(tuple(output[index] for output in outputs))
