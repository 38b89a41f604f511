"""Activation maps (Grad-CAM): where an image speaks for a class.

A network that ends in mean pooling and a linear layer has its class activation maps in the ONNX
file, and they equal Grad-CAM. For other networks, a child process that alone loads torch computes
Grad-CAM. It starts with the first map: `python -m serving.activation FOLDER`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import signal
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.decoding.frames import packed, read_unit
from serving.decoding.limits import RefusedFileError
from serving.decoding.pool import ChildPool
from serving.engine import Engine, OnnxEngine
from serving.exported import WEIGHTS, read_exported

SECONDS = 120.0  # for one map by torch; loading it, before the first, takes most of it
SHOWN_PIXELS = 256  # side of the map


class ActivationMaps:
    """Makes activation maps, one at a time. Use it as an asynchronous context manager.

    Args:
        folder: of the exported model.
        engine: that the service runs.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        self._folder = folder
        self._onnx = engine if isinstance(engine, OnnxEngine) else None
        self._child: ChildPool | None = None
        self._stack = contextlib.AsyncExitStack()
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> ActivationMaps:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def draw(self, image: NDArray[np.uint8], class_number: int) -> bytes:
        """A PNG to lay over the picture of an image, uint8 [C, S, S].

        Raises:
            RefusedFileError: 501, the map needs torch and the project's code, which are not here.
        """
        async with self._lock:
            if self._onnx is None:
                self._onnx = await asyncio.to_thread(OnnxEngine, self._folder)
            if self._onnx.has_evidence:
                maps = await asyncio.to_thread(self._onnx.evidence, image)
                return heat_map(enlarged(maps[class_number], image.shape[-1]))
            return await self._ask_torch(image, class_number)

    async def _ask_torch(self, image: NDArray[np.uint8], class_number: int) -> bytes:
        if self._child is None:
            if not all(importlib.util.find_spec(name) for name in ("torch", "resnet_custom")):
                raise RefusedFileError(
                    501,
                    "activation maps of this network need torch and the project's code; serve it "
                    "from its checkout",
                )
            arguments = ("-m", "serving.activation", str(self._folder.resolve()))
            child = ChildPool(arguments, 1, SECONDS)
            self._child = await self._stack.enter_async_context(child)
        _, png = await self._child.ask(json.dumps(class_number).encode(), image.tobytes())
        return png


def enlarged(evidence: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Evidence [h, w] as a map [size, size] from 0 to 1, as `reporting.grad_cam` enlarges it.

    What speaks against the class is cut off, and the rest is interpolated bilinearly.
    """
    rows, columns = (_bilinear(length, size) for length in evidence.shape)
    result = rows @ np.maximum(evidence, 0) @ columns.T
    return (result / max(float(result.max()), 1e-12)).astype(np.float32)


def _bilinear(length: int, size: int) -> NDArray[np.float64]:
    """Weights [size, length] that interpolate `length` values at `size` pixels."""
    places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    return np.maximum(0, 1 - np.abs(places[:, np.newaxis] - np.arange(length)))


def heat_map(evidence: NDArray[np.float32]) -> bytes:
    """Evidence float32 [S, S] from 0 to 1 as a PNG: orange, as opaque as the evidence is strong."""
    alpha = Image.fromarray((evidence * 200).astype(np.uint8))
    shown = alpha.resize((SHOWN_PIXELS, SHOWN_PIXELS), Image.Resampling.BILINEAR)
    image = Image.new("RGBA", shown.size, (213, 94, 0, 0))
    image.putalpha(shown)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Compute maps with torch until the service closes the pipe."""
    import torch

    from data import normalise
    from reporting.grad_cam import grad_cam
    from serving.network import load_inference

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    model = read_exported(folder)
    inference = load_inference(folder / WEIGHTS, model, torch.device("cpu"))
    shape = (1, model.channels, model.image_size, model.image_size)
    answers = sys.stdout.buffer
    while (unit := read_unit(sys.stdin.buffer)) is not None:
        ((class_number, pixels),) = unit  # they are asked for one at a time
        images = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(shape).copy())
        normalised = normalise(images, inference.mean, inference.std)
        maps = grad_cam(inference.network, normalised, torch.tensor([json.loads(class_number)]))
        answers.write(packed([(b"", heat_map(maps[0].numpy()))]))
        answers.flush()


if __name__ == "__main__":
    main()
