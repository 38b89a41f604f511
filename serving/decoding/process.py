"""One child process, seen from the service: it is sent units of messages and answers each unit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from serving.decoding.frames import Frames, Message, packed
from serving.decoding.limits import RefusedFileError

# The most that a unit holds. A larger message is a unit of its own.
MESSAGES, BYTES = 16, 2**16


@dataclass
class Job:
    """A message to a child, and the future that gets its answer.

    Attributes:
        is_suspect: a unit that it was in has cost a child; it is sent alone from then on.
    """

    message: Message
    answer: asyncio.Future[Message]
    is_suspect: bool = False

    def refuse(self, error: RefusedFileError) -> None:
        """Raise `error` where the answer is waited for."""
        if not self.answer.done():  # whoever asked may have gone
            self.answer.set_exception(error)


class ChildProcess(asyncio.SubprocessProtocol):
    """A running child and the unit of jobs that it is at.

    A unit is one write to the child and one write back, so that many small messages do not cost a
    change of process each. The child takes the next unit when it has answered the last one.

    Args:
        seconds: that a unit may take.
        answered: called when a unit is answered.
        lost: called once, when the child has died or takes too long, with the reason.
    """

    def __init__(
        self,
        seconds: float,
        answered: Callable[[], None],
        lost: Callable[[ChildProcess, RefusedFileError], None],
    ) -> None:
        self.jobs: list[Job] = []
        self._seconds = seconds
        self._answered = answered
        self._lost = lost
        self.is_lost = False
        self._frames = Frames()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._exited = self._loop.create_future()

    def send(self, unit: list[Job]) -> None:
        """Give the child, which has no jobs, a unit of them."""
        self.jobs = unit
        self._input.write(packed([job.message for job in unit]))
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
        for answers in self._frames.received(data):
            # A child that answers too few or too many fails here, and is killed by the timer.
            pairs = list(zip(self.jobs, answers, strict=True))
            self._stop_timer()
            self.jobs = []
            self._answered()
            for job, answer in pairs:
                if not job.answer.done():  # whoever asked may have gone
                    job.answer.set_result(answer)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """It has closed a pipe, which only its end does."""
        self._crashed()

    def process_exited(self) -> None:
        """It has ended."""
        if not self._exited.done():
            self._exited.set_result(None)
        self._crashed()

    # --- parts -----------------------------------------------------------------------------

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
