"""Names of classes and files, literal and on one line.

A name comes from a user's folder, so it may hold anything: letters of any script, line breaks,
bytes that are not UTF-8.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import PurePath

# Control characters, lone surrogates, line and paragraph separators.
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
# They reorder the text around them, so that a name could pose as another one.
DIRECTION_CONTROLS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(name: str) -> str:
    r"""`name` with an escape, such as `\n` or `\xe9`, for each character that cannot be shown.

    Python keeps a byte of a file name that is not UTF-8 as a lone surrogate; it becomes `\xNN`.
    """
    return "".join(
        _escape(character)
        if unicodedata.category(character) in UNPRINTABLE or character in DIRECTION_CONTROLS
        else character
        for character in name
    )


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's stand-in for a byte
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def readable(path: str | PurePath) -> str:
    """A path as text for people, `printable`, which any file or terminal takes.

    Letters with accents are one character each (Unicode's NFC). macOS stores them as two in names
    of files, where other systems and keyboards give one, and both look the same.
    """
    return unicodedata.normalize("NFC", printable(os.fspath(path)))
