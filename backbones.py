"""Backbones beside the ResNets: VGG-16 for small images, and torchvision's models for larger ones.

Each ends in an embedding, for `resnet_custom.SplitNetwork` to put its head on. All expect three
channels; grey images are repeated.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import StochasticDepth

from errors import UserError

PREFIX = "torchvision:"
IMAGENET_CLASSES = 1000
# torchvision's models halve an image five times: of fewer pixels, not even 2x2 positions are left.
SMALLEST_IMAGE = 64
BATCH_NORM_MOMENTUM = 0.1  # torch's own default
# What these two have besides: heads halfway, and an initialisation that takes minutes.
EXTRAS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")
}


def torchvision_names() -> list[str]:
    """Names of torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)


def vgg16() -> tuple[nn.Module, int]:
    """VGG-16 with BatchNorm and without its last two max-pools; and its embedding's size.

    A 28x28 image keeps 3x3 positions, where five max-pools would leave none. Mean over positions
    in place of two fully connected layers of 4,096. Simonyan & Zisserman 2015, arXiv 1409.1556.
    """
    features = make_layers(cfgs["D"], batch_norm=True)
    pools = [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    for position in pools[-2:]:
        features[position] = nn.Identity()  # so that all layers keep their numbers
    layers = OrderedDict(features=features, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    return nn.Sequential(layers), 512


def torchvision_backbone(name: str) -> tuple[nn.Module, int]:
    """torchvision's classification model `name` without its last layer; its embedding's size.

    Initial weights are torchvision's, drawn from torch's global generator. Dropout and stochastic
    depth are taken out, as they too draw from that one, at every step. BatchNorms follow their
    batches as fast as everywhere else: with the momentum of 0.0003 that MnasNet has, made for
    hundreds of thousands of steps, their statistics would hardly have moved at a round's end.

    Raises:
        UserError: the model does not end in one linear layer.
    """
    network = torchvision.models.get_model(name, weights=None, **EXTRAS.get(name, {}))
    modules = dict(network.named_modules())
    heads = [
        path
        for path, module in modules.items()
        if isinstance(module, nn.Linear) and module.out_features == IMAGENET_CLASSES
    ]
    if len(heads) != 1:
        raise UserError(
            f"{PREFIX}{name} does not end in one linear layer, so that there is no embedding to "
            f"be had; take another, such as {PREFIX}efficientnet_b0"
        )
    size = modules[heads[0]].in_features
    random = [p for p, m in modules.items() if isinstance(m, (nn.Dropout, StochasticDepth))]
    for path in (*heads, *random):
        parent, _, child = path.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    for module in modules.values():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = BATCH_NORM_MOMENTUM
    return network, size


@functools.cache
def check_torchvision_backbone(name: str, image_size: int) -> None:
    """Raise UserError where `name` cannot embed images of `image_size` pixels.

    Seen by trying: the model is built, and given one black image.
    """
    if image_size < SMALLEST_IMAGE:
        raise UserError(
            f"{PREFIX}{name} is for images of {SMALLEST_IMAGE} pixels or more, not {image_size}; "
            "raise image_size, or take an architecture for small images, such as resnet18"
        )
    with torch.random.fork_rng(devices=[]):
        network, size = torchvision_backbone(name)
    try:
        with torch.inference_mode():
            shape = tuple(network.eval()(torch.zeros(1, 3, image_size, image_size)).shape)
    # Each model says in a way of its own that an image is not of the size it was made for.
    except Exception as error:
        raise UserError(
            f"{PREFIX}{name} does not take images of {image_size} pixels "
            f"({' '.join(str(error).split())[:120]}); most that want a size want image_size: 224"
        ) from error
    if shape != (1, size):
        raise UserError(
            f"{PREFIX}{name} gives {shape} in place of one embedding of {size} numbers; "
            f"take another, such as {PREFIX}efficientnet_b0"
        )
