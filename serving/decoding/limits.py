"""What one file may cost, and how a file that is refused is described."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that a file may ask for.

    Attributes:
        max_bytes: of one request's body.
        max_pixels: width times height of one image.
        max_images: in one request.
        seconds: for decoding one file; a child that takes longer is killed.
        memory_bytes: address space of a child process.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 25_000_000
    max_images: int = 1000
    seconds: float = 5.0
    memory_bytes: int = 2 * 2**30

    @property
    def max_file_pixels(self) -> int:
        """Pixels of all images in one file together."""
        return 4 * self.max_pixels


class RefusedFileError(Exception):
    """A file that is not read, with the HTTP status that says why.

    400: damaged. 413: too large. 415: of a kind that is not read, or not of the kind it claims.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
