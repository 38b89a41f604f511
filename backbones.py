"""Backbones other than the custom ResNets: small ones for CPUs, VGG-16, and torchvision's models.

Each function returns a backbone and the size of its embedding, for `resnet_custom.SplitNetwork` to
put a head on. The registry of all architectures is in resnet_custom.py.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import StochasticDepth

from errors import UserError

PREFIX = "torchvision:"
IMAGENET_CLASSES = 1000
# torchvision's models halve an image five times: below this, not even 2x2 positions would remain.
SMALLEST_IMAGE = 64
BATCH_NORM_MOMENTUM = 0.1  # torch's own default
# Switches off what these two models have in addition: auxiliary heads, and an initialisation that
# takes minutes.
EXTRAS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")
}


def torchvision_names() -> list[str]:
    """Names of torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)


def small_resnet(in_channels: int) -> tuple[nn.Module, int]:
    """A ResNet-18 with a quarter of its width and one block per stage.

    It has a thirtieth of a ResNet-18's arithmetic, so that two CPU cores can train it on many more
    images in the same time.
    """
    channels = 16
    stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    layers.append(BasicBlock(channels, channels))
    for wider in (32, 64, 128):
        shortcut = nn.Conv2d(channels, wider, 1, stride=2, bias=False)
        downsample = nn.Sequential(shortcut, nn.BatchNorm2d(wider))
        layers.append(BasicBlock(channels, wider, stride=2, downsample=downsample))
        channels = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


def small_cnn(in_channels: int) -> tuple[nn.Module, int]:
    """Two convolutions, each followed by BatchNorm, ReLU and 2x2 max-pool."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((in_channels, 32), (32, 64)):
        convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 64


def vgg16(in_channels: int) -> tuple[nn.Module, int]:
    """VGG-16 with BatchNorm, for three channels, without its last two max-pools.

    A 28x28 image keeps 3x3 positions, where five max-pools would leave none. The mean over
    positions replaces two fully connected layers of 4,096. Simonyan & Zisserman 2015,
    arXiv 1409.1556.
    """
    features = make_layers(cfgs["D"], batch_norm=True)
    pools = [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    for position in pools[-2:]:
        features[position] = nn.Identity()  # keeps the numbers of the later layers
    layers = OrderedDict(features=features, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    return nn.Sequential(layers), 512


def torchvision_backbone(name: str, in_channels: int) -> tuple[nn.Module, int]:
    """torchvision's classification model `name`, for three channels, without its last layer.

    torchvision draws the initial weights from torch's global generator. Dropout and stochastic
    depth are removed, because they would draw from it at every step. All BatchNorms get torch's
    default momentum: MnasNet's 0.0003 is made for hundreds of thousands of steps, and its
    statistics would hardly have moved at the end of a round.

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
            f"{PREFIX}{name} does not end in one linear layer, so it has no embedding; "
            f"take another, such as {PREFIX}efficientnet_b0"
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
    """Build the model and embed one black image of `image_size` pixels with it.

    Raises:
        UserError: the model cannot embed images of that size.
    """
    if image_size < SMALLEST_IMAGE:
        raise UserError(
            f"{PREFIX}{name} is for images of {SMALLEST_IMAGE} pixels or more, not {image_size}; "
            "raise image_size, or take an architecture for small images, such as resnet18"
        )
    with torch.random.fork_rng(devices=[]):
        network, size = torchvision_backbone(name, 3)
    try:
        with torch.inference_mode():
            shape = tuple(network.eval()(torch.zeros(1, 3, image_size, image_size)).shape)
    # The models raise different errors for an image size that they are not made for.
    except Exception as error:
        raise UserError(
            f"{PREFIX}{name} does not take images of {image_size} pixels "
            f"({' '.join(str(error).split())[:120]}); "
            "models of a fixed size mostly need image_size: 224"
        ) from error
    if shape != (1, size):
        raise UserError(
            f"{PREFIX}{name} returns {shape} instead of one embedding of {size} numbers; "
            f"take another, such as {PREFIX}efficientnet_b0"
        )
