"""Declares one hyperparameter in one statement, and checks a value against the declaration.

`number`, `choice`, `switch` and `text` declare a dataclass field. Its metadata hold what the checks
and docs/settings.md need:

- `does`: what the hyperparameter does, one sentence.
- `why`: the reason for its default, one sentence.
- `unit`: of a number; empty where it has none.
- `low`, `high`: the range of a number, both ends included.
- `allowed`: the values of a choice.
- `fixed_in_search`: True where a search that varied it would compare trials that are not alike.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from errors import UserError

TYPES: dict[str, type[Any]] = {"int": int, "float": float, "bool": bool, "str": str}
TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
}
# YAML 1.1, which PyYAML reads, takes 1e-3 for a text: a number in it needs a point and a sign.
NUMERIC_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def number(
    default: float,
    does: str,
    *,
    why: str,
    low: float,
    high: float = math.inf,
    unit: str = "",
    fixed_in_search: bool = False,
) -> Any:
    """A field that takes numbers from `low` to `high`; whole ones where it is annotated int."""
    metadata = {"does": does, "why": why, "low": low, "high": high, "unit": unit}
    return _field(default, metadata, fixed_in_search)


def choice(
    default: str, does: str, *, why: str, allowed: tuple[str, ...], fixed_in_search: bool = False
) -> Any:
    """A field that takes one of the texts in `allowed`."""
    return _field(default, {"does": does, "why": why, "allowed": allowed}, fixed_in_search)


def switch(default: bool, does: str, *, why: str, fixed_in_search: bool = False) -> Any:
    """A field that takes true or false."""
    return _field(default, {"does": does, "why": why}, fixed_in_search)


def text(default: str, does: str, *, why: str, fixed_in_search: bool = False) -> Any:
    """A field that takes any text."""
    return _field(default, {"does": does, "why": why}, fixed_in_search)


def _field(default: Any, metadata: dict[str, Any], fixed_in_search: bool) -> Any:
    return dataclasses.field(
        default=default, metadata={**metadata, "fixed_in_search": fixed_in_search}
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)" for a misspelt `name`, or nothing where none of `known` is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def as_number(value: Any) -> Any:
    """`value`, or the number that a text such as 1e-3 spells."""
    if not isinstance(value, str) or not NUMERIC_TEXT.fullmatch(value.strip()):
        return value
    whole = value.strip().lstrip("+-").isdigit()
    return int(value) if whole else float(value)


def checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """`value` in the type of `field`.

    Raises:
        UserError: `value` has another type or is not allowed; the line names field and remedy.
    """
    given, wanted = value, TYPES[str(field.type)]
    if wanted in (int, float):
        value = _converted(wanted, value)
    if type(value) is not wanted:  # True is an int to isinstance
        raise UserError(
            f"hyperparameters.{field.name}: {given!r} is not "
            f"{TYPE_NAMES[str(field.type)]}{_remedy(field)}"
        )
    # The comparison refuses NaN as well; infinity needs one of its own where the range has no end.
    if "low" in field.metadata and (
        not field.metadata["low"] <= value <= field.metadata["high"] or value == math.inf
    ):
        raise UserError(f"hyperparameters.{field.name}: {given!r} is out of range{_remedy(field)}")
    if "allowed" in field.metadata and value not in field.metadata["allowed"]:
        allowed = field.metadata["allowed"]
        raise UserError(
            f"hyperparameters.{field.name}: {value!r} is unknown{nearest(value, allowed)}"
            f"{_remedy(field)}"
        )
    return value


def _converted(wanted: type[Any], value: Any) -> Any:
    """`value` as an int or a float where it is that number, else `value` as it is."""
    candidate = as_number(value)
    if isinstance(candidate, bool) or not isinstance(candidate, (int, float)):
        return value
    if wanted is int:
        whole = isinstance(candidate, int) or candidate.is_integer()
        return int(candidate) if whole else value
    try:
        return float(candidate)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def _remedy(field: dataclasses.Field[Any]) -> str:
    if "allowed" in field.metadata:
        return f"; allowed are {', '.join(field.metadata['allowed'])}"
    if "low" not in field.metadata:
        return ""
    return f"; give {range_text(field)}"


def range_text(field: dataclasses.Field[Any]) -> str:
    """The range of a number: "at least 2, at most 512"."""
    low, high = field.metadata["low"], field.metadata["high"]
    return f"at least {low}" + ("" if high == math.inf else f", at most {high}")
