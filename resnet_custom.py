"""The network: a custom ResNet for small medical images, and the registry of other architectures.

torchvision's ResNet-18, -34 and -50 have three changes here: a 3x3 stride-1 stem instead of the 7x7
stride-2 one, no max-pool, so that a 28x28 tile keeps its 28x28 grid through the first stage, and a
Dropout -> Linear head. Other backbones are in backbones.py; `ARCHITECTURES` names them all.

The network is used in two halves. `embed` is the expensive one; `head` costs one matrix product.
Dropout applies to the head only, and the caller passes its masks. T Monte Carlo passes therefore
need one `embed`, training draws its masks from an explicit generator, and sampling needs no switch
between training and evaluation mode.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from backbones import (
    PREFIX,
    check_torchvision_backbone,
    small_cnn,
    small_resnet,
    torchvision_backbone,
    torchvision_names,
    vgg16,
)
from errors import UserError


@dataclass(frozen=True)
class Architecture:
    """How a network of one kind is built.

    build: number of input channels -> the backbone and the size of its embedding.
    imagenet: name of the torchvision model whose ImageNet weights fit the backbone; None: there are
        no such weights.
    custom_stem: the first convolution differs from that model's, so it is always trained.
    colour_only: the backbone takes three channels; grey images are repeated.
    torchvisions_own: the backbone is a model of torchvision's that is not changed. It keeps its own
        initial weights, and its BatchNorms need not follow convolutions.
    """

    build: Callable[[int], tuple[nn.Module, int]]
    imagenet: str | None = None
    custom_stem: bool = False
    colour_only: bool = False
    torchvisions_own: bool = False


def resnet_backbone(name: str, in_channels: int) -> tuple[nn.Module, int]:
    """torchvision's ResNet `name` with a stem for small images and no head; its embedding's size.

    He et al. 2016 (doi 10.1109/CVPR.2016.90).
    """
    backbone = torchvision.models.get_model(name, weights=None)
    size = backbone.fc.in_features
    backbone.conv1 = nn.Conv2d(in_channels, 64, 3, stride=1, padding=1, bias=False)
    backbone.maxpool = nn.Identity()
    backbone.fc = nn.Identity()
    return backbone, size


ARCHITECTURES: dict[str, Architecture] = {
    **{
        name: Architecture(partial(resnet_backbone, name), imagenet=name, custom_stem=True)
        for name in ("resnet18", "resnet34", "resnet50")
    },
    "small_resnet": Architecture(small_resnet),
    "small_cnn": Architecture(small_cnn),
    "vgg16": Architecture(vgg16, imagenet="vgg16_bn", colour_only=True),
}


def get_architecture(name: str) -> Architecture:
    """The architecture `name`: one of `ARCHITECTURES`, or torchvision:NAME.

    Raises:
        UserError: there is none; the line names the nearest.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    models = [PREFIX + model for model in torchvision_names()]
    if name not in models:
        near = difflib.get_close_matches(name, [*ARCHITECTURES, *models], n=1)
        raise UserError(
            f"{name!r} is unknown{f' (did you mean {near[0]}?)' if near else ''}; allowed "
            f"are {', '.join(ARCHITECTURES)}, and {PREFIX}NAME for a model of torchvision's"
        )
    model = name.removeprefix(PREFIX)
    return Architecture(
        partial(torchvision_backbone, model),
        imagenet=model,
        colour_only=True,
        torchvisions_own=True,
    )


def check_architecture(name: str, image_size: int) -> Architecture:
    """The architecture `name`, once it is known to take images of `image_size` pixels.

    Raises:
        UserError: there is no such architecture, or it does not take such images.
    """
    architecture = get_architecture(name)
    if architecture.torchvisions_own:
        check_torchvision_backbone(name.removeprefix(PREFIX), image_size)
    return architecture


