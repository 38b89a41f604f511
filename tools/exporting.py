"""Opens a run or checkpoint and writes its network as an exported folder (`serving.exported`).

`tools.export` is the command for it; `tools.serve` exports to a temporary folder and serves that.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save
from torch import Tensor

from errors import UserError
from resnet_custom import SplitNetwork
from run_folder.reader import Model, Run, open_model, open_run
from serving.exported import (
    CONFIG,
    ONNX,
    REFERENCES,
    WEIGHTS,
    ExportedModel,
    Training,
    read_exported,
)
from tools.calibrating import Calibration, calibrate
from tools.container_files import write_container_files
from tools.evaluate.measure import Evaluation, evaluate_split
from tools.image_inputs import find_inputs, read_batches
from tools.model_card import model_card
from tools.onnx_file import Agreement, compare_onnx, write_onnx
from training.inference import Inference
from training.seeds import make_generator

CHECKED_IMAGES = 128


@dataclasses.dataclass(frozen=True)
class Content:
    """What is exported.

    Attributes:
        model: the run's network.
        calibration: None where the data set is not at hand.
        evaluations: on the validation and the test split, for the model card; None: the card has
            the figures that the run noted.
        images: uint8 [n, C, S, S], on which ONNX is compared with PyTorch.
        images_are: what those are, in words.
    """

    model: Model
    calibration: Calibration | None
    evaluations: tuple[Evaluation, Evaluation] | None
    images: Tensor
    images_are: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A run folder or checkpoint folder, which checkpoint of it, and where its data set lies."""

    path: Path
    checkpoint: str = "best"
    data_dir: Path | None = None

    def open(self) -> Model:
        """The network, without the data set.

        Raises:
            UserError: there is none, or it is damaged.
        """
        return open_model(self.path, self.checkpoint)

    def open_with_data(self) -> Run:
        """The network and its data set.

        Raises:
            UserError: one of them is missing or damaged.
        """
        return open_run(self.path, self.checkpoint, self.data_dir)


def content_with_data(source: Source, evaluated: bool) -> Content:
    """Everything, from the run and its data set.

    Args:
        evaluated: measure both splits for the model card, if both have labels.

    Raises:
        UserError: the run or its data set cannot be had.
    """
    try:
        run = source.open_with_data()
    except UserError as error:
        source.open()  # raises its own error where the run is the trouble, and not its data
        raise UserError(f"{error}; or give real images to check on by --images") from error
    evaluations = None
    # People label no test split.
    if evaluated and bool((run.splits.test.labels >= 0).any()):
        evaluations = (evaluate_split(run, "val"), evaluate_split(run, "test"))
    images = run.splits.val.images[:CHECKED_IMAGES]
    return Content(run, calibrate(run), evaluations, images, "validation images")


def content_without_data(source: Source, paths: Sequence[Path] = ()) -> Content:
    """The network alone, to be checked on the images at `paths`, or on random pixels.

    Raises:
        UserError: the run or an image cannot be read.
    """
    model = source.open()
    if paths:
        return Content(model, None, None, _given_images(model, paths), "given images")
    shape = (CHECKED_IMAGES, model.channels, model.hp.image_size, model.hp.image_size)
    generator = make_generator(model.seed, "noise_images")
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Content(model, None, None, noise, "images of random pixels")


def compare_folder(source: Source, paths: Sequence[Path], folder: Path) -> tuple[Agreement, str]:
    """How the ONNX file in `folder` compares with the run, and on what kind of images.

    Args:
        paths: images to compare on; none: all validation images.

    Raises:
        UserError: they differ, or one of them cannot be read.
    """
    exported = read_exported(folder)
    model: Model
    if paths:
        model = source.open()
        images, kind = _given_images(model, paths), "given images"
    else:
        run = source.open_with_data()
        model, images, kind = run, run.splits.val.images, "validation images"
    if exported.training.checkpoint != model.uuid:
        raise UserError(
            f"{folder}: holds checkpoint {exported.training.checkpoint[:8]}, not "
            f"{model.uuid[:8]}; name that one by --checkpoint"
        )
    return compare_onnx(on_cpu(model), images, folder / ONNX), kind


