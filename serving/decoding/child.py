"""The child process that decodes files: `python -m serving.decoding.child`, started by `pool.py`.

It reads messages from its standard input and answers on its standard output. The system limits
its memory and keeps it from writing files. The service kills it when a file takes too long.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
from typing import Any

from serving.decoding.frames import packed, read_message
from serving.decoding.images import DecodedImage, decode_file
from serving.decoding.limits import Limits, RefusedFileError


def answer(request: dict[str, Any], data: bytes) -> bytes:
    """The message that answers a request: the images of `data`, or why it is refused."""
    limits = Limits(**request["limits"])
    try:
        images = decode_file(
            data,
            request["declared"],
            request["size"],
            request["channels"],
            limits,
            request["preview"],
        )
    except RefusedFileError as error:
        return packed({"status": error.status, "error": error.text})
    except MemoryError:
        text = (
            f"decoding takes more than {limits.memory_bytes / 2**30:.1f} GiB; send smaller images"
        )
        return packed({"status": 413, "error": text})
    return _packed_images(images)


def _packed_images(images: list[DecodedImage]) -> bytes:
    described = [
        {"name": one.name, "width": one.width, "height": one.height, "preview": len(one.preview)}
        for one in images
    ]
    pixels = b"".join(one.pixels.tobytes() for one in images)
    return packed({"images": described}, pixels + b"".join(one.preview for one in images))


def main() -> None:
    """Answer requests until the service closes the pipe."""
    memory_bytes = int(sys.argv[1])
    with contextlib.suppress(ValueError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    # Libraries that print must not disturb the messages.
    sys.stdout = sys.stderr
    while (message := read_message(requests)) is not None:
        answers.write(answer(*message))
        answers.flush()


if __name__ == "__main__":
    main()
