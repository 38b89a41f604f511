"""ResNet-18, -34 and -50 for small medical images, smaller networks for small machines, and others.

torchvision's ResNet with three changes: a 3x3 stride-1 stem instead of 7x7 stride-2, no max-pool
(a 28x28 tile keeps its 28x28 grid through the first stage), and a Dropout -> Linear head.

The network is used in two halves. `embed` is the expensive one; `head` costs one matrix product.
Dropout sits in the head alone and its masks are given from outside, so that T Monte Carlo passes
need one `embed`, training draws its masks from an explicit generator, and nothing has to be
switched between training and evaluation mode to sample. The other backbones are in backbones.py.
"""

from __future__ import annotations

import difflib

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from backbones import (
    PREFIX,
    check_torchvision_backbone,
    torchvision_backbone,
    torchvision_names,
    vgg16,
)
from errors import UserError

RESNETS = ("resnet18", "resnet34", "resnet50")
SMALL = ("small_resnet", "small_cnn")  # our own; nobody has pretrained them
ARCHITECTURES = (*RESNETS, *SMALL, "vgg16")  # and torchvision:NAME


def check_architecture(architecture: str, image_size: int) -> None:
    """Raise UserError where there is no such network for images of `image_size` pixels."""
    if architecture in ARCHITECTURES:
        return
    models = [PREFIX + name for name in torchvision_names()]
    if architecture not in models:
        near = difflib.get_close_matches(architecture, [*ARCHITECTURES, *models], n=1)
        raise UserError(
            f"{architecture!r} is unknown{f' (did you mean {near[0]}?)' if near else ''}; allowed "
            f"are {', '.join(ARCHITECTURES)}, and {PREFIX}NAME for a model of torchvision's"
        )
    check_torchvision_backbone(architecture.removeprefix(PREFIX), image_size)


