"""One image file: opened within limits, turned upright, and brought to 8 bits of grey or colour.

Everything that reads an image file goes through this module, so that training, prediction,
labelling and serving see the same pixels and refuse the same files.

Pixels of other kinds than 8-bit grey and colour become such by fixed rules:

- 16 bits a channel: the upper 8 bits are kept, so 0 to 65535 becomes 0 to 255.
- Transparency, in any form a file can carry it, is composed on `BACKGROUND`.
- Palettes, CMYK, YCbCr, LAB and HSV become RGB.
- 32-bit and signed integers and floating point have no range of their own, so they are refused, and
  so are files of several pages or frames.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from errors import UserError

# Endings by which a file is meant as an image: one that cannot be decoded is an error. A file with
# another ending is an image if Pillow knows its content.
SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib"),
        *(".webp", ".gif", ".jp2", ".j2k", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
# Formats of Pillow that only call another program or hold no single picture.
_EXCLUDED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}

MAX_PIXELS = 2**26  # 67 million; the largest take 0.3 GB and about a second to decode
_BYTES_PER_PIXEL = 8  # 16-bit RGBA without compression
_HEADER_BYTES = 2**24  # for metadata and colour profiles
BACKGROUND = 255  # white, on which transparent pixels are composed

_GREY_MODES = {"1", "L", "LA", "La"}
_DEEP_GREY_MODES = {"I;16", "I;16L", "I;16B", "I;16N"}
_COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 262, 0
_SAMPLE_FORMAT_TAG, _UNSIGNED = 339, 1

# What Pillow warns of is refused here, by a limit that callers can raise, or does not matter.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class DecodedImage:
    """One image, resized.

    Attributes:
        pixels: uint8 [S, S, 1] for a grey image, else [S, S, 3].
        original_size: width and height in pixels, as the file has them.
        is_deep: the file has 16 bits a channel.
        is_transparent: some transparency was composed on `BACKGROUND`.
    """

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]
    is_deep: bool
    is_transparent: bool


def decode(
    source: Path | IO[bytes], size: int, *, name: str = "", max_pixels: int = MAX_PIXELS
) -> DecodedImage:
    """Read the image of a file and resize it whole, without keeping its aspect ratio.

    Args:
        source: the file's path, or the file opened for reading.
        size: side of the result in pixels.
        name: of the file in error messages; the path where it is empty.
        max_pixels: a larger image is refused before it is decoded.

    Raises:
        UserError: the file is no image, is damaged, is too large or has unsuitable pixels.
    """
    with _as_user_error(name or str(source)), open_image(source, max_pixels) as image:
        return decode_opened(image, size)


def decode_opened(image: Image.Image, size: int) -> DecodedImage:
    """As `decode`, of an image that `open_image` or `check_image` has accepted.

    Raises:
        Exception: whatever Pillow raises for files that it cannot read.
    """
    original_size, is_deep = image.size, _has_16_bits(image)
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the work. Twice the
    # wanted size leaves the resizing enough to average over.
    image.draft(image.mode, (2 * size, 2 * size))
    is_transparent = _has_transparency(image)
    picture = _upright_8_bits(image)
    resized = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels: NDArray[np.uint8] = np.asarray(resized, dtype=np.uint8).reshape(size, size, -1)
    return DecodedImage(pixels, original_size, is_deep, is_transparent)


def read_picture(
    source: Path | IO[bytes], *, name: str = "", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The image of a file at its original size, upright, in mode L or RGB and without metadata.

    Raises:
        UserError: as `decode` does.
    """
    with _as_user_error(name or str(source)), open_image(source, max_pixels) as image:
        picture = _upright_8_bits(image).copy()
        picture.info.clear()
        return picture


