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

DESCRIBED = ("architecture", "dataset", "image_size", "self_supervised_steps")


def backbone_bytes(weights: Mapping[str, Tensor], hp: Hyperparameters, seed: int) -> bytes:
    """A safetensors file of `weights`, a backbone's `state_dict`, described by `DESCRIBED`."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    origin = {name: str(getattr(hp, name)) for name in DESCRIBED}
    return save(tensors, metadata={"format": "pt", **origin, "seed": str(seed)})


def read_backbone(path: Path, network: SplitNetwork) -> dict[str, Tensor]:
    """The weights in the file at `path`, on the CPU; names and shapes are those of the backbone.

    Raises:
        UserError: the file is missing, is no safetensors file, or belongs to another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"hyperparameters.pretrained_backbone: {path}: cannot be read "
            f"({' '.join(str(error).split())}); give a file that tools.pretrain has written"
        ) from None
    shapes = {name: value.shape for name, value in weights.items()}
    expected = {name: value.shape for name, value in network.backbone.state_dict().items()}
    differing = sorted(
        name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)
    )
    if differing:
        origin = ", ".join(f"{name} {metadata[name]}" for name in DESCRIBED if name in metadata)
        raise UserError(
            f"hyperparameters.pretrained_backbone: {path}: belongs to another network "
            f"({origin or 'no description'}): {differing[0]} differs; "
            "set the same architecture and dataset, or give another file"
        )
    return weights
