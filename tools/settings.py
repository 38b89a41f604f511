"""Writes docs/settings.md, the table of all hyperparameters, from their declarations.

    python -m tools.settings

Run it after a change to training/hyperparameters.py; a test holds the two equal.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from reporting.files import write_atomically

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
INTRODUCTION = """# Settings

Every default stands once, in `training/hyperparameters.py`; `python -m tools.settings` writes this
page from it. A YAML file lists, under `hyperparameters:`, what differs from the defaults, and
`--set hyperparameters.NAME=VALUE` changes any of them for one run. Names that are unknown and
values of another type or out of range are refused before any work, with the nearest valid name.
A text such as `1e-3` is a number wherever one is expected.

**In a search**, what is marked `fixed` has one value for all trials, so that they are compared at
equal labels and images.
"""
HEADER = """| name | default | value | unit | what it does | why this default | in a search |
| --- | --- | --- | --- | --- | --- | --- |
"""


def settings_page() -> str:
    """The text of docs/settings.md."""
    from training.hyperparameters import Hyperparameters

    parts = [INTRODUCTION]
    for field in dataclasses.fields(Hyperparameters):
        if field.name in Hyperparameters.SECTIONS:
            parts.append(f"\n## {Hyperparameters.SECTIONS[field.name]}\n\n{HEADER}")
        parts.append(_row(field))
    return "".join(parts)


def _row(field: dataclasses.Field[Any]) -> str:
    from training.fields import TYPE_NAMES, range_text

    metadata = field.metadata
    default = str(field.default).lower() if field.type == "bool" else str(field.default)
    if "allowed" in metadata:
        value = ", ".join(f"`{one}`" for one in metadata["allowed"])
    else:
        value = TYPE_NAMES[str(field.type)]
        value += f", {range_text(field)}" if "low" in metadata else ""
    fixed = "fixed" if metadata["fixed_in_search"] else ""
    cells = (f"`{field.name}`", f"`{default}`", value, metadata.get("unit", ""))
    return f"| {' | '.join((*cells, metadata['does'], metadata['why'], fixed))} |\n"


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.parent.mkdir(exist_ok=True)
    write_atomically(PAGE, settings_page())
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
