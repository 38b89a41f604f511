"""Units of messages between the service and its child processes: JSON and bytes, never a pickle.

A message is some values and some bytes. A unit of messages is the length of its JSON part in 4
bytes, the JSON part, and the bytes of all messages. The JSON part is a list of each message's
values and number of bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

HEADER = struct.Struct(">I")
Message = tuple[dict[str, Any], bytes]


def packed(unit: Sequence[Message]) -> bytes:
    """The bytes of a unit."""
    text = json.dumps([[values, len(data)] for values, data in unit]).encode()
    return b"".join((HEADER.pack(len(text)), text, *(data for _, data in unit)))


def read_unit(stream: BinaryIO) -> list[Message] | None:
    """The next unit, waited for; None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    described = json.loads(stream.read(*HEADER.unpack(header)))
    return [(values, stream.read(length)) for values, length in described]


class Frames:
    """Cuts a stream of bytes, which comes in parts, into units."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._described: list[tuple[dict[str, Any], int]] | None = None  # of the unit that comes

    def received(self, part: bytes) -> Iterator[list[Message]]:
        """Yield the units that `part` completes."""
        self._received += part
        while (unit := self._next_unit()) is not None:
            yield unit

    def _next_unit(self) -> list[Message] | None:
        if self._described is None:
            text = self._take_text()
            if text is None:
                return None
            self._described = json.loads(text)
        if len(self._received) < sum(length for _, length in self._described):
            return None
        unit = [(values, self._take(length)) for values, length in self._described]
        self._described = None
        return unit

    def _take_text(self) -> bytes | None:
        if len(self._received) < HEADER.size:
            return None
        (length,) = HEADER.unpack_from(self._received)
        if len(self._received) < HEADER.size + length:
            return None
        return self._take(HEADER.size + length)[HEADER.size :]

    def _take(self, length: int) -> bytes:
        """The first `length` bytes; what is behind them is not copied."""
        taken = bytes(memoryview(self._received)[:length])
        del self._received[:length]
        return taken
