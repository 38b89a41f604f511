"""The child process that decodes files: `python -m serving.decoding.child`, started by `pool.py`.

It reads units of messages from its standard input and answers each unit on its standard output.
The system limits its memory and keeps it from writing files. The service kills it when a unit takes
too long.
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import signal
import sys
from dataclasses import dataclass
from typing import Any

from PIL import Image

from serving.decoding.frames import Message, packed, read_unit
from serving.decoding.images import decode_file
from serving.decoding.limits import Limits, RefusedFileError


@dataclass(frozen=True)
class Settings:
    """What all files have in common: the network's input, and the limits."""

    size: int
    channels: int
    limits: Limits

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """As `decoder.Decoder` writes them."""
        values = json.loads(text)
        return cls(values["size"], values["channels"], Limits(**values["limits"]))


# Most files of a service are of one kind, so texts of messages are seldom read or made anew.
read_request = functools.lru_cache(maxsize=16)(json.loads)


def answer(settings: Settings, request: dict[str, Any], data: bytes) -> Message:
    """The message that answers a request: the images of `data`, or why it is refused."""
    limits = settings.limits
    try:
        images = decode_file(
            data,
            request["declared"],
            settings.size,
            settings.channels,
            limits,
            request["preview"],
        )
    except RefusedFileError as error:
        return _refusal(error.status, error.text)
    except MemoryError:
        text = (
            f"decoding takes more than {limits.memory_bytes / 2**30:.1f} GiB; send smaller images"
        )
        return _refusal(413, text)
    described = _described(
        tuple((one.name, one.width, one.height, len(one.preview)) for one in images)
    )
    pixels = b"".join(one.pixels.tobytes() for one in images)
    return described, pixels + b"".join(one.preview for one in images)


def _refusal(status: int, text: str) -> Message:
    return json.dumps({"status": status, "error": text}).encode(), b""


@functools.lru_cache(maxsize=16)
def _described(images: tuple[tuple[str, int, int, int], ...]) -> bytes:
    """Name, width, height and bytes of the preview of each image, as the decoder reads them."""
    return json.dumps({"images": images}).encode()


def main() -> None:
    """Answer requests until the service closes the pipe."""
    settings = Settings.from_json(sys.argv[1])
    memory_bytes = settings.limits.memory_bytes
    with contextlib.suppress(ValueError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group
    # Pillow's own limit is only ever raised: it guards images inside of other images.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, settings.limits.max_pixels)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    # Libraries that print must not disturb the messages.
    sys.stdout = sys.stderr
    while (unit := read_unit(requests)) is not None:
        answers.write(packed([answer(settings, read_request(text), data) for text, data in unit]))
        answers.flush()


if __name__ == "__main__":
    main()