class SplitNetwork(nn.Module):
    """A network of two halves: `embed`, the backbone by name, and `head`.

    Args:
        architecture: one of `ARCHITECTURES`, or torchvision:NAME, as `check_architecture` allows.
        num_classes: width of the head.
        in_channels: 1 (grey) or 3 (colour).
        generator: CPU generator that every initial weight is drawn from.
        pretrained: start from torchvision's ImageNet weights; the head and a ResNet's stem, whose
            shapes differ, are drawn afresh.
        freeze_backbone: train the head alone. The backbone has no gradients and stays in eval
            mode, so that its BatchNorm statistics stay as well.

    Raises:
        UserError: the network cannot be split in two.
        UserError: the ImageNet weights cannot be had on this machine.

    Architecture: He et al. 2016 (doi 10.1109/CVPR.2016.90).
    """

    def __init__(
        self,
        architecture: str,
        num_classes: int,
        in_channels: int,
        generator: torch.Generator,
        pretrained: bool = False,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__()
        self._freeze_backbone = freeze_backbone
        self._torchvisions_own = architecture.startswith(PREFIX)
        for_colour = self._torchvisions_own or architecture == "vgg16"
        self._repeats_grey = for_colour and in_channels == 1
        # Layers draw initial weights from the global generator: `initialise` replaces them, or,
        # for torchvision's own, the global one takes its seed from ours for as long.
        with torch.random.fork_rng(devices=[]):
            if self._torchvisions_own:
                seed = torch.randint(2**62, (), generator=generator)
                torch.default_generator.manual_seed(int(seed))
                self.backbone, size = torchvision_backbone(architecture.removeprefix(PREFIX))
            elif architecture in RESNETS:
                self.backbone, size = _resnet(architecture, in_channels)
            elif architecture == "vgg16":
                self.backbone, size = vgg16()
            elif architecture == "small_resnet":
                self.backbone, size = _small_resnet(in_channels)
            else:
                self.backbone, size = _small_cnn(in_channels)
            self.embedding_size = size
            self.classifier = nn.Linear(size, num_classes)
        self.initialise(generator)
        if pretrained:
            # Of all names in the backbone, only a ResNet's stem is not among the pretrained ones.
            self.backbone.load_state_dict(_imagenet_weights(architecture), strict=False)
        if freeze_backbone:
            self.backbone.requires_grad_(False)
            self.train()

    @property
    def folds(self) -> bool:
        """Whether each BatchNorm of the backbone follows the convolution registered before it."""
        return not self._torchvisions_own

    def train(self, mode: bool = True) -> SplitNetwork:
        """As of every module, but for a frozen backbone, which stays in eval mode."""
        super().train(mode)
        if self._freeze_backbone:
            self.backbone.eval()
        return self

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights afresh from `generator` and clear BatchNorm's running statistics.

        The last BatchNorm of every residual branch starts at zero, so that each block begins as
        the identity (Goyal et al. 2017, arXiv 1706.02677, section 5.1). A backbone of
        torchvision's own keeps the weights that it was built with.
        """
        last_norms: list[nn.BatchNorm2d] = []
        for module in () if self._torchvisions_own else self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, Bottleneck):
                last_norms.append(module.bn3)
            elif isinstance(module, BasicBlock):
                last_norms.append(module.bn2)
        for norm in last_norms:  # after all have been reset
            nn.init.zeros_(norm.weight)
        bound = self.embedding_size**-0.5
        nn.init.uniform_(self.classifier.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.classifier.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to embeddings [B, D]; D is 2048 for a ResNet-50, 512 for -18, -34."""
        if self._repeats_grey:
            images = images.expand(-1, 3, -1, -1)
        return self.backbone(images)

    def head(self, embeddings: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """Embeddings [B, D] to logits [B, classes]; `dropout_mask` [B, D] as of `dropout_masks`."""
        if dropout_mask is not None:
            embeddings = embeddings * dropout_mask
        return self.classifier(embeddings)

    def monte_carlo_logits(self, embeddings: Tensor, dropout_masks: Tensor) -> Tensor:
        """Embeddings [B, D] under T shared masks [T, D] to logits [T, B, classes].

        One mask serves every image of a pass ("consistent" dropout, Kirsch et al. 2019,
        arXiv 1906.08158): a pass is then one sampled network, whatever the batch size. Masking
        the head's weights instead of the embeddings makes all passes one matrix product.
        """
        weights = self.classifier.weight * dropout_masks.to(self.classifier.weight).unsqueeze(1)
        logits = embeddings.to(weights.dtype) @ weights.flatten(0, 1).T
        passes = dropout_masks.shape[0]
        return logits.view(len(embeddings), passes, -1).transpose(0, 1) + self.classifier.bias

    def forward(self, images: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        return self.head(self.embed(images), dropout_mask)


def _resnet(architecture: str, in_channels: int) -> tuple[nn.Module, int]:
    """torchvision's network with a small-image stem and no head, and its embedding's size."""
    backbone = torchvision.models.get_model(architecture, weights=None)
    size = backbone.fc.in_features
    backbone.conv1 = nn.Conv2d(in_channels, 64, 3, stride=1, padding=1, bias=False)
    backbone.maxpool = nn.Identity()
    backbone.fc = nn.Identity()
    return backbone, size


def _small_resnet(in_channels: int) -> tuple[nn.Module, int]:
    """A ResNet-18 of a quarter of the width and one block a stage, and its embedding's size.

    A thirtieth of a ResNet-18's arithmetic, so that it sees many more images in the time that two
    CPU cores have.
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


def _small_cnn(in_channels: int) -> tuple[nn.Module, int]:
    """Two convolutions, each with BatchNorm, ReLU and 2x2 max-pool; and its embedding's size."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((in_channels, 32), (32, 64)):
        convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 64


def dropout_masks(count: int, size: int, probability: float, generator: torch.Generator) -> Tensor:
    """Float32 masks [count, size] on the generator's device: 0 or 1 / (1 - probability)."""
    draws = torch.rand(count, size, generator=generator, device=generator.device)
    return (draws >= probability).float() / (1.0 - probability)


def _imagenet_weights(architecture: str) -> dict[str, Tensor]:
    """torchvision's newest ImageNet weights; of a ResNet's, without the stem convolution."""
    name = "vgg16_bn" if architecture == "vgg16" else architecture.removeprefix(PREFIX)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:  # urllib's errors are OSErrors
        raise UserError(
            f"pretrained: true, but the ImageNet weights of {architecture} cannot be loaded "
            f"({error}): put {weights.url} into {torch.hub.get_dir()}/checkpoints, "
            "or set pretrained: false"
        ) from error
    if architecture in RESNETS:
        del state["conv1.weight"]
    return state
