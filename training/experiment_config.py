"""Reads a Determined experiment configuration on a machine without a cluster.

`load` reads the YAML, `override` applies `--set a.b=value`, and `sample` draws one value for every
hyperparameter that a search would choose, in the notation of Determined's own configuration.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from errors import UserError
from training.fields import nearest
from training.hyperparameters import Hyperparameters
from training.search_space import parse_range

logger = logging.getLogger("active_learning")


class _OnceEach(yaml.SafeLoader):
    """Refuses a name that stands twice in one mapping, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"{key.value} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text of plain values.

    Raises:
        yaml.YAMLError: it is no such text, or a name stands twice in a mapping.
        ValueError, RecursionError: likewise.
    """
    return yaml.load(text, _OnceEach)


def load(path: Path) -> dict[str, Any]:
    """The configuration in the YAML file at `path`.

    Raises:
        UserError: no such file, no YAML, or no `hyperparameters` in it.
    """
    try:
        config = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text"
        message = f"--config {path}: {reason}; give a YAML file such as config.yaml"
        raise UserError(message) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        where = " ".join(str(error).split())
        raise UserError(f"--config {path}: not valid YAML ({where}); correct it there") from None
    if not isinstance(config, dict) or not isinstance(config.get("hyperparameters"), dict):
        raise UserError(
            f"--config {path}: no mapping `hyperparameters` in it; see config.yaml for one"
        )
    return config


def override(config: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`config` with every `dotted.name=value` applied; values are read as YAML.

    A hyperparameter need not be in the configuration, since it has a default.

    Raises:
        UserError: an assignment has no `=`, is no YAML, or sets what does not exist.
    """
    config = copy.deepcopy(config)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: no `=` in it; write --set NAME=VALUE")
        *parents, last = name.split(".")
        mapping: Any = config
        for parent in parents:
            mapping = mapping.get(parent) if isinstance(mapping, dict) else None
        if not isinstance(mapping, dict) or last not in _settable(parents, mapping):
            raise UserError(
                f"--set {assignment}: the configuration has no {name}"
                f"{_suggestion(name, config)}; "
                "write its whole path, such as hyperparameters.batch_size"
            )
        try:
            mapping[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {assignment}: {text!r} is no YAML value; quote it") from None
    return config


def _settable(parents: Sequence[str], mapping: Mapping[str, Any]) -> set[str]:
    """The names that can be set in `mapping`, which `parents` lead to."""
    return set(mapping) | (Hyperparameters.names() if parents == ["hyperparameters"] else set())


def _suggestion(name: str, config: Mapping[str, Any]) -> str:
    """ " (did you mean ...?)" with the whole path that is nearest to `name`, or nothing."""
    paths = {f"hyperparameters.{one}" for one in Hyperparameters.names()}
    for section, content in config.items():
        paths |= {f"{section}.{key}" for key in content} if isinstance(content, dict) else {section}
    by_last = {path.rpartition(".")[2]: path for path in sorted(paths)}
    if name in by_last:
        return f" (did you mean {by_last[name]}?)"
    return nearest(name, sorted(paths))


def sample(hyperparameters: dict[str, Any], seed: int) -> tuple[dict[str, Any], list[str]]:
    """One value for every hyperparameter, and the names of those that were drawn at random.

    Raises:
        UserError: a search range that Determined would refuse as well.
    """
    generator = random.Random(seed)
    ranges = {name: parse_range(name, value) for name, value in hyperparameters.items()}
    values = {name: one.draw(generator) for name, one in ranges.items()}
    return values, [name for name, one in ranges.items() if one.kind != "const"]


def drawn_config(config: dict[str, Any], log: bool) -> dict[str, Any]:
    """`config` with one value for each hyperparameter that a search would choose.

    Raises:
        UserError: there is no usable reproducibility.experiment_seed, or a range is wrong.
    """
    seed = (config.get("reproducibility") or {}).get("experiment_seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise UserError(
            f"reproducibility.experiment_seed: {seed!r} is not a whole number from 0 to "
            "2**31 - 1; give one, such as 0"
        )
    values, drawn = sample(config["hyperparameters"], seed)
    if drawn and log:
        text = ", ".join(f"{name}: {values[name]}" for name in drawn)
        logger.info("one sample of the search space, drawn with seed %d: %s", seed, text)
    return {**config, "hyperparameters": values}
