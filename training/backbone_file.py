"""Pre-trained backbones as safetensors files: weights, BatchNorm statistics, and where from."""

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
    """A safetensors file of a backbone's `state_dict`, which says where it is from."""
    whole = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    origin = {name: str(getattr(hp, name)) for name in DESCRIBED}
    return save(whole, metadata={"format": "pt", **origin, "seed": str(seed)})


def read_backbone(path: Path, network: SplitNetwork) -> dict[str, Tensor]:
    """The weights in the file at `path`, on the CPU, all of them and of the backbone's shapes.

    Raises:
        UserError: no such file, no safetensors, or the weights of another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"hyperparameters.pretrained_backbone: {path}: cannot be read "
            f"({' '.join(str(error).split())}); give a file that tools.pretrain has written"
        ) from None
    wanted = network.backbone.state_dict()
    differing = sorted(
        name
        for name in wanted.keys() | found.keys()
        if name not in wanted or name not in found or wanted[name].shape != found[name].shape
    )
    if differing:
        what = ", ".join(f"{name} {metadata[name]}" for name in DESCRIBED if name in metadata)
        raise UserError(
            f"hyperparameters.pretrained_backbone: {path}: of another network "
            f"({what or 'no description'}), {differing[0]} differs; "
            "set architecture and dataset as they were there, or give another file"
        )
    return found
