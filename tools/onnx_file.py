"""Writes a network as ONNX, its normalisation included, and compares the file with PyTorch."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from errors import UserError
from training.inference import Inference

OUTPUTS = ("logits", "probabilities", "embeddings")
TOLERANCE = 1e-4  # largest difference of a probability between ONNX and PyTorch, both float32
BATCH_SIZE = 128


class PixelsToProbabilities(nn.Module):
    """The network with its normalisation: uint8 [N, C, S, S] to `OUTPUTS`.

    Those are logits and their softmax, [N, classes], and embeddings [N, D], all float32.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, inference: Inference) -> None:
        super().__init__()
        self.network = inference.network
        self.register_buffer("scale", 1 / (255 * inference.std.view(-1, 1, 1)))
        self.register_buffer("shift", (inference.mean / inference.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        embeddings = self.network.embed(images.float() * self.scale - self.shift)
        logits = self.network.head(embeddings)
        return logits, logits.softmax(1), embeddings


def write_onnx(inference: Inference, example: Tensor, file: Path) -> None:
    """Write the network of `inference`, which is on the CPU, for any number of images.

    Args:
        example: two images or more, uint8 [n, C, S, S].
    """
    network = PixelsToProbabilities(inference).eval()
    options: dict[str, Any]
    if "dynamic_shapes" in inspect.signature(torch.onnx.export).parameters:
        shapes = {"images": {0: torch.export.Dim("batch")}}
        options = {"dynamo": True, "external_data": False, "dynamic_shapes": shapes}
    else:  # before torch 2.5
        options = {"dynamic_axes": {name: {0: "batch"} for name in ("images", *OUTPUTS)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, about its own internals
        torch.onnx.export(
            network,
            (example,),
            str(file),
            input_names=["images"],
            output_names=list(OUTPUTS),
            verbose=False,
            **options,
        )


@dataclass(frozen=True)
class Agreement:
    """How ONNX and PyTorch compare on some images.

    Attributes:
        images: how many were compared.
        difference: the largest difference of a probability.
        other_classes: how many images get another likeliest class.
    """

    images: int
    difference: float
    other_classes: int

    def __str__(self) -> str:
        return (
            f"ONNX and PyTorch differ by at most {self.difference:.1e} in a probability, and in "
            f"the class of {self.other_classes} of {self.images} images"
        )


def compare_onnx(inference: Inference, images: Tensor, file: Path) -> Agreement:
    """Run an ONNX file and `inference`, in float32, on the same images, uint8 [n, C, S, S].

    Raises:
        UserError: a probability differs by more than `TOLERANCE`, or the file cannot be loaded.
    """
    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common type for damaged files
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: cannot be loaded ({reason}); export the run again") from error
    found = torch.cat(
        [
            torch.from_numpy(session.run(["probabilities"], {"images": batch.numpy()})[0])
            for batch in images.split(BATCH_SIZE)
        ]
    )
    expected = inference.logits(inference.embed(images, "checking ONNX")).softmax(1).cpu()
    difference = (found - expected).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"{file}: probabilities differ from PyTorch's by {difference:.1e}, more than "
            f"{TOLERANCE:.0e}; update torch, onnx and onnxruntime and export again"
        )
    other_classes = int((found.argmax(1) != expected.argmax(1)).sum())
    return Agreement(len(images), difference, other_classes)
