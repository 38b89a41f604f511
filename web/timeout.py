"""A time limit for a part of a coroutine. `asyncio.timeout` is missing in Python 3.10."""

from __future__ import annotations

import asyncio
from types import TracebackType


class timeout:  # noqa: N801 (named as asyncio's own)
    """Cancel the body of `async with timeout(seconds)` and raise asyncio.TimeoutError."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._has_expired = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = task.get_loop().call_later(self._seconds, self._expire)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._has_expired and isinstance(error, asyncio.CancelledError):
            raise asyncio.TimeoutError from None

    def _expire(self) -> None:
        self._has_expired = True
        self._task.cancel()
