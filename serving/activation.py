"""Activation maps (Grad-CAM), computed by a child process that alone loads torch.

The service starts it when the first map is asked for: `python -m serving.activation FOLDER`.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from serving.decoding.frames import packed, read_message
from serving.decoding.pool import ChildPool
from serving.exported import WEIGHTS, read_exported

SECONDS = 120.0  # for one map; loading torch, before the first, takes most of it
SHOWN_PIXELS = 256  # side of the map


def activation_pool(folder: Path) -> ChildPool:
    """A pool of one child that answers with maps of the network in `folder`.

    Raises:
        RefusedFileError: 501, torch or the network's code is not here.
    """
    from serving.decoding.limits import RefusedFileError

    if not all(importlib.util.find_spec(name) for name in ("torch", "resnet_custom")):
        raise RefusedFileError(
            501, "activation maps need torch and the project's code; serve from its checkout"
        )
    return ChildPool(("-m", "serving.activation", str(folder.resolve())), 1, SECONDS)


def heat_map(evidence: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """Evidence float32 [S, S] from 0 to 1 as a PNG: orange, as opaque as the evidence is strong."""
    alpha = Image.fromarray((evidence * 200).astype(np.uint8))
    shown = alpha.resize((SHOWN_PIXELS, SHOWN_PIXELS), Image.Resampling.BILINEAR)
    image = Image.new("RGBA", shown.size, (213, 94, 0, 0))
    image.putalpha(shown)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Answer requests until the service closes the pipe."""
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
    while (message := read_message(sys.stdin.buffer)) is not None:
        request, pixels = message
        images = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(shape).copy())
        normalised = normalise(images, inference.mean, inference.std)
        maps = grad_cam(inference.network, normalised, torch.tensor([request["class"]]))
        answers.write(packed({}, heat_map(maps[0].numpy())))
        answers.flush()


if __name__ == "__main__":
    main()
