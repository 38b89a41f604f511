"""The table of MedMNIST's data sets: classes, channels, files and their MD5, licence.

`medmnist.json` beside this file is taken from the package medmnist 3.0.2, which itself is not
needed: importing it takes over a second and pulls in pandas and scikit-image. A test compares the
two, and `python -m tests.test_medmnist_table` writes the file anew.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("medmnist.json")


@functools.cache
def medmnist_sets() -> dict[str, dict[str, Any]]:
    """For each data set's flag, such as `pathmnist`: task, number of channels (`n_channels`),
    class names by label (`label`), address and MD5 of its files, licence and description."""
    table: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
