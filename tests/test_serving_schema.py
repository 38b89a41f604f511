"""schemathesis holds the running service to its OpenAPI document, with generated requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from benchmarks.service_clients import running_service

OPERATIONS = (
    ("/health", "GET"),
    ("/ping", "GET"),
    ("/model", "GET"),
    ("/metrics", "GET"),
    ("/predict", "POST"),
    ("/invocations", "POST"),
    ("/activation", "POST"),
)


@pytest.fixture(scope="module")
def schema(exported: Path) -> Iterator[Any]:
    with running_service(exported) as (_, port):
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")


def test_every_operation_is_tried(schema: Any) -> None:
    described = {(one.ok().path, one.ok().method.upper()) for one in schema.get_all_operations()}
    assert described == set(OPERATIONS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_as_described(
    schema: Any, path: str, method: str, mode: GenerationMode
) -> None:
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
        return  # nothing in such a request can be wrong

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=10, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip
    def ask(case: Any) -> None:
        # A schema cannot say which bytes are an image; other tests see that images are taken.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    ask()
