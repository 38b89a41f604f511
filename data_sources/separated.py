"""Tables as spreadsheets write them: commas, semicolons or tabs part the cells."""

from __future__ import annotations

from data_sources.names import readable

SEPARATORS = ",;\t"


def separator(header: str) -> str:
    """What parts the cells of a table, by its first line: the most frequent of `SEPARATORS`."""
    return max(SEPARATORS, key=header.count)


def without_hint(text: str) -> str:
    """`text` without the line `sep=;` at its beginning, which is for Excel alone."""
    first, _, rest = text.partition("\n")
    return rest if first.strip().strip('"').lower().startswith("sep=") else text


def file_key(name: str) -> str:
    """The same for all ways of writing one file's name: Windows has backslashes in a path."""
    return readable(name.strip()).replace("\\", "/").removeprefix("./")
