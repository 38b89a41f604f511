"""Tells file formats by content and refuses files that are two things at once.

A file is read as what its first bytes say. Its ending or media type has to say the same. Data
behind the end of an image, or the signature of a second format, is refused: such a file is made
to be taken for something else by another program.
"""

from __future__ import annotations

import re
import struct
import zipfile
from io import BytesIO
from pathlib import PurePath

from serving.decoding.limits import RefusedFileError

READ = "PNG, JPEG, TIFF, NPY and HDF5"
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"\x93NUMPY": "NPY",
    b"\x89HDF\r\n\x1a\n": "HDF5",
}
# Formats that people send by mistake, so that the refusal can name them.
OTHERS = {
    b"PK\x03\x04": "a ZIP archive (an .npz is one; save its array as .npy)",
    b"\x1f\x8b": "a gzip archive",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"RIFF": "a WebP or another RIFF file",
    b"%PDF": "a PDF",
    b"II+\x00": "a BigTIFF",
    b"MM\x00+": "a BigTIFF",
    b"\x80": "a pickle, which is never loaded",
}
BY_ENDING = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".npy": "NPY",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
}
BY_MEDIA_TYPE = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/tiff": "TIFF",
    "application/x-npy": "NPY",
    "application/x-hdf5": "HDF5",
}
# Media types that say nothing about the format.
ANY_TYPES = {"application/x-image", "application/octet-stream", ""}
PICTURES = {"PNG", "JPEG", "TIFF"}
ZIP_END = b"PK\x05\x06"
FOREIGN = (b"%pdf-", b"<script", b"<?php")  # in lower case
# Entropy-coded JPEG data: a marker is 0xFF and a byte that is no stuffing, restart or fill.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
JPEG_END = 0xD9


def declared_format(name: str, media_type: str) -> str | None:
    """The format that the ending of `name` or else the media type claims; None: neither says.

    Raises:
        RefusedFileError: they claim a format that is not read.
    """
    if name and (ending := PurePath(name).suffix.lower()):
        if ending not in BY_ENDING:
            raise RefusedFileError(
                415, f"files ending in {ending[:12]!r} are not read; give {READ}"
            )
        return BY_ENDING[ending]
    if media_type in ANY_TYPES:
        return None
    if media_type not in BY_MEDIA_TYPE:
        raise RefusedFileError(415, f"media type {media_type[:60]!r} is not read; give {READ}")
    return BY_MEDIA_TYPE[media_type]


def check_format(data: bytes, declared: str | None) -> str:
    """The format of `data` by its first bytes: a value of `SIGNATURES`.

    Raises:
        RefusedFileError: it is another one than declared, or no format that is read, or two.
    """
    if not data:
        raise RefusedFileError(400, "the file is empty")
    found = next((name for start, name in SIGNATURES.items() if data.startswith(start)), None)
    if found is None:
        other = next((name for start, name in OTHERS.items() if data.startswith(start)), None)
        what = f"is {other}" if other else "is of no known kind"
        claim = f", not the {declared} that it claims to be" if declared else ""
        raise RefusedFileError(415, f"the file {what}{claim}; give {READ}")
    if declared not in (None, found):
        raise RefusedFileError(
            415, f"the file is {found} by its content and {declared} by its name or type; rename it"
        )
    _refuse_two_in_one(data, found)
    return found


def _refuse_two_in_one(data: bytes, found: str) -> None:
    behind = 0
    if found == "PNG":
        behind = len(data) - _png_end(data)
    elif found == "JPEG":
        behind = len(data[_jpeg_end(data) :].strip(b"\0"))
    second = None
    if found in PICTURES:
        lower = data.lower()
        # Every ZIP archive holds the mark; looking for it is cheaper than looking for an archive.
        if ZIP_END in data and zipfile.is_zipfile(BytesIO(data)):
            second = "ZIP"
        elif any(mark in lower for mark in FOREIGN):
            second = "PDF or script"
    if behind > 0 or second:
        what = f"{second} content" if second else f"{behind} bytes behind the end of its image"
        raise RefusedFileError(415, f"the {found} file has {what}; save the image again")


def _png_end(data: bytes) -> int:
    """Where the PNG's last chunk ends.

    Raises:
        RefusedFileError: there is no last chunk.
    """
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        position += 12 + length
        if kind == b"IEND" and position <= len(data):
            return position
    raise RefusedFileError(400, "the PNG file ends too early; send it again")


def _jpeg_end(data: bytes) -> int:
    """Where the JPEG's end marker ends.

    Raises:
        RefusedFileError: there is none.
    """
    position = 2
    while match := JPEG_MARKER.search(data, position):
        marker = data[match.start() + 1]
        position = match.end()
        if marker == JPEG_END:
            return position
        if position + 2 > len(data):
            break
        # Every other marker here has a segment with its length; a scan's data follow its header.
        (length,) = struct.unpack_from(">H", data, position)
        position += length
    raise RefusedFileError(400, "the JPEG file ends too early; send it again")
