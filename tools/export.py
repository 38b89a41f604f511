"""Writes a finished run's network for use elsewhere: safetensors, ONNX and a model card.

    python -m tools.export RUN --output DIR [--images image.png folder/ file.npz ...]

DIR/model.safetensors   weights, by the names of resnet_custom.SplitNetwork
DIR/config.json         what it takes to rebuild the network and to prepare its images
DIR/model.onnx          images uint8 [N, C, S, S] -> logits, probabilities; normalisation inside
DIR/README.md           the model card

What was written is read back and compared with the run's own network before DIR is there, on
validation images. Where the data set is not at hand, give real images by --images: the comparison
is on these, and the card has the figures that the run noted, without intervals or temperature.
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

from errors import UserError, exit_status
from resnet_custom import SplitNetwork
from run_folder.reader import Model, Run, add_run_arguments, open_model, open_run
from tools.evaluate.measure import Evaluation, evaluate_split
from tools.image_inputs import find_inputs, read_batches
from tools.model_card import model_card
from training.inference import Inference

Evaluations = tuple[Evaluation, Evaluation]  # on the validation and the test split

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
        raise UserError(f"--output {folder}: exists and is not empty; name a new folder")
    run: Model
    if arguments.images:
        run = open_model(arguments.run, arguments.checkpoint)
        images, evaluations = _images(run, arguments.images), None
    else:
        run, images, evaluations = _with_data(arguments)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"--output {folder}: cannot be made ({error.strerror}); name another folder"
        ) from error
    try:
        difference = _write(run, images, evaluations, temporary)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(
        f"written: {folder}; ONNX and PyTorch differ by at most {difference:.1e} in the "
        f"probabilities of {len(images)} {'given' if arguments.images else 'validation'} images"
    )


def _with_data(arguments: argparse.Namespace) -> tuple[Run, Tensor, Evaluations]:
    """The run, validation images to check on, and both splits measured."""
    try:
        run = open_run(arguments.run, arguments.checkpoint, arguments.data_dir)
    except UserError as error:
        raise UserError(f"{error}; or give real images to check ONNX on by --images") from error
    val, test = (evaluate_split(run, split) for split in ("val", "test"))
    return run, run.splits.val.images[:CHECKED_IMAGES], (val, test)


def _images(run: Model, paths: Sequence[Path]) -> Tensor:
    """The first of the images that are given: uint8 [n, C, S, S]."""
    batches = read_batches(find_inputs(paths), run.hp.image_size, run.channels, CHECKED_IMAGES)
    return next(batches).images


def _write(run: Model, images: Tensor, evaluations: Evaluations | None, folder: Path) -> float:
    """All files, checked; the largest difference of a probability between ONNX and PyTorch."""
    inference = dataclasses.replace(
        run.inference,
        network=copy.deepcopy(run.inference.network).cpu(),
        mean=run.inference.mean.cpu(),
        std=run.inference.std.cpu(),
        compute_dtype=torch.float32,
    )
    weights = {name: value.contiguous() for name, value in inference.network.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    _check_safetensors(run, inference, images, folder / "model.safetensors")
    _write_onnx(inference, images[:2], folder / "model.onnx")
    difference = _onnx_difference(inference, images, folder / "model.onnx")
    config = _config(run, inference, evaluations[0].temperature if evaluations else None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(run, evaluations, difference), encoding="utf-8")
    return difference


def _config(run: Model, inference: Inference, temperature: float | None) -> dict[str, Any]:
    return {
        "architecture": run.hp.architecture,
        "channels": run.channels,
        "image_size": run.hp.image_size,
        "classes": list(run.class_names),
        "mean": inference.mean.tolist(),
        "std": inference.std.tolist(),
        "temperature": temperature,
        "dropout": run.hp.dropout,
        "uncertainty": run.hp.uncertainty,
        "uncertainty_passes": run.hp.uncertainty_passes,
    }


def _check_safetensors(run: Model, inference: Inference, images: Tensor, file: Path) -> None:
    """Rebuild the network from the file and compare it, bit by bit."""
    rebuilt = SplitNetwork(
        run.hp.architecture, len(run.class_names), run.channels, torch.Generator()
    )
    rebuilt.load_state_dict(load_file(file))
    again = dataclasses.replace(
        inference, network=rebuilt.to(memory_format=torch.channels_last).eval()
    )
    if not torch.equal(again.embed(images, "check"), inference.embed(images, "check")):
        raise UserError(f"{file}: other predictions than {run.path}; update safetensors and retry")


def _write_onnx(inference: Inference, example: Tensor, file: Path) -> None:
    network = PixelsToProbabilities(inference).eval()
    options: dict[str, Any]
    if "dynamic_shapes" in inspect.signature(torch.onnx.export).parameters:
        shapes = {"images": {0: torch.export.Dim("batch")}}
        options = {"dynamo": True, "external_data": False, "dynamic_shapes": shapes}
    else:  # before torch 2.5
        names = ("images", "logits", "probabilities")
        options = {"dynamic_axes": {name: {0: "batch"} for name in names}}
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
        raise UserError(
            f"{file.name}: probabilities differ from PyTorch's by {difference:.1e}, more than "
            f"{TOLERANCE:.0e}; update torch, onnx and onnxruntime and retry"
        )
    return difference


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--images", type=Path, nargs="+", help="real images to check on, without the data set"
    )
    arguments = parser.parse_args(argv)
    return exit_status(lambda: export(arguments))


if __name__ == "__main__":
    sys.exit(main())
