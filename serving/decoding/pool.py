"""Child processes that work for the service: started, limited in time, killed and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.decoding.frames import packed, receive_message
from serving.decoding.limits import Limits, RefusedFileError

ROOT = Path(__file__).resolve().parents[2]  # what `serving` is imported from
STREAM_BYTES = 2**20


class ChildPool:
    """A fixed number of child processes, each of which answers one message at a time.

    A child that dies or takes too long is replaced; the others go on. Use it as an asynchronous
    context manager: leaving it ends the children.

    Args:
        arguments: of Python, such as `-m serving.decoding.child`.
        count: of children.
        seconds: that an answer may take.
    """

    def __init__(self, arguments: Sequence[str], count: int, seconds: float) -> None:
        self._arguments = arguments
        self._count = count
        self._seconds = seconds
        self._idle: asyncio.Queue[asyncio.subprocess.Process | None] = asyncio.Queue()
        self._children: set[asyncio.subprocess.Process] = set()

    async def __aenter__(self) -> ChildPool:
        for _ in range(self._count):
            self._idle.put_nowait(await self._start())
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in list(self._children):
            await self._kill(child)

    async def ask(self, values: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """The answer to a message.

        Raises:
            RefusedFileError: 400, the child died or was killed over it.
        """
        async with self._child() as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(packed(values, data))
            await child.stdin.drain()
            return await receive_message(child.stdout)

    @contextlib.asynccontextmanager
    async def _child(self) -> AsyncIterator[asyncio.subprocess.Process]:
        child = await self._idle.get()
        try:
            if child is None or child.returncode is not None:
                child = await self._start()
            async with timeout(self._seconds):
                yield child
        except BaseException as error:
            # Also where the request was cancelled: the child's answer must reach nobody else.
            if child is not None:
                await self._kill(child)
            child = None
            if isinstance(error, asyncio.TimeoutError):
                text = f"reading it takes more than {self._seconds:g} s; send a smaller file"
                raise RefusedFileError(413, text) from None
            if isinstance(error, (OSError, asyncio.IncompleteReadError)):
                raise RefusedFileError(400, "the file crashes its decoder") from error
            raise
        finally:
            self._idle.put_nowait(child)

    async def _start(self) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=STREAM_BYTES,
            cwd=ROOT,
            env=_environment(),
        )
        self._children.add(child)
        return child

    async def _kill(self, child: asyncio.subprocess.Process) -> None:
        self._children.discard(child)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _environment() -> dict[str, str]:
    """The service's environment without its token; one thread a library, no HDF5 plugins."""
    kept = {name: value for name, value in os.environ.items() if "TOKEN" not in name.upper()}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "HDF5_PLUGIN_PRELOAD": "::",
    }


@contextlib.asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """Cancel the body after `seconds` and raise asyncio.TimeoutError (Python 3.10 lacks it)."""
    task = asyncio.current_task()
    assert task is not None
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        yield
    except asyncio.CancelledError:
        if expired:
            raise asyncio.TimeoutError from None
        raise
    finally:
        timer.cancel()


@dataclass(frozen=True)
class ReadImage:
    """One image of a file: uint8 [C, S, S] for the network, and a PNG to look at or nothing."""

    name: str
    width: int
    height: int
    pixels: NDArray[np.uint8]
    preview: bytes


class Decoder:
    """Decodes files in a pool of children, for a network of one input size."""

    def __init__(self, pool: ChildPool, size: int, channels: int, limits: Limits) -> None:
        self._pool = pool
        self._shape = (channels, size, size)
        self._limits = limits

    async def decode(self, data: bytes, declared: str | None, preview: int) -> list[ReadImage]:
        """All images of a file.

        Args:
            declared: the format that it claims to be, if it does.
            preview: the longest side of a picture to look at, in pixels; 0: none.

        Raises:
            RefusedFileError: it is damaged, too large or of another kind.
        """
        channels, size, _ = self._shape
        request = {
            "declared": declared,
            "size": size,
            "channels": channels,
            "preview": preview,
            "limits": dataclasses.asdict(self._limits),
        }
        answer, content = await self._pool.ask(request, data)
        if "error" in answer:
            raise RefusedFileError(answer["status"], answer["error"])
        return self._images(answer["images"], content)

    def _images(self, described: list[dict[str, Any]], content: bytes) -> list[ReadImage]:
        shape = (len(described), *self._shape)
        count = int(np.prod(shape))
        pixels = np.frombuffer(content, np.uint8, count).reshape(shape)
        images, position = [], count
        for one, values in zip(described, pixels, strict=True):
            preview = content[position : position + one["preview"]]
            position += one["preview"]
            images.append(ReadImage(one["name"], one["width"], one["height"], values, preview))
        return images


def decoder_pool(limits: Limits, count: int) -> ChildPool:
    """Children that decode files within `limits`."""
    arguments = ("-m", "serving.decoding.child", str(limits.memory_bytes))
    return ChildPool(arguments, count, limits.seconds)
