"""The bundled table of MedMNIST's data sets equals the package's own.

`python -m tests.test_medmnist_table` writes the table anew from the installed package.
"""

from __future__ import annotations

import json
from typing import Any

from medmnist import INFO

from data_sources.medmnist_table import TABLE, medmnist_sets

FIELDS = ("task", "n_channels", "label", "url", "MD5", "url_64", "MD5_64", "license", "description")


def table_of_the_package() -> dict[str, dict[str, Any]]:
    """The FIELDS of the package's own table."""
    return {flag: {field: info[field] for field in FIELDS} for flag, info in INFO.items()}


def test_the_table_equals_the_packages() -> None:
    assert medmnist_sets() == table_of_the_package()


if __name__ == "__main__":
    text = json.dumps(table_of_the_package(), indent=1, ensure_ascii=False)
    TABLE.write_text(text + "\n", encoding="utf-8")
