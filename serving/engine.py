"""Runs the network: ONNX Runtime, or torch where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from errors import UserError
from serving.exported import EVIDENCE, ONNX, WEIGHTS, ExportedModel
from serving.onnx_file import OnnxFile

ENGINES = ("onnx", "torch")
Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]


class Engine(Protocol):
    """Anything that runs the network. Several threads may call it at the same time."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Images uint8 [B, C, S, S] to logits [B, classes] and embeddings [B, D], float32."""


class OnnxEngine:
    """ONNX Runtime on the CPU, with one thread for each call."""

    def __init__(self, folder: Path) -> None:
        self._file = OnnxFile(folder / ONNX)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Engine`."""
        logits, embeddings = self._file.run(["logits", "embeddings"], images)
        return logits, embeddings

    @property
    def has_evidence(self) -> bool:
        """Whether `evidence` can be called: the network ends in mean pooling and a linear layer."""
        return EVIDENCE in self._file.outputs

    def evidence(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class activation maps float32 [classes, h, w] of one image uint8 [C, S, S]."""
        (maps,) = self._file.run([EVIDENCE], image[np.newaxis])
        evidence: NDArray[np.float32] = maps[0]
        return evidence


class TorchEngine:
    """PyTorch in float32, on a GPU where there is one, with one thread on a CPU."""

    def __init__(self, folder: Path, model: ExportedModel) -> None:
        import torch

        from serving.network import load_inference

        torch.set_num_threads(1)
        self._torch = torch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._inference = load_inference(folder / WEIGHTS, model, torch.device(device))

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Engine`."""
        embeddings = self._inference.embed_batch(self._torch.from_numpy(images))
        logits = self._inference.logits(embeddings)
        return logits.cpu().numpy(), embeddings.cpu().numpy()


def load_engine(name: str, folder: Path, model: ExportedModel) -> Engine:
    """The engine called `name`, one of `ENGINES`, with an exported model loaded.

    Raises:
        UserError: a file is missing or damaged, or torch is not installed.
    """
    if name == "onnx":
        return OnnxEngine(folder)
    try:
        return TorchEngine(folder, model)
    except ImportError as error:
        raise UserError(
            f"--engine torch: {error.name} is not installed; install torch or use --engine onnx"
        ) from error
