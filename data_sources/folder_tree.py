"""All files below a folder: those that are images, and those that are not.

Images are recognised by their content, whatever their ending. What operating systems and programs
leave behind is passed over.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from data_sources.image_file import SUFFIXES, is_image
from data_sources.names import readable
from errors import UserError

# Besides names that begin with a dot.
_LITTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or left there by an operating system."""
    return name.startswith(".") or name.lower() in _LITTER


@dataclass
class Tree:
    """What lies below `root`, as paths relative to it, folder by folder in order of name."""

    root: Path
    images: list[PurePosixPath] = field(default_factory=list)
    others: list[PurePosixPath] = field(default_factory=list)
    folders: list[PurePosixPath] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path) -> Tree:
        """Read the folder.

        Raises:
            OSError: it or a folder below cannot be read.
            RuntimeError: links lead round in a circle.
            UserError: a link leads out of the folder.
        """
        tree = cls(root)
        tree._walk(PurePosixPath(), str(root.resolve(strict=True)), ())
        return tree

    def _walk(self, below: PurePosixPath, real_root: str, parents: tuple[str, ...]) -> None:
        """Add the content of the folder `below`; `parents` are the real paths of those above."""
        here = os.path.realpath(self.root / below)
        if here in parents:
            raise RuntimeError(f"{below} leads back to a folder above it")
        for entry in _entries(self.root / below, real_root):
            path = below / entry.name
            if entry.is_dir():
                self.folders.append(path)
                self._walk(path, real_root, (*parents, here))
            elif entry.is_file() and (
                path.suffix.lower() in SUFFIXES or is_image(Path(entry.path))
            ):
                self.images.append(path)
            else:
                self.others.append(path)


def describe_left_out(paths: Sequence[PurePosixPath]) -> str:
    """How many files of which ending are no images, with an example of each."""
    examples: dict[str, PurePosixPath] = {}
    for path in paths:
        examples.setdefault(path.suffix.lower(), path)
    counts = Counter(path.suffix.lower() for path in paths)
    kinds = ", ".join(
        f"{count} {readable(ending) or 'without an ending'} (such as {readable(examples[ending])})"
        for ending, count in counts.most_common()
    )
    return f"{len(paths)} files left out, as they are no images that can be read: {kinds}"


def _entries(folder: Path, real_root: str) -> Iterator[os.DirEntry[str]]:
    """What is in `folder`, by name. A link out of the data set is refused, not skipped.

    Otherwise its images would be missing unnoticed, or whatever it leads to would become training
    data.
    """
    with os.scandir(folder) as scan:
        # The same order in any locale, and where macOS has taken letters and accents apart.
        entries = sorted(scan, key=lambda entry: (normalize("NFC", entry.name), entry.name))
    for entry in entries:
        if is_litter(entry.name):
            continue
        if entry.is_symlink():
            target = Path(entry.path).resolve(strict=True)
            if not target.is_relative_to(real_root):
                raise UserError(
                    f"{readable(entry.path)}: link leads out of the data set, to "
                    f"{readable(target)}; copy the images into the folder"
                )
        yield entry
