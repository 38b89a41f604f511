"""The exported network in torch: for `--engine torch` and for activation maps."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from errors import UserError
from resnet_custom import SplitNetwork
from serving.exported import ExportedModel
from training.inference import Inference

BATCH_SIZE = 128


def load_inference(weights: Path, model: ExportedModel, device: torch.device) -> Inference:
    """The network of an exported folder, in float32 and eval mode, on `device`.

    Raises:
        UserError: the weights are missing, damaged or of another network.
    """
    network = SplitNetwork(
        model.architecture,
        len(model.classes),
        model.channels,
        torch.Generator(),
        average_rotations=model.average_rotations,
    )
    try:
        network.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{weights}: cannot be loaded ({reason}); export again") from error
    return Inference(
        network=network.to(device).to(memory_format=torch.channels_last).eval(),
        mean=torch.tensor(model.mean, device=device),
        std=torch.tensor(model.std, device=device),
        compute_dtype=torch.float32,
        batch_size=BATCH_SIZE,
    )
