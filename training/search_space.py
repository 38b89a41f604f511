"""The values that a search can give a hyperparameter, in Determined's notation.

`hyperparameters.learning_rate: {type: log, base: 10, minval: -4, maxval: -2}` is such a range. A
plain value, and `{type: const, val: ...}`, to which a cluster turns it, is a range of one value.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from errors import UserError
from training.fields import as_number

LARGEST = sys.float_info.max  # bounds beyond it, and those that are no numbers, are refused
# The keys that each type of range needs.
KEYS = {
    "const": ("val",),
    "categorical": ("vals",),
    "int": ("minval", "maxval"),
    "double": ("minval", "maxval"),
    "log": ("minval", "maxval", "base"),
}


@dataclass(frozen=True)
class SearchRange:
    """What one hyperparameter can be.

    kind: const, categorical, int, double or log.
    values: what can be drawn: all of it for const and categorical, else the two ends.
    low, high: of int and double the ends; of log the exponents of `base`.
    """

    kind: str
    values: tuple[Any, ...]
    low: float = 0.0
    high: float = 0.0
    base: float = 0.0

    @property
    def varies(self) -> bool:
        """Whether two trials can have different values."""
        return any(value != self.values[0] for value in self.values)

    def draw(self, generator: random.Random) -> Any:
        """One value; a double or the exponent of a log uniformly, the others with equal chances."""
        if self.kind == "const":
            return self.values[0]
        if self.kind == "categorical":
            return generator.choice(self.values)
        if self.kind == "int":
            return generator.randint(int(self.low), int(self.high))
        drawn = generator.uniform(self.low, self.high)
        return float(self.base**drawn) if self.kind == "log" else drawn


def parse_range(name: str, value: Any) -> SearchRange:
    """The range that stands in the configuration as the value of `hyperparameters.name`.

    Raises:
        UserError: a range that Determined would refuse as well.
    """
    if not isinstance(value, dict):
        return SearchRange("const", (value,))
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in KEYS:
        raise UserError(
            f"hyperparameters.{name}.type: {kind!r} is not a kind of search range; "
            f"allowed are {', '.join(sorted(KEYS))}"
        )
    for key in KEYS[kind]:
        if key not in value:
            raise UserError(f"hyperparameters.{name}.{key}: missing; a {kind} range needs it")
    if kind == "const":
        return SearchRange(kind, (value["val"],))
    if kind == "categorical":
        if not isinstance(value["vals"], list) or not value["vals"]:
            raise UserError(
                f"hyperparameters.{name}.vals: {value['vals']!r} is no list of values; give one"
            )
        return SearchRange(kind, tuple(value["vals"]))
    return _numeric_range(name, kind, value)


def _numeric_range(name: str, kind: str, spec: Mapping[str, Any]) -> SearchRange:
    low, high = (_bound(name, kind, spec[key]) for key in ("minval", "maxval"))
    if low > high:
        raise UserError(f"hyperparameters.{name}: minval {low} is above maxval {high}; swap them")
    if kind != "log":
        return SearchRange(kind, (low, high), low, high)
    base = as_number(spec["base"])
    if isinstance(base, bool) or not isinstance(base, (int, float)) or base <= 1:
        raise UserError(f"hyperparameters.{name}.base: {base!r} is not above 1; give 10")
    try:
        ends = (float(base**low), float(base**high))
    except OverflowError:
        raise UserError(
            f"hyperparameters.{name}: {base} ** {high} is no number; lower maxval, an exponent"
        ) from None
    return SearchRange(kind, ends, low, high, base)


def _bound(name: str, kind: str, bound: Any) -> float:
    number = as_number(bound)
    usable = type(number) in (int, float) and abs(number) <= LARGEST
    if not usable or (kind == "int" and number != int(number)):
        raise UserError(
            f"hyperparameters.{name}: {bound!r} is no bound of a range of type {kind}; "
            f"give {'a whole number' if kind == 'int' else 'a number'}"
        )
    return int(number) if kind == "int" else float(number)
