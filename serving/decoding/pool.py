"""Child processes that work for the service: started, limited in time, killed and replaced."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from serving.decoding.frames import Message
from serving.decoding.limits import RefusedFileError
from serving.decoding.process import BYTES, MESSAGES, ChildProcess, Job

ROOT = Path(__file__).resolve().parents[2]  # what `serving` is imported from


class ChildPool:
    """A fixed number of child processes that answer messages.

    A child that is free takes the messages that wait as one unit. A child that dies or takes too
    long is replaced. Its message is refused; of a unit of several, each is sent again alone, so
    that only the one that is to blame is refused. Use the pool as an asynchronous context manager:
    leaving it ends the children.

    Args:
        arguments: of Python, such as `-m serving.decoding.child`.
        count: of children.
        seconds: that a unit may take.
    """

    def __init__(self, arguments: Sequence[str], count: int, seconds: float) -> None:
        self._arguments = arguments
        self._count = count
        self._seconds = seconds
        self._waiting: deque[Job] = deque()
        self._children: list[ChildProcess] = []
        self._starting = 0
        self._is_handing_out = False
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

    async def ask(self, text: bytes, data: bytes) -> Message:
        """The answer to a message of a JSON text and some bytes.

        Raises:
            RefusedFileError: 400, the child died over it; 413, it took too long.
        """
        loop = asyncio.get_running_loop()
        job = Job((text, data), loop.create_future())
        self._waiting.append(job)
        if not self._is_handing_out:  # what comes in the same turn of the event loop is one unit
            self._is_handing_out = True
            loop.call_soon(self._hand_out)
        return await job.answer

    def _hand_out(self) -> None:
        """Give the jobs that wait to the children that are free."""
        self._is_handing_out = False
        while self._waiting:
            while len(self._children) + self._starting < self._count:
                self._starting += 1
                self._run(self._replace())
            child = next((one for one in self._children if not one.jobs), None)
            if child is None:
                return
            if unit := self._next_unit():
                child.send(unit)

    def _next_unit(self) -> list[Job]:
        """Take the jobs that are sent together next; none, if nobody waits for an answer."""
        unit: list[Job] = []
        size = 0
        while self._waiting and len(unit) < MESSAGES:
            job = self._waiting[0]
            if job.answer.done():  # whoever asked has gone
                self._waiting.popleft()
                continue
            size += len(job.message[1])
            if unit and (size > BYTES or job.is_suspect):
                break
            unit.append(self._waiting.popleft())
            if job.is_suspect:
                break
        return unit

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
        jobs, child.jobs = child.jobs, []
        if len(jobs) == 1:
            jobs[0].refuse(error)
        else:
            for job in jobs:
                job.is_suspect = True
            self._waiting.extendleft(reversed(jobs))
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
