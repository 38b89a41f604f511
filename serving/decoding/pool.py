"""Child processes that work for the service: started, limited in time, killed and replaced."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from serving.decoding.frames import packed
from serving.decoding.limits import RefusedFileError
from serving.decoding.process import Answer, ChildProcess, Job

ROOT = Path(__file__).resolve().parents[2]  # what `serving` is imported from


class ChildPool:
    """A fixed number of child processes that answer messages.

    A child may have several small messages at a time, so it need not wait for the next one after
    each answer. A child that dies or takes too long is replaced. The message that it was at is
    refused; those behind it are given out again. Use the pool as an asynchronous context manager:
    leaving it ends the children.

    Args:
        arguments: of Python, such as `-m serving.decoding.child`.
        count: of children.
        seconds: that an answer may take.
    """

    def __init__(self, arguments: Sequence[str], count: int, seconds: float) -> None:
        self._arguments = arguments
        self._count = count
        self._seconds = seconds
        self._waiting: deque[Job] = deque()
        self._children: list[ChildProcess] = []
        self._starting = 0
        self._tasks: set[asyncio.Task[None]] = set()  # that start and end children

    async def __aenter__(self) -> ChildPool:
        for _ in range(self._count):
            self._children.append(await self._start())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        children, self._children = self._children, []
        for child in children:
            await child.kill()

    async def ask(self, values: dict[str, Any], data: bytes) -> Answer:
        """The answer to a message.

        Raises:
            RefusedFileError: 400, the child died over it; 413, it took too long.
        """
        job = Job(packed(values, data), asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._hand_out()
        return await job.answer

    def _hand_out(self) -> None:
        """Give the jobs that wait to the children, as far as they take them."""
        while self._waiting:
            while len(self._children) + self._starting < self._count:
                self._starting += 1
                self._run(self._replace())
            if not self._children:
                return
            child = min(self._children, key=lambda one: len(one.jobs))
            if not child.takes(self._waiting[0]):
                return
            job = self._waiting.popleft()
            if not job.answer.done():  # whoever asked may have gone
                child.send(job)

    async def _start(self) -> ChildProcess:
        def protocol() -> ChildProcess:
            return ChildProcess(self._seconds, self._hand_out, self._lost)

        _, child = await asyncio.get_running_loop().subprocess_exec(
            protocol, sys.executable, *self._arguments, stderr=None, cwd=ROOT, env=_environment()
        )
        return child

    async def _replace(self) -> None:
        """Start a child for the jobs that wait."""
        try:
            child = await self._start()
            if not child.is_lost:
                self._children.append(child)
        except OSError as error:  # there is no memory or no process left
            if self._waiting:
                text = f"no decoder can be started ({error.strerror}); try again"
                self._waiting.popleft().refuse(RefusedFileError(503, text))
        finally:
            self._starting -= 1
        self._hand_out()

    def _lost(self, child: ChildProcess, error: RefusedFileError) -> None:
        self._run(child.kill())
        if child in self._children:
            self._children.remove(child)
        if child.jobs:
            child.jobs.popleft().refuse(error)
        self._waiting.extendleft(reversed(child.jobs))
        child.jobs.clear()
        self._hand_out()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _environment() -> dict[str, str]:
    """The service's environment without its token; one thread a library, no HDF5 plugins."""
    kept = {name: value for name, value in os.environ.items() if "TOKEN" not in name.upper()}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "HDF5_PLUGIN_PRELOAD": "::",
    }
