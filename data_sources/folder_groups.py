"""Which images of a folder belong together: those of one patient, slide or video, for example.

`group_by` is either a regular expression, searched in each path, or the name of a CSV file in the
data set's folder with the columns file and group, split or both.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_sources.folder_listing import SPLIT_NAMES
from data_sources.names import readable
from data_sources.raw import describe_os_error
from data_sources.separated import file_key, separator, without_hint
from errors import UserError

TABLE_SUFFIX = ".csv"


@dataclass(frozen=True)
class Grouping:
    """What `group_by` says of N images.

    Attributes:
        groups: int64 [N], equal for images that belong together.
        names: of the groups, by their number.
        splits: int64 [N], TRAIN, VALIDATION or TEST; None where no table gives them.
    """

    groups: NDArray[np.int64]
    names: tuple[str, ...]
    splits: NDArray[np.int64] | None


def is_table(group_by: str) -> bool:
    """Whether `group_by` names a CSV file; otherwise it is a regular expression."""
    return group_by.lower().endswith(TABLE_SUFFIX)


def group_images(root: Path, paths: Sequence[str], group_by: str) -> Grouping:
    """Group the images of `root` at the relative `paths`.

    Raises:
        UserError: the expression or the table is not usable, or says nothing of some image.
    """
    if is_table(group_by):
        return _from_table(root, paths, group_by)
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UserError(
            f"group_by: {group_by!r} is no regular expression ({error}); correct it, or name a CSV "
            "file"
        ) from None
    names = []
    for path in map(readable, paths):
        match = pattern.search(path)
        if match is None:
            raise UserError(
                f"group_by: {group_by!r} does not match {path}; give an expression that matches "
                "every path in the folder"
            )
        names.append("/".join(part or "" for part in match.groups() or (match[0],)))
    return _numbered(names, None)


def _from_table(root: Path, paths: Sequence[str], name: str) -> Grouping:
    table = root / name
    if Path(name).name != name:
        raise UserError(f"group_by: {name!r} must be the name of a CSV file in {root}; no paths")
    rows = _read_table(table)
    groups: list[str] = []
    splits: list[int | None] = []
    for path in map(readable, paths):
        if file_key(path) not in rows:
            raise UserError(f"{table}: no line for {path}; add it, with the path as written here")
        group, split = rows[file_key(path)]
        groups.append(path if group is None else group)
        splits.append(split)
    unknown = sorted(set(rows) - set(map(file_key, paths)))
    if unknown:
        raise UserError(
            f"{table}: {len(unknown)} files are listed and not there, such as {unknown[0]}; "
            "correct or remove their lines"
        )
    if None in splits:
        return _numbered(groups, None)
    return _numbered(groups, np.array(splits, dtype=np.int64))


def _read_table(table: Path) -> dict[str, tuple[str | None, int | None]]:
    """Group and split by file. Commas, semicolons or tabs part the columns."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            file = io.StringIO(without_hint(opened.read()), newline="")
            header = file.readline()
            delimiter = separator(header)
            columns = [name.strip(' "\r\n').lower() for name in header.split(delimiter)]
            if "file" not in columns or not {"group", "split"} & set(columns):
                raise UserError(
                    f"{table}: columns {', '.join(columns) or 'nothing'}; give file, and group, "
                    "split or both"
                )
            rows: dict[str, tuple[str | None, int | None]] = {}
            for line, row in enumerate(csv.DictReader(file, columns, delimiter=delimiter), 2):
                _add_row(rows, row, f"{table}: line {line}")
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else error
        raise UserError(
            f"{table}: cannot be read ({reason}); give a UTF-8 CSV with file, group, split"
        ) from error


def _add_row(
    rows: dict[str, tuple[str | None, int | None]], row: dict[str, str | None], where: str
) -> None:
    if not any(isinstance(cell, str) and cell.strip() for cell in row.values()):
        return  # a spreadsheet may write rows of empty cells at the end
    name = file_key(row["file"] or "")
    split = (row.get("split") or "").strip().lower()
    if "split" in row and split not in SPLIT_NAMES:
        raise UserError(f"{where}: split {split!r}; give train, val or test")
    if "group" in row and not (row["group"] or "").strip():
        raise UserError(f"{where}: no group for {name!r}; give one")
    if name in rows:
        raise UserError(f"{where}: {name!r} is there twice; remove one line")
    group = row.get("group")
    rows[name] = (group and readable(group.strip()), SPLIT_NAMES[split] if split else None)


def _numbered(names: Sequence[str], splits: NDArray[np.int64] | None) -> Grouping:
    distinct, groups = np.unique(np.array(names, dtype=object), return_inverse=True)
    return Grouping(groups.reshape(-1).astype(np.int64), tuple(map(str, distinct)), splits)


def check_groups_stay_together(
    grouping: Grouping, splits: NDArray[np.int64], paths: Sequence[str], where: Path
) -> None:
    """Refuse splits, int64 [N], that part the images of a group.

    Raises:
        UserError: naming a group and two of its images.
    """
    first: dict[int, int] = {}
    for index, group in enumerate(grouping.groups.tolist()):
        other = first.setdefault(group, index)
        if splits[other] != splits[index]:
            raise UserError(
                f"{where}: group {grouping.names[group]!r} is in two splits "
                f"({readable(paths[other])} and {readable(paths[index])}); move its images into "
                "one, or correct group_by"
            )
