"""One file's bytes as images: the pixels for the network and, if asked for, a picture to look at.

Runs in the child process. Everything that a file claims is checked before it is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_sources.image_file import (
    check_image,
    decode_opened,
    read_picture,
    with_channels,
)
from errors import UserError
from serving.decoding import arrays
from serving.decoding.formats import PICTURES, check_format
from serving.decoding.limits import Limits, RefusedFileError


@dataclass(frozen=True)
class DecodedImage:
    """One image.

    Attributes:
        name: of the image inside its file, such as `x[3]`; empty where a file is one image.
        width, height: as in the file.
        pixels: uint8 [C, S, S], resized for the network.
        preview: a PNG, or nothing.
    """

    name: str
    width: int
    height: int
    pixels: NDArray[np.uint8]
    preview: bytes


def decode_file(
    data: bytes, declared: str | None, size: int, channels: int, limits: Limits, preview: int
) -> list[DecodedImage]:
    """All images of one file, resized whole to `size` x `size` as training images are.

    Args:
        declared: the format that the file claims to be, if it does.
        preview: the longest side of a picture to look at, in pixels; 0: none.

    Raises:
        RefusedFileError: the file is damaged, too large or of another kind.
    """
    found = check_format(data, declared)
    if found in PICTURES:
        return [_decode_picture(data, found, size, channels, limits, preview)]
    read = arrays.read_npy if found == "NPY" else arrays.read_hdf5
    images = []
    for name, array in _checked_count(read(data, limits), limits):
        image = Image.fromarray(array)
        small = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = with_channels(np.asarray(small).reshape(size, size, -1), channels)
        picture = _png(image, preview) if preview else b""
        images.append(DecodedImage(name, *image.size, pixels, picture))
    return images


def _checked_count(
    images: Iterator[tuple[str, NDArray[np.uint8]]], limits: Limits
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for count, image in enumerate(images):
        if count >= limits.max_images:
            raise RefusedFileError(
                413, f"the file has more than {limits.max_images} images; split it"
            )
        yield image


def _decode_picture(
    data: bytes, found: str, size: int, channels: int, limits: Limits, preview: int
) -> DecodedImage:
    try:
        with Image.open(BytesIO(data), formats=[found]) as image:
            _check_pixels(image.width, image.height, limits)
            check_image(image, limits.max_pixels)
            decoded = decode_opened(image, size)
        picture = b""
        if preview:
            shown = read_picture(BytesIO(data), name="the file", max_pixels=limits.max_pixels)
            picture = _png(shown, preview)
    except (RefusedFileError, MemoryError):
        raise
    except UserError as error:
        raise RefusedFileError(400, str(error)) from error
    except Image.DecompressionBombError as error:
        raise RefusedFileError(413, f"the {found} file is too large: {error}") from error
    # Pillow's parsers raise OSError, SyntaxError, struct.error and more on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RefusedFileError(400, f"the {found} file is unusable ({reason})") from error
    pixels = with_channels(decoded.pixels, channels)
    return DecodedImage("", *decoded.original_size, pixels, picture)


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise RefusedFileError(
            413,
            f"the image has {width} x {height} pixels, more than {limits.max_pixels:,}; "
            "cut it into smaller ones",
        )


def _png(image: Image.Image, longest_side: int) -> bytes:
    small = image.copy()
    small.thumbnail((longest_side, longest_side), Image.Resampling.BILINEAR)
    file = BytesIO()
    small.save(file, "PNG", compress_level=1)
    return file.getvalue()
