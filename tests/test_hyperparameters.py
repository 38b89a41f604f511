"""Hyperparameters and configurations: what is accepted, drawn and refused, with its message."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import UserError
from tests.conftest import ROOT, small_values
from tools.settings import settings_page
from training.experiment_config import load, override, sample
from training.hyperparameters import Hyperparameters

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"learning_rat": 0.1}, r"learning_rat: unknown \(did you mean learning_rate\?\)"),
    ({"zzz": 1}, r"zzz: unknown; known are seed"),
    ({"batch_size": "many"}, r"batch_size: 'many' is not a whole number; give at least 2"),
    ({"batch_size": "1e-3"}, r"batch_size: '1e-3' is not a whole number"),
    ({"batch_size": 6.5}, r"batch_size: 6.5 is not a whole number"),
    ({"batch_size": math.inf}, r"batch_size: inf is not a whole number"),
    ({"batch_size": "1"}, r"batch_size: '1' is out of range; give at least 2"),
    ({"batch_size": True}, r"batch_size: True is not a whole number"),
    ({"batch_size": None}, r"batch_size: None is not a whole number"),
    ({"batch_size": [8]}, r"batch_size: \[8\] is not a whole number"),
    ({"batch_size": {"type": "const"}}, r"batch_size: \{'type': 'const'\} is not a whole number"),
    ({"batch_size": 1}, r"batch_size: 1 is out of range; give at least 2"),
    ({"batch_size": -8}, r"batch_size: -8 is out of range"),
    ({"batches_per_round": 0}, r"batches_per_round: 0 is out of range"),
    (
        {"learning_rate": "1e-3 or so"},
        r"learning_rate: '1e-3 or so' is not a number; give at least",
    ),
    ({"learning_rate": "nan"}, r"learning_rate: 'nan' is not a number"),
    ({"learning_rate": "1e400"}, r"learning_rate: '1e400' is out of range"),
    ({"learning_rate": 10**400}, r"learning_rate: 10+ is out of range"),
    ({"learning_rate": 0}, r"learning_rate: 0 is out of range; give at least 1e-08"),
    ({"learning_rate": -1e-3}, r"learning_rate: -0.001 is out of range"),
    ({"learning_rate": math.nan}, r"learning_rate: nan is out of range"),
    ({"learning_rate": math.inf}, r"learning_rate: inf is out of range"),
    ({"weight_decay": -1}, r"weight_decay: -1 is out of range"),
    ({"warmup_fraction": 1.0}, r"warmup_fraction: 1.0 is out of range; .* at most 0.9"),
    ({"label_smoothing": 1.0}, r"label_smoothing: 1.0 is out of range"),
    ({"dropout": 1.0}, r"dropout: 1.0 is out of range"),
    ({"dropout": 0.0}, r"dropout: 0 makes all Monte Carlo passes the same"),
    ({"flips_and_rotations": "yes"}, r"flips_and_rotations: 'yes' is not true or false"),
    ({"flips_and_rotations": 1}, r"flips_and_rotations: 1 is not true or false"),
    ({"crop_padding": -1}, r"crop_padding: -1 is out of range"),
    ({"crop_padding": 8}, r"crop_padding: 8 pixels are no less than the image's 8"),
    ({"colour_jitter": 2.0}, r"colour_jitter: 2.0 is out of range"),
    ({"stain_jitter": -0.1}, r"stain_jitter: -0.1 is out of range"),
    ({"precision": "fp16"}, r"precision: 'fp16' is unknown; allowed are auto, bfloat16, float16"),
    ({"reporting_period": 0}, r"reporting_period: 0 is out of range"),
    ({"evaluation_size": -1}, r"evaluation_size: -1 is out of range"),
    ({"rounds": 0}, r"rounds: 0 is out of range"),
    ({"initial_labeled_size": 0}, r"initial_labeled_size: 0 is out of range"),
    ({"initial_labeled_size": 121}, r"initial_labeled_size: 121 is more than label_budget: 120"),
    ({"samples_to_label": 0}, r"samples_to_label: 0 is out of range"),
    ({"samples_to_label": 41}, r"candidate_pool_size: 40 candidates are fewer than the 41 images"),
    ({"label_budget": -1}, r"label_budget: -1 is out of range"),
    ({"label_budget": 9}, r"initial_labeled_size: 10 is more than label_budget: 9"),
    ({"between_rounds": "resett"}, r"between_rounds: 'resett' is unknown \(did you mean reset\?\)"),
    ({"shrink_factor": 1.5}, r"shrink_factor: 1.5 is out of range"),
    ({"perturb_scale": -0.5}, r"perturb_scale: -0.5 is out of range"),
    (
        {"query_strategy": "entropi"},
        r"query_strategy: unknown .* 'entropi'; did you mean 'entropy'",
    ),
    ({"query_strategy": 3}, r"query_strategy: 3 is not a text"),
    ({"query_strategy": "bald", "uncertainty": "softmax"}, r"softmax gives bald no second opinion"),
    (
        {"query_strategy": "batch_bald", "samples_to_label": 101, "candidate_pool_size": 0},
        r"samples_to_label: 101 in the largest query is more than batch_bald can choose at a time, "
        "100; lower it",
    ),
    ({"label_noise": 1.1}, r"label_noise: 1.1 is out of range; give at least 0.0, at most 1.0"),
    ({"label_noise_kind": "confused"}, r"label_noise_kind: .* \(did you mean confusion\?\)"),
    ({"seconds_per_label": -1}, r"seconds_per_label: -1 is out of range"),
    ({"expert_share": 1.5}, r"expert_share: 1.5 is out of range; give at least 0.0, at most 1.0"),
    ({"expert_seconds_per_label": -1}, r"expert_seconds_per_label: -1 is out of range"),
    ({"expert_label_noise": -0.1}, r"expert_label_noise: -0.1 is out of range"),
    ({"minutes_budget": -1}, r"minutes_budget: -1 is out of range"),
    (
        {"minutes_budget": 0.5, "seconds_per_label": 6},
        r"minutes_budget: 0.5 minutes do not pay .* 10 labels of the first round, which take 1.0;",
    ),
    (
        {"expert_share": 0.5, "oracle": "people"},
        r"expert_share: 0.5 is for simulated annotators, .* set expert_share: 0",
    ),
    (
        {"uncertainty": "test_time_augmentation", "crop_padding": 0, "colour_jitter": 0},
        r"uncertainty: test_time_augmentation has nothing to vary without",
    ),
    ({"uncertainty": "ensemble"}, r"uncertainty: 'ensemble' is unknown"),
    ({"uncertainty_passes": 1}, r"uncertainty_passes: 1 is out of range; give at least 2"),
    ({"prefilter_factor": 0}, r"prefilter_factor: 0 is out of range"),
    ({"candidate_pool_size": -1}, r"candidate_pool_size: -1 is out of range"),
    ({"scoring_batch_size": 0}, r"scoring_batch_size: 0 is out of range"),
    ({"architecture": "resnet101"}, r"architecture: 'resnet101' is unknown \(did you mean resnet"),
    ({"pretrained": "false"}, r"pretrained: 'false' is not true or false"),
    ({"pretrained": True}, r"pretrained: there are no ImageNet weights for small_cnn"),
    ({"image_size": 4}, r"image_size: 4 is out of range; give at least 8, at most 512"),
    ({"validation_fraction": 0.0}, r"validation_fraction: 0.0 is out of range"),
    ({"test_fraction": 0.9}, r"validation_fraction: 0.15 and test_fraction: 0.9 leave nothing"),
    ({"dataset": 5}, r"dataset: 5 is not a text"),
    ({"data_dir": None}, r"data_dir: None is not a text"),
]

# Names of code that may begin a sentence.
NAMES_OF_CODE = {"resnet18", "rounds", "uncertainty_diversity"}


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(change) for change, _ in REFUSED])
def test_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Hyperparameters.from_mapping(small_values(**change))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("hyperparameters.")


@pytest.mark.parametrize(
    ("given", "value"),
    [("1e-3", 0.001), ("1E-3", 0.001), (" 1e-3 ", 0.001), ("+.5e-1", 0.05), ("2", 2.0), (2, 2.0)],
)
def test_texts_that_spell_numbers_are_numbers(given: object, value: float) -> None:
    hp = Hyperparameters.from_mapping({"learning_rate": given})
    assert (hp.learning_rate, type(hp.learning_rate)) == (value, float)


@pytest.mark.parametrize("given", [200, 200.0, "200", "2e2", "2.0e2"])
def test_whole_numbers_are_whole_however_they_are_written(given: object) -> None:
    hp = Hyperparameters.from_mapping({"batches_per_round": given})
    assert (hp.batches_per_round, type(hp.batches_per_round)) == (200, int)


def test_numbers_as_texts_stay_texts_where_texts_are_wanted() -> None:
    assert Hyperparameters.from_mapping({"data_dir": "1e-3"}).data_dir == "1e-3"


def test_what_is_missing_has_its_default() -> None:
    hp = Hyperparameters.from_mapping({"rounds": 3})
    assert dataclasses.replace(hp, rounds=10, label_budget=0) == Hyperparameters()


def test_the_defaults_pass_their_own_checks() -> None:
    defaults = Hyperparameters().resolved()
    assert all(Hyperparameters.checked(name, value) == value for name, value in defaults.items())


def test_resolved_is_complete_and_makes_the_same_again() -> None:
    hp = Hyperparameters.from_mapping(small_values(learning_rate="1e-3"))
    assert set(hp.resolved()) == {field.name for field in dataclasses.fields(Hyperparameters)}
    assert Hyperparameters.from_mapping(hp.resolved()) == hp


def test_differences_are_what_is_not_the_default() -> None:
    hp = Hyperparameters.from_mapping({"rounds": 3, "dataset": "pathmnist", "label_budget": 600})
    assert hp.differences() == {"rounds": 3, "label_budget": 600}
    assert Hyperparameters().differences() == {}


@pytest.mark.parametrize("field", dataclasses.fields(Hyperparameters), ids=lambda field: field.name)
def test_each_declares_what_it_does_and_why(field: dataclasses.Field[Any]) -> None:
    for sentence in (field.metadata["does"], field.metadata["why"]):
        assert sentence[0].isupper() or sentence.split()[0].strip(",`") in NAMES_OF_CODE
        assert sentence.endswith(".")
    if "low" in field.metadata:
        assert field.metadata["low"] <= field.default <= field.metadata["high"]


def test_budget_is_what_the_rounds_ask_for_unless_given() -> None:
    assert Hyperparameters.from_mapping({"rounds": 4}).label_budget == 800
    assert Hyperparameters.from_mapping({"rounds": 4}).query_sizes(10**6) == (200,) * 4
    given = Hyperparameters.from_mapping({"rounds": 4, "label_budget": 500})
    assert given.query_sizes(10**6) == (200, 200, 100)


def test_queries_grow_by_a_factor() -> None:
    """Known answer: 25, 37.5, 56.25 and 84.375, of which the budget leaves 81 to the last."""
    values = {"rounds": 5, "initial_labeled_size": 50, "samples_to_label": 25, "query_growth": 1.5}
    assert Hyperparameters.from_mapping(values).query_sizes(10**6) == (50, 25, 38, 56, 84)
    given = Hyperparameters.from_mapping({**values, "label_budget": 250})
    assert given.query_sizes(10**6) == (50, 25, 38, 56, 81)
    endless = {"rounds": 10_000, "query_growth": 4.0, "label_budget": 1000}
    assert Hyperparameters.from_mapping(endless).query_sizes(10**6) == (200, 200, 600)
    with pytest.raises(UserError, match=r"60 candidates are fewer than the 84 images that samples"):
        Hyperparameters.from_mapping({**values, "candidate_pool_size": 60})


@pytest.mark.parametrize("name", ["initial_labeled_size", "label_budget"])
def test_more_than_the_pool_is_refused(name: str) -> None:
    hp = Hyperparameters.from_mapping(small_values(**{"label_budget": 120, name: 101}))
    with pytest.raises(UserError, match=rf"{name}: 1\d\d is more than the 100 training"):
        hp.query_sizes(100)


def test_docs_list_what_is_declared() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run: python -m tools.settings"


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(small_values())),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
def test_any_value_is_taken_or_refused_in_one_line(name: str, value: Any) -> None:
    message = ""
    try:
        Hyperparameters.from_mapping(small_values(**{name: value}))
    except UserError as error:
        message = str(error)
    assert "\n" not in message


class TestOverride:
    config: ClassVar[dict[str, Any]] = {"a": {"b": 1, "c": [1]}, "d": None}

    def test_sets_values_read_as_yaml(self) -> None:
        changed = override(self.config, ["a.b=2.5", "d=[x, 1]", "a.c=true"])
        assert changed == {"a": {"b": 2.5, "c": True}, "d": ["x", 1]}
        assert self.config == {"a": {"b": 1, "c": [1]}, "d": None}

    def test_sets_hyperparameters_that_are_not_listed(self) -> None:
        changed = override({"hyperparameters": {}}, ["hyperparameters.learning_rate=1e-3"])
        assert Hyperparameters.from_mapping(changed["hyperparameters"]).learning_rate == 1e-3

    @pytest.mark.parametrize(
        ("assignment", "suggestion"),
        [
            ("hyperparameters.bach_size=8", "hyperparameters.batch_size"),
            ("batch_size=8", "hyperparameters.batch_size"),
            ("searcher.max_trails=8", "searcher.max_trials"),
            ("max_trials=8", "searcher.max_trials"),
        ],
    )
    def test_names_the_nearest_setting(self, assignment: str, suggestion: str) -> None:
        config = {"hyperparameters": {"rounds": 3}, "searcher": {"max_trials": 4}}
        with pytest.raises(UserError, match=rf"\(did you mean {suggestion}\?\)"):
            override(config, [assignment])

    def test_value_may_hold_equals_signs(self) -> None:
        assert override(self.config, ["d=x=y"])["d"] == "x=y"

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("a.b", "no `=` in it"),
            ("a.x=1", "has no a.x"),
            ("b=1", "has no b"),
            ("a.b.c=1", "has no a.b.c"),
            ("d={", "'{' is no YAML value"),
        ],
    )
    def test_refuses(self, assignment: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            override(self.config, [assignment])


class TestLoad:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a: [1", "not valid YAML"),
            (b"\xff\xfe\x00", "not"),
            (b"", "no mapping `hyperparameters`"),
            (b"hyperparameters: 3", "no mapping `hyperparameters`"),
            (b"- 1", "no mapping `hyperparameters`"),
            (b"a: !!python/object:os.system {}", "not valid YAML"),
        ],
    )
    def test_refuses(self, content: bytes, message: str, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"
        file.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            load(file)
        assert "\n" not in str(error.value)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="No such file"):
            load(tmp_path / "none.yaml")

    @settings(max_examples=200, deadline=None)
    @given(content=st.binary(max_size=60))
    def test_any_bytes_are_taken_or_refused(
        self, content: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        file = tmp_path_factory.mktemp("fuzz") / "config.yaml"
        file.write_bytes(content)
        with pytest.raises(UserError):
            load(file)


class TestSample:
    space: ClassVar[dict[str, Any]] = {
        "plain": 3,
        "const": {"type": "const", "val": 4},
        "int": {"type": "int", "minval": 1, "maxval": 3},
        "double": {"type": "double", "minval": 0.5, "maxval": 2},
        "log": {"type": "log", "base": 10, "minval": -3, "maxval": -1},
        "categorical": {"type": "categorical", "vals": ["a", "b"]},
    }

    def test_draws_within_ranges_and_by_seed(self) -> None:
        seen: dict[str, set[Any]] = {name: set() for name in self.space}
        for seed in range(60):
            values, drawn = sample(self.space, seed)
            assert values == sample(self.space, seed)[0]
            assert drawn == ["int", "double", "log", "categorical"]
            assert 0.5 <= values["double"] <= 2
            assert 1e-3 <= values["log"] <= 1e-1
            for name, value in values.items():
                seen[name].add(value)
        assert seen["plain"] == {3}
        assert seen["const"] == {4}
        assert seen["int"] == {1, 2, 3}
        assert seen["categorical"] == {"a", "b"}
        assert sum(value < 1e-2 for value in seen["log"]) in range(15, 46)

    def test_bounds_may_be_texts_that_spell_numbers(self) -> None:
        spec = {"type": "double", "minval": "1e-3", "maxval": "2e-3"}
        assert 1e-3 <= sample({"x": spec}, 0)[0]["x"] <= 2e-3
        spec = {"type": "log", "base": "1e1", "minval": "-3", "maxval": "-3"}
        assert sample({"x": spec}, 0)[0]["x"] == pytest.approx(1e-3)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({"type": "lgo"}, "x.type: 'lgo' is not a kind"),
            ({}, "x.type: None is not a kind"),
            ({"type": "int", "minval": 1}, "x.maxval: missing"),
            ({"type": "int", "minval": 3, "maxval": 1}, "minval 3 is above maxval 1"),
            ({"type": "int", "minval": 1.5, "maxval": 2}, "1.5 is no bound of a range of type int"),
            ({"type": "double", "minval": "a", "maxval": 2}, "'a' is no bound"),
            ({"type": "log", "minval": -1, "maxval": 0}, "x.base: missing"),
            ({"type": "log", "minval": -1, "maxval": 0, "base": 1}, "x.base: 1 is not above 1"),
            ({"type": "log", "minval": 999, "maxval": 999, "base": 10}, "is no number"),
            ({"type": "categorical", "vals": []}, r"x.vals: \[\] is no list"),
            ({"type": "categorical", "vals": 3}, "x.vals: 3 is no list"),
        ],
    )
    def test_refuses(self, spec: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            sample({"x": spec}, 0)
