"""Embeds many images: runs a backbone in eval mode, as fast as the device allows.

Queries, evaluations and predictions spend nearly all their time here.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from resnet_custom import SplitNetwork
from training.precision import float32_products

# On a CPU, larger steps push the activations out of its caches: a ResNet-50 embeds 28x28 images a
# seventh faster in steps of 128 than in steps of 512.
LARGEST_CPU_STEP = 128


class Embedder:
    """Runs the backbone of a network in eval mode, on a copy made for inference.

    The copy folds every BatchNorm into the convolution before it and holds its weights in the
    compute type, so it is the same function except for rounding. Models of torchvision's own, in
    which not every BatchNorm follows a convolution, are copied unchanged. The network itself, its
    mode and its statistics stay as they are. Call `refresh` after its weights have changed.

    Args:
        network: the network whose backbone runs.
        compute_dtype: the type that the backbone computes in.
        compiled_size: run the backbone under torch.compile on this many images at a time. Smaller
            batches are padded, because every other size would be compiled again. None: do not
            compile.
        tf32: whether a GPU may compute float32 products in TF32.
    """

    def __init__(
        self,
        network: SplitNetwork,
        compute_dtype: torch.dtype,
        compiled_size: int | None = None,
        tf32: bool = False,
    ) -> None:
        self._network = network
        self._dtype = compute_dtype
        self._compiled_size = compiled_size
        self._tf32 = tf32
        self._copy = self._inference_copy()
        if compiled_size is not None:
            self._copy.backbone.compile(dynamic=False)

    def refresh(self) -> None:
        """Copy the network's current weights and statistics."""
        self._copy.load_state_dict(self._inference_copy().state_dict())

    @torch.inference_mode()
    def __call__(self, images: Tensor, upright: bool = False) -> Tensor:
        """Embeddings, float32 [B, D], of normalised images, float [B, C, S, S] on the device.

        B is at most `compiled_size`, if that is given. With `upright`, the network does not
        average over rotations.
        """
        count, size = len(images), self._compiled_size
        if size is not None and count < size:
            images = images[torch.arange(size, device=images.device).clamp_max(count - 1)]
        # After the padding, which for one channel may change the strides of channels last.
        images = images.contiguous(memory_format=torch.channels_last)
        enabled = self._dtype != torch.float32
        autocast = torch.autocast(images.device.type, self._dtype, enabled=enabled)
        with autocast, float32_products(self._tf32):
            embed = self._copy.embed_upright if upright else self._copy.embed
            return embed(images)[:count].float()

    # Outside inference mode even if the caller is in it: `refresh` could not change its tensors.
    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _inference_copy(self) -> SplitNetwork:
        """A copy of the network in eval mode, folded and converted where that is possible."""
        network = copy.deepcopy(self._network).eval()
        if network.folds:
            fold_batch_norms(network.backbone)
            network.backbone.to(self._dtype)
        return network.to(memory_format=torch.channels_last)


def fold_batch_norms(backbone: nn.Module) -> None:
    """Fold each BatchNorm into the convolution before it; `backbone` is in eval mode.

    In eval mode a BatchNorm scales and shifts each channel by constants, which the convolution can
    do itself; that saves a pass over memory. Each BatchNorm must be registered directly after the
    convolution whose result it normalises.
    """
    convolution: nn.Conv2d | None = None
    path = ""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, nn.Conv2d):
            convolution, path = module, name
        elif isinstance(module, nn.BatchNorm2d):
            assert convolution is not None
            _replace(backbone, path, nn.utils.fusion.fuse_conv_bn_eval(convolution, module))
            _replace(backbone, name, nn.Identity())
            convolution = None


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule of `root` at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
