"""Messages between the service and its child processes: JSON and bytes, never a pickle.

A message is the length of its JSON part and of its bytes, 4 bytes each, then both parts.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
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


class Frames:
    """Cuts a stream of bytes, which comes in parts, into messages."""

    def __init__(self) -> None:
        self._received = bytearray()

    def received(self, part: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield the messages that `part` completes."""
        self._received += part
        while len(self._received) >= HEADER.size:
            text_length, data_length = HEADER.unpack_from(self._received)
            text_end = HEADER.size + text_length
            end = text_end + data_length
            if len(self._received) < end:
                return
            values = json.loads(self._received[HEADER.size : text_end])
            data = bytes(self._received[text_end:end])
            del self._received[:end]
            yield values, data
