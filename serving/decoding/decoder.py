"""Decodes files in child processes, for a network of one input size."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.decoding.limits import Limits, RefusedFileError
from serving.decoding.pool import ChildPool

# Most files of a service are of one kind, so texts of messages are seldom made or read anew.
_read_answer = functools.lru_cache(maxsize=16)(json.loads)


@functools.lru_cache(maxsize=16)
def _request(declared: str | None, preview: int) -> bytes:
    return json.dumps({"declared": declared, "preview": preview}).encode()


@dataclass(frozen=True)
class ReadImage:
    """One image of a file: uint8 [C, S, S] for the network, and a PNG to look at or nothing."""

    name: str
    width: int
    height: int
    pixels: NDArray[np.uint8]
    preview: bytes


class Decoder:
    """Reads files. Use it as an asynchronous context manager.

    Args:
        size, channels: of the images that the network takes.
        count: of child processes.
    """

    def __init__(self, size: int, channels: int, limits: Limits, count: int = 1) -> None:
        self._shape = (channels, size, size)
        values = {"size": size, "channels": channels, "limits": dataclasses.asdict(limits)}
        arguments = ("-m", "serving.decoding.child", json.dumps(values))
        self._pool = ChildPool(arguments, count, limits.seconds)

    async def __aenter__(self) -> Decoder:
        await self._pool.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.__aexit__()

    async def decode(self, data: bytes, declared: str | None, preview: int) -> list[ReadImage]:
        """All images of a file.

        Args:
            declared: the format that it claims to be, if it does.
            preview: the longest side of a picture to look at, in pixels; 0: none.

        Raises:
            RefusedFileError: it is damaged, too large or of another kind.
        """
        text, content = await self._pool.ask(_request(declared, preview), data)
        answer = _read_answer(text)
        if "error" in answer:
            raise RefusedFileError(answer["status"], answer["error"])
        return self._images(answer["images"], content)

    def _images(
        self, described: list[tuple[str, int, int, int]], content: bytes
    ) -> list[ReadImage]:
        shape = (len(described), *self._shape)
        count = math.prod(shape)
        pixels = np.frombuffer(content, np.uint8, count).reshape(shape)
        images, position = [], count
        for (name, width, height, length), values in zip(described, pixels, strict=True):
            preview = content[position : position + length]
            position += length
            images.append(ReadImage(name, width, height, values, preview))
        return images
