"""The service over HTTP: its routes, and what each of them answers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TextIO

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.access_log import IMAGES, Observed
from serving.decoding.limits import RefusedFileError
from serving.metrics import CONTENT_TYPE
from serving.openapi import openapi_document
from serving.service import Service
from serving.uploads import read_uploads
from web.access import Access
from web.application import make_application

PAGES = Path(__file__).parent / "pages"
STORED_PIXELS = 4096  # longest side of an image that a correction keeps
# Takes a picture as PNG, its name, its class and the annotator; returns the picture's number.
Correct = Callable[[bytes, str, str, str], int]
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


class Routes:
    """The answers of one service."""

    def __init__(self, service: Service, correct: Correct | None) -> None:
        self._service = service
        self._correct = correct
        self._started = time.monotonic()

    def routes(self) -> list[Route]:
        """All of them."""
        predict = Predict(self._service)
        corrections = Route("/corrections", self.corrections, methods=["POST"])
        return [
            Route("/predict", predict, methods=["POST"]),  # looked for first
            *([corrections] if self._correct else []),
            Route("/", self.page),
            Route("/docs", self.docs),
            Route("/openapi.json", self.openapi),
            Route("/health", self.health),
            Route("/ping", self.health),
            Route("/model", self.model),
            Route("/metrics", self.metrics),
            Route("/invocations", predict, methods=["POST"]),
            Route("/activation", self.activation, methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        """The upload page."""
        return HTMLResponse((PAGES / "index.html").read_text(encoding="utf-8"))

    async def docs(self, request: Request) -> Response:
        """How to call the service, for people."""
        return HTMLResponse((PAGES / "docs.html").read_text(encoding="utf-8"))

    async def openapi(self, request: Request) -> Response:
        """How to call the service, for programs."""
        return JSONResponse(openapi_document(self._service.model))

    async def health(self, request: Request) -> Response:
        """That the service is up."""
        uptime = round(time.monotonic() - self._started, 1)
        version = self._service.model.version
        return JSONResponse({"status": "ok", "version": version, "uptime_seconds": uptime})

    async def model(self, request: Request) -> Response:
        """What the model is, and what this service reads."""
        service = self._service
        limits = service.settings.limits
        return JSONResponse(
            {
                **dataclasses.asdict(service.model),
                "engine": service.settings.engine,
                "corrections": self._correct is not None,
                "limits": {
                    "max_bytes": limits.max_bytes,
                    "max_pixels": limits.max_pixels,
                    "max_images": limits.max_images,
                },
            }
        )

    async def metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE)

    async def activation(self, request: Request) -> Response:
        """The activation map of the one image in the body, for ?class=NAME."""
        class_name = request.query_params.get("class", "")
        with self._service.admission.request(request):
            uploads = await read_uploads(request, self._service.settings.limits)
            images = await _refusals_as_http(self._service.read(uploads[0]))
            if len(uploads) != 1 or len(images) != 1:
                raise HTTPException(400, "activation: give one image")
            png = await _refusals_as_http(self._service.activation_map(images[0], class_name))
        return Response(png, media_type="image/png")

    async def corrections(self, request: Request) -> Response:
        """Take the class that a person gives the one image in the form."""
        assert self._correct is not None
        with self._service.admission.request(request):
            uploads = await read_uploads(request, self._service.settings.limits)
            fields = await request.form()
            name, class_name, annotator = (
                str(fields.get(field, "")) for field in ("name", "class", "annotator")
            )
            if class_name not in self._service.model.classes:
                raise HTTPException(400, f"class {class_name[:60]!r} is unknown")
            images = await _refusals_as_http(self._service.read(uploads[0], STORED_PIXELS))
            if len(uploads) != 1 or len(images) != 1:
                raise HTTPException(400, "correction: give one image")
            source = name or uploads[0].name
            number = await run_in_threadpool(
                self._correct, images[0].preview, source, class_name, annotator
            )
        return JSONResponse({"number": number, "class": class_name})


class Predict:
    """Answers prediction requests.

    An ASGI application of its own, because Starlette puts more layers around a function.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        preview = _boolean(request, "preview")
        service = self._service
        with service.admission.request(request):
            uploads = await read_uploads(request, service.settings.limits)
            answer = await _refusals_as_http(service.predict(uploads, preview))
        scope[IMAGES] = len(answer["predictions"])
        response = Response(json.dumps(answer), media_type="application/json")
        await response(scope, receive, send)


def _boolean(request: Request, name: str) -> bool:
    if not request.scope["query_string"]:  # as in most requests; parsing it takes its time
        return False
    text = request.query_params.get(name, "false")
    if text not in BOOLEANS:
        raise HTTPException(400, f"{name}: {text[:20]!r} is neither true nor false")
    return BOOLEANS[text]


async def _refusals_as_http(work: Any) -> Any:
    """What `work` gives; a file that is refused becomes the HTTP status of its refusal."""
    try:
        return await work
    except RefusedFileError as error:
        raise HTTPException(error.status, error.text) from error


def service_app(
    service: Service,
    access: Access,
    log: TextIO | None = None,
    correct: Correct | None = None,
) -> ASGIApp:
    """The ASGI application of a service.

    Args:
        access: who may use it; its body limit is the service's.
        log: where the access log is written; the standard error stream by default.
        correct: takes corrections of the page; None: the page offers none.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service:
            yield

    limited = dataclasses.replace(access, max_body_bytes=service.settings.limits.max_bytes)
    routes = Routes(service, correct).routes()
    app = make_application(routes, limited, static=PAGES / "static", lifespan=lifespan)
    return Observed(app, service.metrics, {route.path for route in routes}, log)
