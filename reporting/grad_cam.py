"""Grad-CAM: where in the image the evidence for a class lies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_custom import SplitNetwork


def grad_cam(network: SplitNetwork, images: Tensor, classes: Tensor) -> Tensor:
    """Float32 maps [B, S, S] from 0 to 1: the evidence for `classes` (int64 [B]) in each image.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", arXiv 1610.02391: the maps of the last convolutional stage, each weighted by the
    mean gradient of the class's logit, summed; what speaks against the class is cut off. Enlarged
    bilinearly, so no finer than that stage (4 x 4 for a 28 x 28 image in a ResNet).

    Args:
        network: in eval mode; it is left as it is.
        images: float32 [B, C, S, S], normalised, on the network's device.
    """
    pooling = next(m for m in network.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    stages: list[Tensor] = []

    # What the pooling is given is the last stage's output, in every architecture there is.
    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        stages.append(inputs[0])

    hook = pooling.register_forward_pre_hook(keep)
    try:
        with torch.enable_grad():
            chosen = network(images).gather(1, classes.unsqueeze(1)).sum()
            (gradient,) = torch.autograd.grad(chosen, stages[0])
    finally:
        hook.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    evidence = (weights * stages[0].detach()).sum(1, keepdim=True).relu()
    size = images.shape[-2:]
    enlarged = F.interpolate(evidence, size, mode="bilinear", align_corners=False).squeeze(1)
    return enlarged / enlarged.amax((1, 2), keepdim=True).clamp_min(1e-12)
