"""Units of messages between the service and its child processes: JSON and bytes, never a pickle.

A message is a JSON text and some bytes. A unit of messages is their number, the lengths of the two
parts of each, and then all the parts. The number and the lengths have 4 bytes each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import chain
from typing import BinaryIO

NUMBER = struct.Struct(">I")
Message = tuple[bytes, bytes]


def packed(unit: Sequence[Message]) -> bytes:
    """The bytes of a unit."""
    parts = list(chain(*unit))
    lengths = struct.pack(f">{len(parts)}I", *map(len, parts))
    return b"".join((NUMBER.pack(len(unit)), lengths, *parts))


def read_unit(stream: BinaryIO) -> list[Message] | None:
    """The next unit, waited for; None at the end of the stream."""
    number = stream.read(NUMBER.size)
    if len(number) < NUMBER.size:
        return None
    lengths = list(NUMBER.iter_unpack(stream.read(2 * NUMBER.size * NUMBER.unpack(number)[0])))
    parts = [stream.read(length) for (length,) in lengths]
    return list(zip(parts[::2], parts[1::2], strict=True))


class Frames:
    """Cuts a stream of bytes, which comes in parts, into units."""

    def __init__(self) -> None:
        self._received = bytearray()

    def received(self, part: bytes) -> Iterator[list[Message]]:
        """Yield the units that `part` completes."""
        self._received += part
        while (size := self._next_size()) is not None:
            unit = read_unit(BytesIO(self._received[:size]))
            del self._received[:size]
            assert unit is not None
            yield unit

    def _next_size(self) -> int | None:
        """Bytes of the first unit; None: it is not complete."""
        if len(self._received) < NUMBER.size:
            return None
        (number,) = NUMBER.unpack_from(self._received)
        start = NUMBER.size * (1 + 2 * number)  # of the parts
        if len(self._received) < start:
            return None
        lengths = struct.unpack_from(f">{2 * number}I", self._received, NUMBER.size)
        size = start + sum(lengths)
        return size if len(self._received) >= size else None