class SplitNetwork(nn.Module):
    """A network in two halves: `embed`, the backbone of an architecture, and `head`.

    Args:
        architecture: one of `ARCHITECTURES`, or torchvision:NAME.
        num_classes: number of outputs of the head.
        in_channels: 1 (grey) or 3 (colour).
        generator: CPU generator of all initial weights.
        pretrained: start from torchvision's ImageNet weights. The head and a custom stem, which
            have other shapes, are still drawn.
        freeze_backbone: train the head only. The backbone then has no gradients and stays in eval
            mode, so its BatchNorm statistics do not change.
        average_rotations: in eval mode, `embed` averages over the four quarter turns of the image.

    Raises:
        UserError: the architecture is unknown, cannot be split, or its ImageNet weights cannot be
            loaded on this machine.
    """

    def __init__(
        self,
        architecture: str,
        num_classes: int,
        in_channels: int,
        generator: torch.Generator,
        pretrained: bool = False,
        freeze_backbone: bool = False,
        average_rotations: bool = False,
    ) -> None:
        super().__init__()
        self._architecture = get_architecture(architecture)
        self._freeze_backbone = freeze_backbone
        self._average_rotations = average_rotations
        self._repeats_grey = self._architecture.colour_only and in_channels == 1
        # Layers draw their initial weights from the global generator. `initialise` replaces those
        # weights; for a model of torchvision's own, the global generator is seeded from ours.
        with torch.random.fork_rng(devices=[]):
            if self._architecture.torchvisions_own:
                seed = torch.randint(2**62, (), generator=generator)
                torch.default_generator.manual_seed(int(seed))
            self.backbone, self.embedding_size = self._architecture.build(in_channels)
            self.classifier = nn.Linear(self.embedding_size, num_classes)
        self.initialise(generator)
        if pretrained:
            # Not strict: the weights of a custom stem are missing.
            weights = _imagenet_weights(architecture, self._architecture)
            self.backbone.load_state_dict(weights, strict=False)
        if freeze_backbone:
            self.backbone.requires_grad_(False)
            self.train()

    @property
    def folds(self) -> bool:
        """Whether each BatchNorm of the backbone follows the convolution registered before it."""
        return not self._architecture.torchvisions_own

    def train(self, mode: bool = True) -> SplitNetwork:
        """As of every module, except that a frozen backbone stays in eval mode."""
        super().train(mode)
        if self._freeze_backbone:
            self.backbone.eval()
        return self

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights from `generator` and reset BatchNorm's running statistics.

        The last BatchNorm of every residual branch starts at zero, so that each block starts as
        the identity (Goyal et al. 2017, arXiv 1706.02677, section 5.1). A backbone of torchvision's
        own keeps the weights that it was built with.
        """
        last_norms: list[nn.BatchNorm2d] = []
        for module in () if self._architecture.torchvisions_own else self.modules():
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
        for norm in last_norms:  # after all of them have been reset
            nn.init.zeros_(norm.weight)
        bound = self.embedding_size**-0.5
        nn.init.uniform_(self.classifier.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.classifier.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of images [B, C, S, S]; D is 2048 for a ResNet-50.

        With `average_rotations`, this is the mean over the image's four quarter turns in eval mode.
        The head is linear, so the logits are the mean of the four logits as well.
        """
        if self.training or not self._average_rotations:
            return self.embed_upright(images)
        # The upright images come last, so that hooks on the backbone keep what belongs to them.
        turned = [self.embed_upright(rotated(images, turns)) for turns in (3, 2, 1, 0)]
        return torch.stack([embeddings.float() for embeddings in turned]).mean(0)

    def embed_upright(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of images [B, C, S, S] as they stand."""
        if self._repeats_grey:
            images = images.expand(-1, 3, -1, -1)
        return self.backbone(images)

    def head(self, embeddings: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of embeddings [B, D]; `dropout_mask` [B, D] from `dropout_masks`."""
        if dropout_mask is not None:
            embeddings = embeddings * dropout_mask
        return self.classifier(embeddings)

    def monte_carlo_logits(self, embeddings: Tensor, dropout_masks: Tensor) -> Tensor:
        """Logits [T, B, classes] of embeddings [B, D] under T shared masks [T, D].

        All images of a pass share one mask ("consistent" dropout, Kirsch et al. 2019,
        arXiv 1906.08158), so a pass is one sampled network, whatever the batch size. Masking the
        head's weights instead of the embeddings turns all passes into one matrix product.
        """
        weights = self.classifier.weight * dropout_masks.to(self.classifier.weight).unsqueeze(1)
        logits = embeddings.to(weights.dtype) @ weights.flatten(0, 1).T
        passes = dropout_masks.shape[0]
        return logits.view(len(embeddings), passes, -1).transpose(0, 1) + self.classifier.bias

    def forward(self, images: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        return self.head(self.embed(images), dropout_mask)


def rotated(images: Tensor, turns: int) -> Tensor:
    """Images [B, C, S, S] rotated by `turns` times 90 degrees."""
    return images.rot90(turns, (2, 3)).contiguous(memory_format=torch.channels_last)


def dropout_masks(count: int, size: int, probability: float, generator: torch.Generator) -> Tensor:
    """Float32 masks [count, size] on the generator's device: 0 or 1 / (1 - probability)."""
    draws = torch.rand(count, size, generator=generator, device=generator.device)
    return (draws >= probability).float() / (1.0 - probability)


def _imagenet_weights(name: str, architecture: Architecture) -> dict[str, Tensor]:
    """torchvision's newest ImageNet weights for `name`, without those of a custom stem."""
    if architecture.imagenet is None:
        raise UserError(f"pretrained: true, but {name} has no ImageNet weights; set false")
    weights = torchvision.models.get_model_weights(architecture.imagenet).DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:  # urllib's errors are OSErrors
        raise UserError(
            f"pretrained: true, but the ImageNet weights of {name} cannot be loaded "
            f"({error}): put {weights.url} into {torch.hub.get_dir()}/checkpoints, "
            "or set pretrained: false"
        ) from error
    if architecture.custom_stem:
        del state["conv1.weight"]
    return state
