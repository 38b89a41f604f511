"""One child process, seen from the service: it is sent messages and answers them in their order."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from serving.decoding.frames import Frames
from serving.decoding.limits import RefusedFileError

# What a child may have before it has answered: so many messages, and so many bytes, which fit into
# a pipe. A larger message is sent alone.
MESSAGES, BYTES = 16, 2**16

Answer = tuple[dict[str, Any], bytes]


@dataclass(frozen=True)
class Job:
    """A message to a child, and the future that gets its answer."""

    message: bytes
    answer: asyncio.Future[Answer]

    def refuse(self, error: RefusedFileError) -> None:
        """Raise `error` where the answer is waited for."""
        if not self.answer.done():  # whoever asked may have gone
            self.answer.set_exception(error)


class ChildProcess(asyncio.SubprocessProtocol):
    """A running child and the jobs that it has.

    Args:
        seconds: that each answer may take.
        answered: called after each answer.
        lost: called once, when the child has died or takes too long, with the refusal of the first
            of its jobs, which is the one that it was at.
    """

    def __init__(
        self,
        seconds: float,
        answered: Callable[[], None],
        lost: Callable[[ChildProcess, RefusedFileError], None],
    ) -> None:
        self.jobs: deque[Job] = deque()
        self._seconds = seconds
        self._answered = answered
        self._lost = lost
        self.is_lost = False
        self._bytes = 0
        self._unsent: list[bytes] = []
        self._frames = Frames()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._exited = self._loop.create_future()

    def takes(self, job: Job) -> bool:
        """Whether the job can be sent now."""
        if not self.jobs:
            return True
        return len(self.jobs) < MESSAGES and self._bytes + len(job.message) <= BYTES

    def send(self, job: Job) -> None:
        """Give the child one more job."""
        self.jobs.append(job)
        self._bytes += len(job.message)
        if not self._unsent:  # what comes in the same turn of the event loop is written at once
            self._loop.call_soon(self._write)
        self._unsent.append(job.message)
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._too_late)

    async def kill(self) -> None:
        """End the child and wait until it is gone."""
        self._stop_timer()
        self._kill()
        await self._exited
        self._transport.close()

    # --- what the event loop calls ---------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The child runs."""
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self._input = cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """A part of its answers is there."""
        for answer in self._frames.received(data):
            job = self.jobs.popleft()
            self._bytes -= len(job.message)
            self._stop_timer()
            if self.jobs:
                self._timer = self._loop.call_later(self._seconds, self._too_late)
            if not job.answer.done():  # whoever asked may have gone
                job.answer.set_result(answer)
            self._answered()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """It has closed a pipe, which only its end does."""
        self._crashed()

    def process_exited(self) -> None:
        """It has ended."""
        if not self._exited.done():
            self._exited.set_result(None)
        self._crashed()

    # --- parts -----------------------------------------------------------------------------

    def _write(self) -> None:
        self._input.write(b"".join(self._unsent))
        self._unsent.clear()

    def _too_late(self) -> None:
        text = f"reading it takes more than {self._seconds:g} s; send a smaller file"
        self._report(RefusedFileError(413, text))

    def _crashed(self) -> None:
        self._report(RefusedFileError(400, "the file crashes its decoder"))

    def _report(self, error: RefusedFileError) -> None:
        self._stop_timer()
        if not self.is_lost:
            self._kill()
            self._lost(self, error)

    def _kill(self) -> None:
        self.is_lost = True
        with contextlib.suppress(ProcessLookupError):
            self._transport.kill()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
