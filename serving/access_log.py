"""One JSON line for every request: no names, no tokens, no query strings, nothing of the images."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import datetime, timezone
from typing import TextIO

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
        self._lines: list[str] = []

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
            seconds = time.perf_counter() - start
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.count_request(path, status, seconds)
            line = {
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "client": (scope.get("client") or [""])[0],
                "method": scope["method"],
                "path": path,
                "status": status,
                "milliseconds": round(1000 * seconds, 2),
                "received_bytes": received_bytes,
                "sent_bytes": sent_bytes,
                "images": scope.get(IMAGES, 0),
            }
            if not self._lines:  # all lines of one turn of the event loop are written at once
                asyncio.get_running_loop().call_soon(self._write)
            self._lines.append(json.dumps(line) + "\n")

    def _write(self) -> None:
        self._log.write("".join(self._lines))
        self._log.flush()
        self._lines.clear()
