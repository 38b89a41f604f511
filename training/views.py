"""Makes the random views of images that self-supervised learning compares.

A view is a random part of an image, enlarged to the full size, mirrored and turned, with other
colours. Whole batches are made on the device.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augmentation import Augmentation

# Chosen on the blood cells by validation accuracy. The views of SimCLR (Chen et al. 2020, arXiv
# 2002.05709) are stronger: crops from 0.08 of the area, a colour jitter of 0.8, grey images and
# blur. Here an 8x8 patch says little, and colour and texture tell the classes apart.
SMALLEST_CROP = 0.3  # share of the image's area
LARGEST_RATIO = 4 / 3  # of a crop's longer side to its shorter one
COLOUR_JITTER = 0.3
HUE_JITTER = 0.03  # of a full turn of the colour circle


@dataclass(frozen=True)
class Views:
    """Makes views.

    flips_and_rotations: mirror images and turn them by any angle. Otherwise they stay upright.
    """

    flips_and_rotations: bool

    def gathered(
        self, images: Tensor, count: int, generator: torch.Generator, part: slice = slice(None)
    ) -> Tensor:
        """One view of each of the images: float32 [B, C, S, S] in [0, 1].

        The arguments are those of `Augmentation.gathered`. Two calls with one generator give two
        different views.
        """
        draws = torch.rand(7, count, generator=generator, device=generator.device)[:, part]
        # Colours first: they are drawn for whole images, and cost less before the enlargement.
        augmentation = Augmentation(False, 0, COLOUR_JITTER, 0.0)
        batch = augmentation.gathered(images, count, generator, part)
        if batch.shape[1] == 3:
            batch = turn_hue(batch, (2 * draws[6] - 1) * HUE_JITTER).clamp_(0, 1)
        if not self.flips_and_rotations:
            draws[4:6] = 0
        return random_part(batch, draws[:6])


def turn_hue(batch: Tensor, turns: Tensor) -> Tensor:
    """Colour images [B, 3, H, W] with all hues turned around the grey axis; `turns` [B]."""
    angle = 2 * math.pi * turns[:, None, None]
    identity = torch.eye(3, device=batch.device)
    grey = torch.full((3, 3), 1 / 3, device=batch.device)
    across = _across(batch.device)
    # Rodrigues' formula for a rotation around the direction (1, 1, 1).
    rotation = angle.cos() * identity + (1 - angle.cos()) * grey + angle.sin() * across
    return torch.einsum("bchw,bdc->bdhw", batch, rotation)


@functools.cache
def _across(device: torch.device) -> Tensor:
    """The cross product with the direction (1, 1, 1), [3, 3]; cached as `_stain_matrices` are."""
    return torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=device) / 3**0.5


def random_part(batch: Tensor, draws: Tensor) -> Tensor:
    """A random part of each image of `batch` [B, C, H, W], enlarged to [H, W] bilinearly.

    Reflection fills what a turned part has outside of the image.

    draws: float32 [6, B], uniform in [0, 1), which determine the part's area, the ratio of its
        sides, the vertical and horizontal place of its centre, whether it is mirrored, and its
        angle.
    """
    area = SMALLEST_CROP + (1 - SMALLEST_CROP) * draws[0]
    ratio = torch.exp((2 * draws[1] - 1) * math.log(LARGEST_RATIO))
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    # In the units of `affine_grid`, in which the image extends from -1 to 1.
    down, right = (2 * draws[2] - 1) * (1 - height), (2 * draws[3] - 1) * (1 - width)
    mirror = 1 - 2 * (draws[4] >= 0.5).float()
    angle = 2 * math.pi * draws[5]
    sine, cosine = angle.sin(), angle.cos()
    rows = [
        torch.stack([width * cosine * mirror, -width * sine, right], 1),
        torch.stack([height * sine * mirror, height * cosine, down], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)
