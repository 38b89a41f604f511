"""Augmentation of whole batches on the device, with its own parameters for every image.

Choosing the batch, flipping, turning and shifting it are one gather from the uint8 store. Its
result lies in memory channels last, which is the layout that convolutions want.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from training.hyperparameters import Hyperparameters

# Optical densities of haematoxylin, eosin and DAB in red, green and blue.
# Ruifrok & Johnston 2001, "Quantification of histochemical staining by color deconvolution".
STAIN_DENSITIES = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


@dataclass(frozen=True)
class Augmentation:
    """What is varied, and how strongly. All zero and False: images are taken as they are.

    Attributes:
        flips_and_rotations: one of the eight symmetries of the square, at random. Tissue has no
            up or down; digits and chest films do.
        crop_padding: pixels by which the image is moved up to, in both directions, the rim being
            filled by reflection (a random crop of the padded image).
        colour_jitter: brightness, contrast and saturation are scaled by up to 1 +- this.
        stain_jitter: amounts of haematoxylin, eosin and residual stain are scaled by up to
            1 +- this, and moved by up to this / 10, in optical density (Tellez et al. 2018,
            doi 10.1109/TMI.2018.2820199). For colour images only.
    """

    flips_and_rotations: bool
    crop_padding: int
    colour_jitter: float
    stain_jitter: float

    @classmethod
    def of_trial(cls, hp: Hyperparameters) -> Augmentation:
        """What a trial's hyperparameters ask for."""
        return cls(hp.flips_and_rotations, hp.crop_padding, hp.colour_jitter, hp.stain_jitter)

    def batch(
        self,
        images: Tensor,
        indices: Tensor,
        generator: torch.Generator,
        part: slice = slice(None),
    ) -> Tensor:
        """Images `indices[part]` of the store, augmented: float32 [B, C, H, W] in [0, 1].

        Parameters are drawn for all of `indices` before `part` is taken, so that data-parallel
        ranks, each with its part of one batch, make together what a single rank makes.

        Args:
            images: uint8 [N, C, S, S], on the device of `indices` or, if too many, on the host.
            indices: int64 [batch], on the device of `generator`.
        """
        chosen = indices[part]
        if images.device != indices.device:
            images = images[chosen.to(images.device)].to(indices.device)
            chosen = torch.arange(len(chosen), device=indices.device)
        return self._vary(images, chosen, len(indices), part, generator)

    def view(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """All of `images`, uint8 [B, C, S, S], augmented in the one same way: float32, as `batch`.

        The generator alone decides in which; it is on the device of `images`.
        """
        everything = torch.arange(len(images), device=images.device)
        return self._vary(images, everything, 1, slice(None), generator)

    def _vary(
        self,
        images: Tensor,
        indices: Tensor,
        count: int,
        part: slice,
        generator: torch.Generator,
    ) -> Tensor:
        """Images at `indices`, by the draws `part` out of `count`; a single one serves them all."""
        rows, columns = self._grid(count, images.shape[-1], generator)
        gathered = images[indices[:, None, None], :, rows[part], columns[part]]
        batch = gathered.permute(0, 3, 1, 2).float().div_(255)
        if self.colour_jitter:
            batch = self._vary_colour(batch, count, part, generator)
        if self.stain_jitter and images.shape[1] == 3:
            batch = self._vary_stain(batch, count, part, generator)
        return batch.clamp_(0, 1)

    def _grid(self, count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """For every pixel of the result, the row and column of its source: two [count, S, S]."""
        device = generator.device
        line = torch.arange(size, device=device)
        rows = line.view(1, size, 1).expand(count, size, size)
        columns = line.view(1, 1, size).expand(count, size, size)
        if self.crop_padding:
            limit = self.crop_padding
            shift = torch.randint(
                -limit, limit + 1, (2, count, 1, 1), generator=generator, device=device
            )
            rows = _reflect(rows + shift[0], size)
            columns = _reflect(columns + shift[1], size)
        if self.flips_and_rotations:
            coin = torch.randint(0, 2, (3, count, 1, 1), generator=generator, device=device).bool()
            rows = torch.where(coin[0], size - 1 - rows, rows)
            columns = torch.where(coin[1], size - 1 - columns, columns)
            turned = (rows.transpose(1, 2), columns.transpose(1, 2))
            rows, columns = (
                torch.where(coin[2], turned[0], rows),
                torch.where(coin[2], turned[1], columns),
            )
        return rows, columns

    def _vary_colour(
        self, batch: Tensor, count: int, part: slice, generator: torch.Generator
    ) -> Tensor:
        factors = _around(1.0, self.colour_jitter, (3, count, 1, 1, 1), generator)[:, part]
        brightness, contrast, saturation = factors
        if batch.shape[1] == 3:
            grey = batch.mean(1, keepdim=True)
            batch = grey + (batch - grey) * saturation
        centre = batch.mean((1, 2, 3), keepdim=True)
        return (centre + (batch - centre) * contrast) * brightness

    def _vary_stain(
        self, batch: Tensor, count: int, part: slice, generator: torch.Generator
    ) -> Tensor:
        scale = _around(1.0, self.stain_jitter, (count, 3), generator)[part]
        offset = _around(0.0, self.stain_jitter / 10, (count, 3), generator)[part]
        to_rgb, to_stains = _stain_matrices(batch.device)
        # Unmixing, scaling each stain and mixing again is one 3x3 matrix per image.
        change = to_stains @ torch.diag_embed(scale) @ to_rgb
        density = -torch.log(batch.clamp_min(1 / 255))
        changed = torch.einsum("bchw,bcd->bdhw", density, change)
        return torch.exp(-(changed + (offset @ to_rgb)[:, :, None, None]))


@functools.cache
def _stain_matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """From stains to colours and back, float32 [3, 3] each.

    Made once: copying and inverting them on a GPU would have the host wait in every step.
    """
    to_rgb = torch.tensor(STAIN_DENSITIES)
    to_rgb = to_rgb / to_rgb.norm(dim=1, keepdim=True)
    return to_rgb.to(device), torch.linalg.inv(to_rgb).to(device)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions beyond [0, size) mirrored at the border pixel; for shifts below `size`."""
    position = position.abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def _around(
    centre: float, width: float, shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Uniform draws from [centre - width, centre + width)."""
    draws = torch.rand(shape, generator=generator, device=generator.device)
    return centre + (2 * draws - 1) * width
