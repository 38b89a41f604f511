"""Which installed font has the letters of a text; DejaVu Sans, of matplotlib, comes first.

Importing this module turns matplotlib's reading of `$...$` as mathematics off: class names are
text.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable

import matplotlib
from matplotlib import font_manager

DEFAULT_FAMILY = "DejaVu Sans"
PLACEHOLDERS = "Last Resort"  # begins the name of a font that has a box for every letter

logger = logging.getLogger(__name__)
matplotlib.rcParams["text.parse_math"] = False


def font_files(text: str) -> list[str]:
    """Files of the fonts that `text` needs, the default font first.

    Letters that no installed font has are warned of once; they are drawn as boxes.
    """
    files = [default_file()]
    missing = _missing(text, files)
    if missing:
        files += _fonts_with("".join(sorted(missing)))
    return files


def line_font_file(text: str) -> str:
    """The one font that has most letters of `text`."""
    return min(font_files(text), key=lambda file: len(_missing(text, [file])))


def families(text: str) -> list[str]:
    """The same as names of font families, as matplotlib takes them."""
    return [font_manager.get_font(file).family_name for file in font_files(text)]


@functools.cache
def default_file() -> str:
    """The file of DejaVu Sans."""
    return font_manager.findfont(DEFAULT_FAMILY)


def _missing(text: str, files: Iterable[str]) -> set[str]:
    """The visible letters of `text` that none of the fonts has."""
    known = [_letters(file) for file in files]
    return {
        letter
        for letter in set(text)
        if not letter.isspace() and not any(ord(letter) in letters for letters in known)
    }


@functools.cache
def _letters(file: str) -> frozenset[int]:
    """Code points that the font has a shape for."""
    return frozenset(font_manager.get_font(file).get_charmap())


@functools.cache
def _fonts_with(letters: str) -> list[str]:
    """Fonts that together have as many of `letters` as can be had, the most useful first."""
    candidates = _installed()
    chosen: list[str] = []
    missing = set(letters)
    while missing:
        gains = {
            file: len(missing) - len(_missing("".join(missing), [file])) for file in candidates
        }
        best = max(gains, key=lambda file: gains[file], default=None)
        if best is None or not gains[best]:
            logger.warning(
                "no installed font has the letters %s; pictures show boxes in their place: install "
                "a font that has them, such as fonts-noto-cjk, and delete matplotlib's font cache",
                "".join(sorted(missing))[:20],
            )
            break
        chosen.append(best)
        missing = _missing("".join(missing), [best])
    return chosen


@functools.cache
def _installed() -> list[str]:
    """Files of upright fonts of normal weight that can be read."""
    files = []
    for entry in font_manager.fontManager.ttflist:
        upright = entry.style == "normal" and entry.weight in (400, "normal", "regular")
        if upright and not entry.name.startswith(PLACEHOLDERS):
            try:
                _letters(entry.fname)
            except (OSError, RuntimeError):  # deleted since, or of a kind FreeType cannot read
                continue
            files.append(entry.fname)
    return files