def _given_images(model: Model, paths: Sequence[Path]) -> Tensor:
    """The first images of files and folders, prepared for the network: uint8 [n, C, S, S]."""
    size, channels = model.hp.image_size, model.channels
    batches = read_batches(find_inputs(paths), size, channels, CHECKED_IMAGES)
    return next(batches).images


def check_free(folder: Path) -> None:
    """Raise UserError unless `folder` is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder}: exists and is not empty; name a new folder")


def write_folder(content: Content, folder: Path) -> Agreement:
    """Write and check the whole folder; it is there complete or not at all.

    Raises:
        UserError: the folder cannot be made, or what was written differs from the network.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"--output {folder}: cannot be made ({error.strerror}); name another folder"
        ) from error
    try:
        agreement = _write_files(content, temporary)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return agreement


def on_cpu(model: Model) -> Inference:
    """The network on the CPU in float32, in which exported models compute."""
    return dataclasses.replace(
        model.inference,
        network=copy.deepcopy(model.inference.network).cpu(),
        mean=model.inference.mean.cpu(),
        std=model.inference.std.cpu(),
        compute_dtype=torch.float32,
    )


def _write_files(content: Content, folder: Path) -> Agreement:
    inference = on_cpu(content.model)
    weights = {name: value.contiguous() for name, value in inference.network.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
    _check_weights(content, inference, folder / WEIGHTS)
    example = content.images[torch.arange(2) % len(content.images)]  # one image will do
    write_onnx(inference, example, folder / ONNX)
    agreement = compare_onnx(inference, content.images, folder / ONNX)
    if content.calibration is not None:
        arrays = {"embeddings": content.calibration.references}
        (folder / REFERENCES).write_bytes(save_arrays(arrays))
    exported = _describe(content, inference, folder / ONNX)
    (folder / CONFIG).write_text(exported.to_json(), encoding="utf-8")
    card = model_card(content.model, exported, content.evaluations, agreement, content.images_are)
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_container_files(folder)
    return agreement


def _describe(content: Content, inference: Inference, onnx: Path) -> ExportedModel:
    model, calibration = content.model, content.calibration
    return ExportedModel(
        architecture=model.hp.architecture,
        channels=model.channels,
        image_size=model.hp.image_size,
        average_rotations=model.hp.averages_rotations,
        classes=list(model.class_names),
        mean=inference.mean.tolist(),
        std=inference.std.tolist(),
        temperature=calibration.temperature if calibration else model.temperature,
        outliers=calibration.rule if calibration else None,
        training=Training(
            run=model.path.resolve().name,
            checkpoint=model.uuid,
            round=model.round,
            dataset=model.dataset,
            fingerprint=model.fingerprint,
            seed=model.seed,
            query_strategy=model.hp.query_strategy,
            labelled_images=len(model.pool.labelled),
            pool_images=len(model.pool.labels),
        ),
        version=hashlib.blake2b(onnx.read_bytes(), digest_size=16).hexdigest()[:12],
    )


def _check_weights(content: Content, inference: Inference, file: Path) -> None:
    """Rebuild the network from the file and compare it, bit by bit."""
    model, images = content.model, content.images
    rebuilt = SplitNetwork(
        model.hp.architecture,
        len(model.class_names),
        model.channels,
        torch.Generator(),
        average_rotations=model.hp.averages_rotations,
    )
    rebuilt.load_state_dict(load_file(file))
    again = dataclasses.replace(
        inference, network=rebuilt.to(memory_format=torch.channels_last).eval()
    )
    if not torch.equal(again.embed(images, "check"), inference.embed(images, "check")):
        raise UserError(f"{file}: other predictions than {model.path}; update safetensors")
