"""Two different views of every image, for self-supervised learning; batched, on the device.

A view is what `Augmentation` makes with a strong jitter, sometimes turned grey, of which a random
part is cut out and enlarged to the full size again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augmentation import Augmentation

# Chen et al. 2020 (SimCLR, arXiv 2002.05709), whose blur is left out, as for CIFAR there: at 28
# pixels it would take away the nuclei's texture. Their crops go down to 0.08 of the image, which
# here would be an 8x8 patch.
SMALLEST_CROP = 0.3  # share of the image's area
LARGEST_RATIO = 4 / 3  # of a crop's sides
COLOUR_JITTER = 0.4
GREY_PROBABILITY = 0.2


@dataclass(frozen=True)
class Views:
    """What a view may change.

    flips_and_rotations: as of `Augmentation`, whose other settings are fixed.
    """

    flips_and_rotations: bool

    def batch(
        self,
        images: Tensor,
        indices: Tensor,
        generator: torch.Generator,
        part: slice = slice(None),
    ) -> Tensor:
        """One view of each of the images `indices[part]`: float32 [B, C, H, W] in [0, 1].

        Arguments, and what `part` is for, as of `Augmentation.batch`. Call it twice with one
        generator for two views.
        """
        augmentation = Augmentation(self.flips_and_rotations, 0, COLOUR_JITTER, 0.0)
        batch = augmentation.batch(images, indices, generator, part)
        draws = torch.rand(5, len(indices), generator=generator, device=generator.device)[:, part]
        if batch.shape[1] == 3:
            grey = (draws[4] < GREY_PROBABILITY).view(-1, 1, 1, 1)
            batch = torch.where(grey, batch.mean(1, keepdim=True), batch)
        return random_resized_crop(batch, draws[:4])


def random_resized_crop(batch: Tensor, draws: Tensor) -> Tensor:
    """A part of each of the images [B, C, H, W], enlarged to [H, W] by bilinear interpolation.

    draws: float32 [4, B], uniform in [0, 1): they decide the crop's area, the ratio of its sides,
    and the place of its centre, vertically and horizontally. A crop never leaves the image.
    """
    area = SMALLEST_CROP + (1 - SMALLEST_CROP) * draws[0]
    ratio = torch.exp((2 * draws[1] - 1) * math.log(LARGEST_RATIO))
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    # In the units of `affine_grid`: the image reaches from -1 to 1 both ways.
    down, right = (2 * draws[2] - 1) * (1 - height), (2 * draws[3] - 1) * (1 - width)
    none = torch.zeros_like(height)
    rows = [torch.stack([width, none, right], 1), torch.stack([none, height, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
