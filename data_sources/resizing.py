"""Bilinear, antialiased resizing of many small images at once."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """uint8 `[N, H, W, C]` images as uint8 `[N, size, size, C]`; by way of a float32 copy."""
    if images.shape[1:3] == (size, size):
        return images
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    resized = F.interpolate(
        channels_first, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    result: NDArray[np.uint8] = (
        resized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    )
    return result
