"""One JSON line for every request: no names, no tokens, no query strings, nothing of the images."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import datetime, timezone
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import Metrics

IMAGES = "images_predicted"  # key of an ASGI scope in which a route notes how many there were


class Observed:
    """ASGI middleware that logs and counts every request.

    Args:
        paths: that are counted by name; all others are counted together.
        log: where lines are written.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, paths: set[str], log: TextIO | None = None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths
        self._log = log or sys.stderr
        self._answered: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status, sent_bytes, received_bytes = 500, 0, 0

        async def counting_send(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            sent_bytes += len(message.get("body", b""))
            await send(message)

        async def counting_receive() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            return message

        try:
            await self._app(scope, counting_receive, counting_send)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            answered = {
                "time": datetime.now(timezone.utc),
                "client": (scope.get("client") or [""])[0],
                "method": scope["method"],
                "path": path,
                "status": status,
                "milliseconds": 1000 * (time.perf_counter() - start),
                "received_bytes": received_bytes,
                "sent_bytes": sent_bytes,
                "images": scope.get(IMAGES, 0),
            }
            if not self._answered:
                asyncio.get_running_loop().call_soon(self._record)
            self._answered.append(answered)

    def _record(self) -> None:
        """Count and log what was answered in the last turn of the event loop.

        The event loop sends answers at the end of a turn, so they do not wait for this.
        """
        answered, self._answered = self._answered, []
        for line in answered:
            self._metrics.count_request(line["path"], line["status"], line["milliseconds"] / 1000)
            line["time"] = line["time"].isoformat(timespec="milliseconds")
            line["milliseconds"] = round(line["milliseconds"], 2)
        self._log.write("".join(json.dumps(line) + "\n" for line in answered))
        self._log.flush()
