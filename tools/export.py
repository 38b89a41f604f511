"""Writes a finished run's network for use elsewhere: safetensors, ONNX and a model card.

    python -m tools.export RUN --output DIR

DIR/model.safetensors   weights, by the names of resnet_custom.SplitNetwork
DIR/config.json         what it takes to rebuild the network and to prepare its images
DIR/model.onnx          images uint8 [N, C, S, S] -> logits, probabilities; normalisation inside
DIR/README.md           the model card

What was written is read back and compared with the run's own network before DIR is there.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
import json
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from resnet_custom import SplitNetwork
from tools.evaluation import evaluate_split
from tools.model_card import model_card
from tools.run_reader import Run, RunError, add_run_arguments, one_line_errors, open_run
from training.inference import Inference

CHECKED_IMAGES = 128
TOLERANCE = 1e-4  # largest difference of a probability between ONNX and PyTorch, both float32


class PixelsToProbabilities(nn.Module):
    """The network with its normalisation: uint8 [N, C, S, S] to logits and softmax [N, classes]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, inference: Inference) -> None:
        super().__init__()
        self.network = inference.network
        self.register_buffer("scale", 1 / (255 * inference.std.view(-1, 1, 1)))
        self.register_buffer("shift", (inference.mean / inference.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        logits = self.network(images.float() * self.scale - self.shift)
        return logits, logits.softmax(1)


def export(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    folder: Path = arguments.output
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"--output {folder}: exists and is not empty; name a new folder")
    run = open_run(arguments.run, arguments.checkpoint, arguments.data_dir)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise RunError(
            f"--output {folder}: cannot be made ({error.strerror}); name another folder"
        ) from error
    try:
        difference = _write(run, temporary)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(
        f"written: {folder}; ONNX and PyTorch differ by at most {difference:.1e} in the "
        f"probabilities of {min(CHECKED_IMAGES, len(run.splits.val))} validation images"
    )


def _write(run: Run, folder: Path) -> float:
    """All files, checked; the largest difference of a probability between ONNX and PyTorch."""
    inference = dataclasses.replace(
        run.inference,
        network=copy.deepcopy(run.inference.network).cpu(),
        mean=run.inference.mean.cpu(),
        std=run.inference.std.cpu(),
        compute_dtype=torch.float32,
    )
    images = run.splits.val.images[:CHECKED_IMAGES]
    weights = {name: value.contiguous() for name, value in inference.network.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    _check_safetensors(run, inference, images, folder / "model.safetensors")
    _write_onnx(inference, images[:2], folder / "model.onnx")
    difference = _onnx_difference(inference, images, folder / "model.onnx")
    val, test = (evaluate_split(run, split) for split in ("val", "test"))
    config = _config(run, inference, val.temperature)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(run, val, test, difference), encoding="utf-8")
    return difference


def _config(run: Run, inference: Inference, temperature: float) -> dict[str, Any]:
    return {
        "architecture": run.hp.architecture,
        "channels": run.splits.channels,
        "image_size": run.hp.image_size,
        "classes": list(run.splits.class_names),
        "mean": inference.mean.tolist(),
        "std": inference.std.tolist(),
        "temperature": temperature,
        "dropout": run.hp.dropout,
        "uncertainty": run.hp.uncertainty,
        "uncertainty_passes": run.hp.uncertainty_passes,
    }


def _check_safetensors(run: Run, inference: Inference, images: Tensor, file: Path) -> None:
    """Rebuild the network from the file and compare it, bit by bit."""
    rebuilt = SplitNetwork(
        run.hp.architecture, run.splits.num_classes, run.splits.channels, torch.Generator()
    )
    rebuilt.load_state_dict(load_file(file))
    again = dataclasses.replace(
        inference, network=rebuilt.to(memory_format=torch.channels_last).eval()
    )
    if not torch.equal(again.embed(images, "check"), inference.embed(images, "check")):
        raise RunError(f"{file}: other predictions than {run.path}; update safetensors and retry")


def _write_onnx(inference: Inference, example: Tensor, file: Path) -> None:
    network = PixelsToProbabilities(inference).eval()
    options: dict[str, Any]
    if "dynamic_shapes" in inspect.signature(torch.onnx.export).parameters:
        shapes = {"images": {0: torch.export.Dim("batch")}}
        options = {"dynamo": True, "external_data": False, "dynamic_shapes": shapes}
    else:  # before torch 2.5
        options = {"dynamic_axes": {"images": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, about its own internals
        torch.onnx.export(
            network,
            (example,),
            str(file),
            input_names=["images"],
            output_names=["logits", "probabilities"],
            verbose=False,
            **options,
        )


def _onnx_difference(inference: Inference, images: Tensor, file: Path) -> float:
    """The largest difference of a probability between the file and `inference`, on `images`."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"images": images.numpy()})
    expected = inference.logits(inference.embed(images, "check")).softmax(1)
    difference = (torch.from_numpy(found) - expected).abs().max().item()
    if not difference <= TOLERANCE:
        raise RunError(
            f"{file.name}: probabilities differ from PyTorch's by {difference:.1e}, more than "
            f"{TOLERANCE:.0e}; update torch, onnx and onnxruntime and retry"
        )
    return difference


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args(argv)
    return one_line_errors(lambda: export(arguments))


if __name__ == "__main__":
    sys.exit(main())
