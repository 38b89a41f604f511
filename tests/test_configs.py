"""The YAML files: short, valid for Determined 0.38, and sampled without a refusal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from training.experiment_config import load, sample
from training.hyperparameters import Hyperparameters

CONFIGS = sorted([ROOT / "config.yaml", *(ROOT / "configs").glob("*.yaml")])
SCHEMAS = ROOT.parent / "shared" / "expconf"
DEPRECATED = {
    "max_length",
    "records_per_epoch",
    "scheduling_unit",
    "min_validation_period",
    "min_checkpoint_period",
    "optimizations",
    "bind_mount",
}


def keys(node: Any) -> set[str]:
    if isinstance(node, dict):
        return set(node) | {key for value in node.values() for key in keys(value)}
    return set()


@pytest.fixture(params=CONFIGS, ids=lambda path: path.name)
def config_file(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_are_configs() -> None:
    names = {path.name for path in CONFIGS}
    assert {
        "config.yaml",
        "const.yaml",
        "quick.yaml",
        "distributed.yaml",
        "bloodmnist.yaml",
    } <= names


def test_files_are_short(config_file: Path) -> None:
    longest = 70 if config_file.name == "config.yaml" else 35
    assert 8 <= len(config_file.read_text(encoding="utf-8").splitlines()) <= longest


def test_samples_are_valid(config_file: Path) -> None:
    for seed in range(30):
        values, _ = sample(load(config_file)["hyperparameters"], seed)
        Hyperparameters.from_mapping(values)


def test_nothing_deprecated(config_file: Path) -> None:
    config = load(config_file)
    assert keys(config).isdisjoint(DEPRECATED)
    assert config["entrypoint"].startswith("python3 ")
    assert config["searcher"]["metric"] == "val_loss"


def test_search_covers_the_main_hyperparameters() -> None:
    config = load(ROOT / "config.yaml")
    searched = {name for name, v in config["hyperparameters"].items() if isinstance(v, dict)}
    assert searched == {
        "learning_rate",
        "weight_decay",
        "batch_size",
        "uncertainty_passes",
        "query_strategy",
    }
    assert config["searcher"]["name"] == "adaptive_asha"
    assert config["searcher"]["time_metric"] == "epochs"
    assert config["searcher"]["max_time"] == config["hyperparameters"]["rounds"]


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="Determined's schemas are not here")
def test_determined_accepts_it(config_file: Path) -> None:
    import jsonschema
    from referencing import Registry, Resource

    schemas = [json.loads(path.read_text(encoding="utf-8")) for path in SCHEMAS.glob("*.json")]
    registry: Registry[Any] = Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in schemas if "$id" in schema
    )
    experiment = next(s for s in schemas if s["$id"].endswith("experiment.json"))
    validator = jsonschema.Draft7Validator(experiment, registry=registry)
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    assert list(validator.iter_errors(config)) == []
    assert list(validator.iter_errors({**config, "serching": 1}))


def test_only_the_cluster_package_knows_determined() -> None:
    importing = re.compile(r"^\s*(from|import) determined", re.MULTILINE)
    packages = {
        path.relative_to(ROOT).parts[0]
        for path in ROOT.rglob("*.py")
        if not {".venv", "tests"} & set(path.relative_to(ROOT).parts)
        and importing.search(path.read_text(encoding="utf-8"))
    }
    assert packages == {"cluster"}