def with_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """uint8 [S, S, 1 or 3] as [channels, S, S]: grey is repeated, colour becomes luminance."""
    if pixels.shape[2] == 3 and channels == 1:
        grey = np.asarray(Image.fromarray(pixels).convert("L"))  # ITU-R BT.601
        pixels = grey[..., np.newaxis]
    if pixels.shape[2] != channels:
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], channels))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def open_image(source: Path | IO[bytes], max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The image of a file, not yet decoded, once its size and its kind of pixels are acceptable.

    Raises:
        ValueError: too many pixels or bytes, several pages, or unsuitable pixels.
        Exception: whatever Pillow raises for files that it cannot read: OSError, SyntaxError,
            struct.error and more.
    """
    largest = max_pixels * _BYTES_PER_PIXEL + _HEADER_BYTES
    if isinstance(source, Path) and (file_bytes := os.stat(source).st_size) > largest:
        raise ValueError(
            f"{file_bytes / 2**20:.0f} MiB, more than the {largest / 2**20:.0f} that "
            f"{max_pixels} pixels take; cut it into smaller images, or raise max_pixels"
        )
    # Pillow's own limit is only ever raised: it guards images inside of other images.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)
    with Image.open(source, formats=_formats()) as image:
        check_image(image, max_pixels)
        yield image


def check_image(image: Image.Image, max_pixels: int) -> None:
    """Refuse an image that is not decoded yet.

    Raises:
        ValueError: too many pixels, several pages, or pixels that become 8-bit ones only by a
            choice that is the user's.
    """
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"{image.width}x{image.height} pixels, more than {max_pixels}; cut it into smaller "
            "images, or raise max_pixels"
        )
    _refuse_unsuitable(image)


def is_image(path: Path) -> bool:
    """Whether Pillow recognises the content of the file, whatever the file's ending."""
    try:
        with Image.open(path, formats=_formats()):
            return True
    except (UnidentifiedImageError, Image.DecompressionBombError, ValueError):
        return False


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _EXCLUDED_FORMATS)


@contextmanager
def _as_user_error(name: str) -> Iterator[None]:
    try:
        yield
    # Pillow's parsers raise OSError, SyntaxError, struct.error and more on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its text is the file's name once more
            reason = "cannot identify its format"
        raise UserError(f"{name}: unusable image ({reason}); replace or remove it") from error


def _refuse_unsuitable(image: Image.Image) -> None:
    """Refuse what becomes 8-bit pixels only by a choice that is the user's."""
    # In files of 16-bit grey, PPM and old versions of Pillow use the mode of 32-bit integers.
    known = _GREY_MODES | _DEEP_GREY_MODES | _COLOUR_MODES
    if image.mode not in known and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise ValueError(f"mode {image.mode}: choose a window and save it with 8 bits a channel")
    if image.format == "TIFF":
        formats = image.tag_v2.get(_SAMPLE_FORMAT_TAG, (_UNSIGNED,))  # type: ignore[attr-defined]
        if any(value != _UNSIGNED for value in formats):
            raise ValueError("signed samples: choose a window and save it with 8 bits a channel")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the further frames of an MPO are previews
        raise ValueError(f"{frames} pages: save each as a file of its own")


def _has_16_bits(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel; known only until the image is decoded."""
    if image.mode in _DEEP_GREY_MODES or image.mode == "I":
        return True
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    raw_mode = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
    return isinstance(raw_mode, str) and ";16" in raw_mode


def _has_transparency(image: Image.Image) -> bool:
    return image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info


def _upright_8_bits(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, turned as its metadata says."""
    is_deep, is_transparent = _has_16_bits(image), _has_transparency(image)
    is_grey = image.mode in _GREY_MODES
    key = image.info.get("transparency")
    white_is_zero = (
        image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
    )
    upright = image
    ImageOps.exif_transpose(upright, in_place=True)  # a large image is not copied without need
    if upright.mode in _DEEP_GREY_MODES | {"I"}:
        samples = np.asarray(upright)
        inverted = 65535 - samples if white_is_zero else samples  # Pillow does so for 8 bits only
        picture = Image.fromarray((inverted >> 8).astype(np.uint8))
        if not is_transparent:
            return picture
        alpha = Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8))
        return _composed(picture, alpha)
    if not is_transparent:
        mode = "L" if is_grey else "RGB"
        return upright if upright.mode == mode else upright.convert(mode)
    if is_deep and isinstance(key, tuple):  # the samples that it is compared with have 8 bits
        upright.info["transparency"] = tuple(value >> 8 for value in key)
    with_alpha = upright.convert("LA" if upright.mode == "La" else "RGBA")
    colours = with_alpha.getchannel(0) if is_grey else with_alpha.convert("RGB")
    return _composed(colours, with_alpha.getchannel("A"))


def _composed(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    """`picture`, L or RGB, over the background, as far as `alpha`, L, lets it through."""
    background = Image.new(picture.mode, picture.size, (BACKGROUND,) * len(picture.getbands()))
    return Image.composite(picture, background, alpha)
