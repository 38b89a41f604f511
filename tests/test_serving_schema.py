"""schemathesis holds the running service to its OpenAPI document, with generated requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from benchmarks.service_clients import png, running_service
from serving.exported import read_exported

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
        # The first map waits for torch to be loaded, longer than schemathesis waits for an answer.
        address = f"http://127.0.0.1:{port}/activation?class={read_exported(exported).classes[0]}"
        image = {"file": ("a.png", png(np.zeros((1, 8, 8), np.uint8)))}
        assert httpx.post(address, files=image, timeout=120).status_code == 200
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
