"""Augments whole batches on the device, with separate random parameters for every image.

One gather from the uint8 store selects the images and flips, rotates and shifts them. Its result is
in channels-last memory format, which convolutions prefer.
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
    """Which properties of an image vary, and how strongly; zeros and False leave it unchanged.

    Attributes:
        flips_and_rotations: apply one of the eight symmetries of the square. Tissue has no up or
            down; digits and chest films do.
        crop_padding: shift by at most this many pixels in each direction. Reflection fills the
            border, as in a random crop of the padded image.
        colour_jitter: scale brightness, contrast and saturation by a factor in 1 +- this.
        stain_jitter: scale the optical densities of haematoxylin, eosin and residual stain by a
            factor in 1 +- this, and shift them by at most a tenth of it (Tellez et al. 2018,
            doi 10.1109/TMI.2018.2820199). Grey images are not changed.
    """

    flips_and_rotations: bool
    crop_padding: int
    colour_jitter: float
    stain_jitter: float

    @classmethod
    def of_trial(cls, hp: Hyperparameters) -> Augmentation:
        """The augmentation that the hyperparameters describe."""
        return cls(hp.flips_and_rotations, hp.crop_padding, hp.colour_jitter, hp.stain_jitter)

    def batch(
        self,
        images: Tensor,
        indices: Tensor,
        generator: torch.Generator,
        part: slice = slice(None),
    ) -> Tensor:
        """The augmented images `indices[part]` of the store: float32 [B, C, S, S] in [0, 1].

        Random parameters are drawn for all of `indices` before `part` is selected. Data-parallel
        ranks, which each take a part of one batch, therefore produce the batch of a single rank.

        Args:
            images: uint8 [N, C, S, S], on the device of `indices`.
            indices: int64 [batch], on the device of `generator`.
            generator: source of all random parameters.
            part: the positions in `indices` that this rank takes.
        """
        return self._vary(images, indices[part], len(indices), part, generator)

    def gathered(
        self, images: Tensor, count: int, generator: torch.Generator, part: slice = slice(None)
    ) -> Tensor:
        """The same as `batch` for images that have been gathered already.

        Args:
            images: uint8 [B, C, S, S], those at `part` of a batch, on the device of `generator`.
            count: size of the whole batch.
            generator: source of all random parameters.
            part: the positions in the batch that this rank takes.
        """
        rows = torch.arange(len(images), device=images.device)
        return self._vary(images, rows, count, part, generator)

    def view(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """All `images`, uint8 [B, C, S, S], under one and the same draw: float32 in [0, 1].

        The generator, on the device of `images`, alone determines the draw.
        """
        indices = torch.arange(len(images), device=images.device)
        return self._vary(images, indices, 1, slice(None), generator)

    def _vary(
        self,
        images: Tensor,
        indices: Tensor,
        count: int,
        part: slice,
        generator: torch.Generator,
    ) -> Tensor:
        """The images at `indices` under the draws `part` of `count`; one draw serves all images."""
        rows, columns = self._grid(count, images.shape[-1], generator)
        gathered = images[indices[:, None, None], :, rows[part], columns[part]]
        batch = gathered.permute(0, 3, 1, 2).float().div_(255)
        if self.colour_jitter:
            batch = self._vary_colour(batch, count, part, generator)
        if self.stain_jitter and images.shape[1] == 3:
            batch = self._vary_stain(batch, count, part, generator)
        return batch.clamp_(0, 1)

    def _grid(self, count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The source row and source column of every result pixel: two int64 [count, S, S]."""
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
            transposed = (rows.transpose(1, 2), columns.transpose(1, 2))
            rows, columns = (
                torch.where(coin[2], transposed[0], rows),
                torch.where(coin[2], transposed[1], columns),
            )
        return rows, columns

    def _vary_colour(
        self, batch: Tensor, count: int, part: slice, generator: torch.Generator
    ) -> Tensor:
        """Scale saturation, then contrast, then brightness of each image of `batch`."""
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
        """Scale and shift the stain densities of each image of `batch`."""
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
    """The matrices from stains to RGB and back, float32 [3, 3] each.

    They are cached, because copying and inverting them on a GPU would make the host wait in every
    step.
    """
    to_rgb = torch.tensor(STAIN_DENSITIES)
    to_rgb = to_rgb / to_rgb.norm(dim=1, keepdim=True)
    return to_rgb.to(device), torch.linalg.inv(to_rgb).to(device)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside [0, size) reflected at the border pixel; for shifts below `size`."""
    position = position.abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def _around(
    centre: float, width: float, shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Uniform draws from [centre - width, centre + width), float32 of `shape`."""
    draws = torch.rand(shape, generator=generator, device=generator.device)
    return centre + (2 * draws - 1) * width
