"""Where each image of a store came from: its file, or the array and the position in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_sources.names import readable


class Sources(Protocol):
    """One name for each image, as a person reads it, and the file where there is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...

    def path(self, index: int) -> Path | None:
        """The file that holds this one image; None where it lies in an array."""

    def take(self, indices: NDArray[np.int64]) -> Sources:
        """The sources of the images at `indices`, int64 [k], in that order."""


@dataclass(frozen=True)
class FileSources:
    """One file for each image; its name is the path relative to `root`, the data set's folder."""

    root: Path
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        return readable(self.paths[index])

    def path(self, index: int) -> Path | None:
        return self.root / self.paths[index]

    def take(self, indices: NDArray[np.int64]) -> FileSources:
        return FileSources(self.root, tuple(self.paths[index] for index in indices))


@dataclass(frozen=True)
class ArraySources:
    """Images of one array, named "array:position"."""

    array: str
    positions: Sequence[int] | NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> str:
        return f"{self.array}:{self.positions[index]}"

    def path(self, index: int) -> Path | None:
        return None

    def take(self, indices: NDArray[np.int64]) -> ArraySources:
        return ArraySources(self.array, np.asarray(self.positions)[indices])
