"""Grad-CAM: where in the image the evidence for a class lies."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from resnet_custom import SplitNetwork


def grad_cam(network: SplitNetwork, images: Tensor, classes: Tensor) -> Tensor:
    """Float32 maps [B, S, S] from 0 to 1: the evidence for `classes` (int64 [B]) in each image.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", arXiv 1610.02391: the maps of the last convolutional stage, each weighted by the
    mean gradient of the class's logit, summed; evidence against the class is cut off. The maps
    are enlarged bilinearly, so they are no finer than that stage (4 x 4 for a 28 x 28 image in a
    ResNet). In a vision transformer the patches that enter its last block replace the stage. A map
    shows the image as it stands, also where predictions average over rotations.

    Args:
        network: in eval mode; it is left as it is.
        images: float32 [B, C, S, S], normalised, on the network's device.
    """
    stages: list[Tensor] = []
    transformer = isinstance(network.backbone, VisionTransformer)

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if isinstance(output, Tensor) and (
            transformer or (output.ndim == 4 and output.shape[2] * output.shape[3] > 1)
        ):
            stages[:] = [output]

    # The last output with more than one position is that of the last stage, before it is pooled.
    # This holds for pooling by a module or a function, and with poolings in earlier blocks.
    watched = network.modules()
    if transformer:
        *_, last_block = network.backbone.get_submodule("encoder.layers").children()
        watched = iter([last_block.get_submodule("ln_1")])
    hooks = [module.register_forward_hook(keep) for module in watched]
    try:
        with torch.enable_grad():
            # The images ask for gradients because no parameter of a frozen backbone does.
            logits = network.head(network.embed_upright(images.detach().requires_grad_()))
            (stage,) = stages
            (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), stage)
    finally:
        for hook in hooks:
            hook.remove()
    maps = stage.detach()
    if transformer:
        maps, gradient = _as_maps(maps), _as_maps(gradient)
    weights = gradient.mean((2, 3), keepdim=True)
    evidence = (weights * maps).sum(1, keepdim=True).relu()
    size = images.shape[-2:]
    enlarged = F.interpolate(evidence, size, mode="bilinear", align_corners=False).squeeze(1)
    return enlarged / enlarged.amax((1, 2), keepdim=True).clamp_min(1e-12)


def _as_maps(tokens: Tensor) -> Tensor:
    """Tokens [B, 1 + h * h, D], the class token first, as maps [B, D, h, h]."""
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
