"""ResNet-18, -34 and -50 for small medical images, and a small CNN for small machines.

torchvision's ResNet with three changes: a 3x3 stride-1 stem instead of 7x7 stride-2, no max-pool
(a 28x28 tile keeps its 28x28 grid through the first stage), and a Dropout -> Linear head.

The network is used in two halves. `embed` is the expensive one; `head` costs one matrix product.
Dropout sits in the head alone and its masks are given from outside, so that T Monte Carlo passes
need one `embed`, training draws its masks from an explicit generator, and nothing has to be
switched between training and evaluation mode to sample.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

RESNETS = ("resnet18", "resnet34", "resnet50")
ARCHITECTURES = (*RESNETS, "small_cnn")


class PretrainedWeightsError(RuntimeError):
    """ImageNet weights were asked for and cannot be had on this machine."""


class SplitNetwork(nn.Module):
    """A network of two halves: `embed`, the backbone by name, and `head`.

    Args:
        architecture: one of `ARCHITECTURES`.
        num_classes: width of the head.
        in_channels: 1 (grey) or 3 (colour).
        generator: CPU generator that every initial weight is drawn from.
        pretrained: start from torchvision's ImageNet weights; the stem and the head, whose shapes
            differ, are drawn afresh.

    Raises:
        PretrainedWeightsError: the ImageNet weights cannot be had on this machine.

    Architecture: He et al. 2016 (doi 10.1109/CVPR.2016.90).
    """

    def __init__(
        self,
        architecture: str,
        num_classes: int,
        in_channels: int,
        generator: torch.Generator,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        # Layers draw initial weights from the global generator; `initialise` replaces them.
        with torch.random.fork_rng(devices=[]):
            if architecture in RESNETS:
                self.backbone, self.embedding_size = _resnet(architecture, in_channels)
            else:
                self.backbone, self.embedding_size = _small_cnn(in_channels)
            self.classifier = nn.Linear(self.embedding_size, num_classes)
        self.initialise(generator)
        if pretrained:
            # Of all names in the backbone, only the stem's is not among the pretrained ones.
            self.backbone.load_state_dict(_imagenet_weights(architecture), strict=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights afresh from `generator` and clear BatchNorm's running statistics.

        The last BatchNorm of every residual branch starts at zero, so that each block begins as
        the identity (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, torchvision.models.resnet.Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif isinstance(module, torchvision.models.resnet.BasicBlock):
                nn.init.zeros_(module.bn2.weight)
        bound = self.embedding_size**-0.5
        nn.init.uniform_(self.classifier.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.classifier.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to embeddings [B, D]; D is 2048 for a ResNet-50, 512 for -18, -34."""
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
    """torchvision's newest ImageNet weights, without the stem convolution and the head."""
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:  # urllib's errors are OSErrors
        raise PretrainedWeightsError(
            f"pretrained: true, but the ImageNet weights of {architecture} cannot be loaded "
            f"({error}): put {weights.url} into {torch.hub.get_dir()}/checkpoints, "
            "or set pretrained: false"
        ) from error
    return {
        name: value
        for name, value in state.items()
        if name != "conv1.weight" and not name.startswith("fc.")
    }
