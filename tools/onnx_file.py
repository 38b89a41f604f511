"""Writes a network as ONNX, its normalisation included, and compares the file with PyTorch."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errors import UserError
from serving.exported import EVIDENCE
from serving.onnx_file import OnnxFile
from training.inference import Inference

OUTPUTS = ("logits", "probabilities", "embeddings")
TOLERANCE = 1e-4  # largest difference of a probability between ONNX and PyTorch, both float32
BATCH_SIZE = 128


class PixelsToProbabilities(nn.Module):
    """The network with its normalisation: uint8 [N, C, S, S] to `OUTPUTS` and, if any, `EVIDENCE`.

    Those are logits and their softmax, [N, classes], and embeddings [N, D], all float32.

    The evidence, float32 [N, classes, h, w], is the class activation map before it is enlarged
    (Zhou et al. 2016, arXiv 1512.04150): the last stage's maps, weighted by the head. It is there
    if the embedding is the mean of these maps. Grad-CAM is then the same map, up to its scale
    (Selvaraju et al. 2017, arXiv 1610.02391, section 3.1), and needs no gradients. It belongs to
    the image as it stands, even if the network averages over rotations.

    Args:
        example: two images or more, uint8 [n, C, S, S].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, inference: Inference, example: Tensor) -> None:
        super().__init__()
        self.network = inference.network
        self.register_buffer("scale", 1 / (255 * inference.std.view(-1, 1, 1)))
        self.register_buffer("shift", (inference.mean / inference.std).view(-1, 1, 1))
        self._stage: list[Tensor] = []
        self._hook = self._watch_last_stage(example)

    @property
    def has_evidence(self) -> bool:
        """Whether there is an output `EVIDENCE`."""
        return self._hook is not None

    def release(self) -> None:
        """Leave the network as it was."""
        if self._hook is not None:
            self._hook.remove()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        embeddings = self.network.embed(images.float() * self.scale - self.shift)
        logits = self.network.head(embeddings)
        outputs = (logits, logits.softmax(1), embeddings)
        if not self.has_evidence:
            return outputs
        weights = self.network.classifier.weight[:, :, None, None]
        return (*outputs, F.conv2d(self._stage[0], weights))

    def _watch_last_stage(self, example: Tensor) -> RemovableHandle | None:
        """Keep what the module returns whose output is pooled to the embedding, if there is one."""
        self._hook = None
        stages: list[tuple[nn.Module, Tensor]] = []

        def note(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
                stages[:] = [(module, output)]

        hooks = [module.register_forward_hook(note) for module in self.network.modules()]
        with torch.inference_mode():
            embeddings = self.network.embed_upright(example.float() * self.scale - self.shift)
        for hook in hooks:
            hook.remove()
        for module, stage in stages:
            means = stage.mean((2, 3))
            if means.shape == embeddings.shape and torch.allclose(means, embeddings, atol=1e-5):
                return module.register_forward_hook(self._keep)
        return None

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._stage[:] = [output]


def write_onnx(inference: Inference, example: Tensor, file: Path) -> None:
    """Write the network of `inference`, which is on the CPU, for any number of images.

    The file has an output `EVIDENCE` if `PixelsToProbabilities` has one.

    Args:
        example: two images or more, uint8 [n, C, S, S].
    """
    network = PixelsToProbabilities(inference, example).eval()
    outputs = [*OUTPUTS, *([EVIDENCE] if network.has_evidence else [])]
    options: dict[str, Any]
    if "dynamic_shapes" in inspect.signature(torch.onnx.export).parameters:
        shapes = {"images": {0: torch.export.Dim("batch")}}
        options = {"dynamo": True, "external_data": False, "dynamic_shapes": shapes}
    else:  # before torch 2.5
        options = {"dynamic_axes": {name: {0: "batch"} for name in ("images", *outputs)}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's, about its own internals
            torch.onnx.export(
                network,
                (example,),
                str(file),
                input_names=["images"],
                output_names=outputs,
                verbose=False,
                **options,
            )
    finally:
        network.release()


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
    onnx = OnnxFile(file)
    found = torch.cat(
        [
            torch.from_numpy(onnx.run(["probabilities"], batch.numpy())[0])
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
