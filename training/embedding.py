"""Embeddings of many images: a backbone in eval mode, as fast as the device can run it.

Queries, evaluations and predictions spend nearly all their time here.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from resnet_custom import SplitNetwork

# On a CPU, larger steps push the activations out of its caches: with a ResNet-50 on 28x28 images
# 128 at a time are a seventh faster than 512.
LARGEST_CPU_STEP = 128


class Embedder:
    """Runs a network's backbone in eval mode, on a copy of the network made for that.

    In the copy, BatchNorms are taken into the convolutions and weights are in the type that is
    computed in: the same function, but for rounding. torchvision's own models, of which not every
    BatchNorm follows a convolution, are copied as they are. The network itself, its mode and its
    statistics are left alone. Call `refresh` when its weights have changed.

    Args:
        network: whose backbone is run.
        compute_dtype: that the backbone computes in.
        compiled_size: run it under torch.compile, on that many images at a time, fewer being
            filled up, since each other size would be compiled anew; None: as it is.
    """

    def __init__(
        self,
        network: SplitNetwork,
        compute_dtype: torch.dtype,
        compiled_size: int | None = None,
    ) -> None:
        self._network = network
        self._dtype = compute_dtype
        self._compiled_size = compiled_size
        self._copy = self._made_for_it()
        if compiled_size is not None:
            self._copy.backbone.compile(dynamic=False)

    def refresh(self) -> None:
        """Take over the network's weights and statistics as they are now."""
        self._copy.load_state_dict(self._made_for_it().state_dict())

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images, float [B, C, S, S] on the network's device, to float32 [B, D].

        B is the compiled size at most, if there is one.
        """
        count, size = len(images), self._compiled_size
        if size is not None and count < size:
            images = images[torch.arange(size, device=images.device).clamp_max(count - 1)]
        # Said again after filling up: of one channel, there are several ways to lie channels last.
        images = images.contiguous(memory_format=torch.channels_last)
        enabled = self._dtype != torch.float32
        with torch.autocast(images.device.type, self._dtype, enabled=enabled):
            return self._copy.embed(images)[:count].float()

    # Ordinary tensors, whoever asks: those of inference mode cannot be refreshed outside it.
    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _made_for_it(self) -> SplitNetwork:
        made = copy.deepcopy(self._network).eval()
        if self._network.folds:
            fold_batch_norms(made.backbone)
            made.backbone.to(self._dtype)
        return made.to(memory_format=torch.channels_last)


def fold_batch_norms(backbone: nn.Module) -> None:
    """Take each BatchNorm into the convolution before it; `backbone` is in eval mode.

    There a BatchNorm scales and shifts each channel by constants, which the convolution's weights
    and bias can do as well; a pass over memory per convolution is saved. Each BatchNorm must be
    registered right after the convolution whose result it takes.
    """
    convolution, before = "", None
    for name, module in list(backbone.named_modules()):
        if isinstance(module, nn.Conv2d):
            convolution, before = name, module
        elif isinstance(module, nn.BatchNorm2d):
            assert before is not None
            _replace(backbone, convolution, nn.utils.fusion.fuse_conv_bn_eval(before, module))
            _replace(backbone, name, nn.Identity())
            before = None


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(root.get_submodule(parent), own, module)
