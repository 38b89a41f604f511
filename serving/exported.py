"""An exported model's folder: its files, and `config.json`, which says what the model is.

`tools.export` writes the folder, the service reads it. Neither torch nor the data set is needed.

    config.json              classes, input, calibration, outlier threshold, training, version
    model.onnx               images uint8 [N, C, S, S] -> logits, probabilities, embeddings and,
                             where the network ends in mean pooling, evidence
    model.safetensors        weights, by the names of resnet_custom.SplitNetwork
    references.safetensors   embeddings float32 [n, D] of the labelled images; absent without data
    README.md                the model card
    Dockerfile, service/     what it takes to serve the folder from a container
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errors import UserError

FORMAT = 3
CONFIG, ONNX, WEIGHTS, REFERENCES = (
    "config.json",
    "model.onnx",
    "model.safetensors",
    "references.safetensors",
)
EVIDENCE = "evidence"  # the output of model.onnx that activation maps are made of


@dataclass(frozen=True)
class OutlierRule:
    """When an image is unlike everything that was labelled.

    Attributes:
        neighbours: how many nearest labelled images count.
        percentile: of validation's distances, which gives the threshold.
        threshold: mean Euclidean distance, in embedding units, above which an image is flagged.
        references: how many labelled images there are.
        validation_images: how many images the percentile comes from.
    """

    neighbours: int
    percentile: float
    threshold: float
    references: int
    validation_images: int


@dataclass(frozen=True)
class Training:
    """Where the model comes from."""

    run: str
    checkpoint: str
    round: int
    dataset: str
    fingerprint: str
    seed: int
    query_strategy: str
    labelled_images: int
    pool_images: int


@dataclass(frozen=True)
class ExportedModel:
    """What `config.json` holds.

    Attributes:
        channels: 1 for grey images, 3 for colour.
        image_size: S, in pixels; images of another size are resized to S x S.
        average_rotations: embeddings and logits are means over four quarter turns of the image.
        classes: their names, in the order of the logits.
        mean, std: of the training images, a value a channel, in units of full brightness.
        temperature: divides the logits before the softmax; fitted on validation.
        outliers: None where no reference embeddings were written.
        version: the first 12 hexadecimal digits of the digest of model.onnx.
    """

    architecture: str
    channels: int
    image_size: int
    average_rotations: bool
    classes: list[str]
    mean: list[float]
    std: list[float]
    temperature: float
    outliers: OutlierRule | None
    training: Training
    version: str
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> ExportedModel:
        """The reverse of `dataclasses.asdict`; TypeError, KeyError or ValueError if damaged."""
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']} is not {FORMAT}")
        outliers = values["outliers"]
        model = cls(
            **{
                **values,
                "outliers": None if outliers is None else OutlierRule(**outliers),
                "training": Training(**values["training"]),
            }
        )
        if model.channels not in (1, 3) or model.image_size < 1 or len(model.classes) < 2:
            raise ValueError("channels, image_size or classes is out of range")
        return model


def is_exported(folder: Path) -> bool:
    """Whether `tools.export` wrote the folder, by the names of its files."""
    return (folder / CONFIG).is_file() and (folder / ONNX).is_file()


def read_exported(folder: Path) -> ExportedModel:
    """The model of an exported folder.

    Raises:
        UserError: the folder is none, damaged, or of another version.
    """
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return ExportedModel.from_mapping(values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{folder}: not a folder that this version exported ({reason}); export the run again "
            "with tools.export"
        ) from error


def read_references(folder: Path, model: ExportedModel) -> NDArray[np.float32] | None:
    """Embeddings of the labelled images, float32 [n, D]; None where there are none.

    Raises:
        UserError: the file is missing or damaged.
    """
    if model.outliers is None:
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / REFERENCES
    try:
        embeddings = load_file(path)["embeddings"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); export the run again") from error
    if len(embeddings) != model.outliers.references:
        raise UserError(f"{path}: does not belong to its {CONFIG}; export the run again")
    return embeddings
