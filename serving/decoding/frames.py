"""Messages between the service and its child processes: JSON and bytes, never a pickle.

A message is the length of its JSON part and of its bytes, 4 bytes each, then both parts.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, BinaryIO

HEADER = struct.Struct(">II")


def packed(values: dict[str, Any], data: bytes = b"") -> bytes:
    """One message."""
    text = json.dumps(values).encode()
    return HEADER.pack(len(text), len(data)) + text + data


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next message, waited for; None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    text_length, data_length = HEADER.unpack(header)
    return json.loads(stream.read(text_length)), stream.read(data_length)


async def receive_message(stream: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """The same without blocking.

    Raises:
        asyncio.IncompleteReadError: the other side ended.
    """
    text_length, data_length = HEADER.unpack(await stream.readexactly(HEADER.size))
    text = await stream.readexactly(text_length)
    return json.loads(text), await stream.readexactly(data_length)
