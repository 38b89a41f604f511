"""Makes the random views of images that self-supervised learning compares.

A view is an image under `Augmentation` with a strong colour jitter, sometimes converted to grey. A
random part of it is then cropped and enlarged to the full size. Whole batches are made on the
device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augmentation import Augmentation

# The views of Chen et al. 2020 (SimCLR, arXiv 2002.05709) without blur, which they leave out for
# CIFAR as well: at 28 pixels it would remove the texture of nuclei. Their smallest crops have 0.08
# of the area, which here would be an 8x8 patch.
SMALLEST_CROP = 0.3  # share of the image's area
LARGEST_RATIO = 4 / 3  # of a crop's longer side to its shorter one
COLOUR_JITTER = 0.4
GREY_PROBABILITY = 0.2


@dataclass(frozen=True)
class Views:
    """Makes views.

    flips_and_rotations: as in `Augmentation`, whose other settings are fixed.
    """

    flips_and_rotations: bool

    def gathered(
        self, images: Tensor, count: int, generator: torch.Generator, part: slice = slice(None)
    ) -> Tensor:
        """One view of each of the images: float32 [B, C, S, S] in [0, 1].

        The arguments are those of `Augmentation.gathered`. Two calls with one generator give two
        different views.
        """
        augmentation = Augmentation(self.flips_and_rotations, 0, COLOUR_JITTER, 0.0)
        batch = augmentation.gathered(images, count, generator, part)
        draws = torch.rand(5, count, generator=generator, device=generator.device)[:, part]
        if batch.shape[1] == 3:
            grey = (draws[4] < GREY_PROBABILITY).view(-1, 1, 1, 1)
            batch = torch.where(grey, batch.mean(1, keepdim=True), batch)
        return random_resized_crop(batch, draws[:4])


def random_resized_crop(batch: Tensor, draws: Tensor) -> Tensor:
    """A random part of each image of `batch` [B, C, H, W], enlarged to [H, W] bilinearly.

    draws: float32 [4, B], uniform in [0, 1), which determine the crop's area, the ratio of its
    sides, and the vertical and horizontal place of its centre. A crop never leaves the image.
    """
    area = SMALLEST_CROP + (1 - SMALLEST_CROP) * draws[0]
    ratio = torch.exp((2 * draws[1] - 1) * math.log(LARGEST_RATIO))
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    # In the units of `affine_grid`, in which the image extends from -1 to 1.
    down, right = (2 * draws[2] - 1) * (1 - height), (2 * draws[3] - 1) * (1 - width)
    none = torch.zeros_like(height)
    rows = [torch.stack([width, none, right], 1), torch.stack([none, height, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
