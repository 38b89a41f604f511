"""Reads and writes pre-trained backbones as safetensors files.

A file holds the weights, the BatchNorm statistics and, as metadata, the settings that produced
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from errors import UserError
from resnet_custom import SplitNetwork
from training.hyperparameters import Hyperparameters

DESCRIBED = (
    *("architecture", "dataset", "image_size"),
    *("self_supervised_steps", "self_supervised_seed"),
)
LOSS = "loss"  # in the metadata: the last loss that self-supervision reported


def backbone_bytes(weights: Mapping[str, Tensor], hp: Hyperparameters, loss: float) -> bytes:
    """A safetensors file of `weights`, a backbone's `state_dict`, described by `DESCRIBED`.

    loss: the last one that self-supervision reported.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    origin = {name: str(getattr(hp, name)) for name in DESCRIBED}
    return save(tensors, metadata={"format": "pt", **origin, LOSS: repr(loss)})


def read_backbone(path: Path, network: SplitNetwork) -> dict[str, Tensor]:
    """The weights in the file at `path`, on the CPU; names and shapes are those of the backbone.

    Raises:
        UserError: the file is missing, is no safetensors file, or belongs to another network.
    """
    try:
        return read_finished(path, network)[0]
    except UserError as error:
        raise UserError(
            f"hyperparameters.pretrained_backbone: {error}; give a file that tools.pretrain has "
            "written for this architecture and data set"
        ) from None


def read_finished(path: Path, network: SplitNetwork) -> tuple[dict[str, Tensor], float]:
    """The weights, as `read_backbone`, and the last loss that self-supervision reported.

    Raises:
        UserError: as `read_backbone`, without the setting's name and a remedy.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            loss = float(metadata.get(LOSS, "nan"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    shapes = {name: value.shape for name, value in weights.items()}
    expected = {name: value.shape for name, value in network.backbone.state_dict().items()}
    differing = sorted(
        name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)
    )
    if differing:
        origin = ", ".join(f"{name} {metadata[name]}" for name in DESCRIBED if name in metadata)
        raise UserError(
            f"{path}: belongs to another network ({origin or 'no description'}): "
            f"{differing[0]} differs"
        )
    return weights, loss
