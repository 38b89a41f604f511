"""Names of classes and files as people may read them: literal, of bounded width, on one line.

A name comes from a user's folder, so it may hold anything: letters of any script, signs that mean
something to Markdown or to a mathematics renderer, line breaks, bytes that are not UTF-8.
"""

from __future__ import annotations

import unicodedata

from data_sources.names import printable

ELLIPSIS = "…"


def columns(text: str) -> int:
    """How many columns of a terminal `text` takes; Chinese, Japanese, Korean letters take two."""
    return sum(0 if unicodedata.combining(character) else _width(character) for character in text)


def _width(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shorten(name: str, width: int = 20) -> str:
    """`name`, printable, in at most `width` columns; a cut one has an ellipsis in its middle.

    Names of classes and files often differ only at their ends, so both ends stay.
    """
    name = printable(name)
    if columns(name) <= width:
        return name
    tail = _cut(name[::-1], (width - 1) // 3)[::-1]
    return _cut(name, width - 1 - columns(tail)) + ELLIPSIS + tail


def _cut(text: str, width: int) -> str:
    """The beginning of `text` that fits into `width` columns."""
    used = 0
    for position, character in enumerate(text):
        used += columns(character)
        if used > width:
            return text[:position]
    return text


def padded(text: str, width: int, right: bool = False) -> str:
    """`text` filled with spaces to `width` columns; at its left side with `right`."""
    space = " " * (width - columns(text))
    return space + text if right else text + space


def wrapped(text: str, width: int, lines: int) -> list[str]:
    """`text` in at most `lines` lines of at most `width` columns, broken at spaces if possible."""
    words = printable(text).split(" ")
    rows: list[str] = []
    while words:
        row = words.pop(0)
        while words and columns(row) + 1 + columns(words[0]) <= width:
            row += " " + words.pop(0)
        if columns(row) > width:
            start = _cut(row, width)
            words.insert(0, row[len(start) :])
            row = start
        rows.append(row)
    if len(rows) > lines:
        rows = [*rows[: lines - 1], _cut(rows[lines - 1], width - 1) + ELLIPSIS]
    return rows
