"""Builds a page's ASGI application: its routes, the shared style and the access rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Lifespan

from errors import UserError
from web.access import Access, AccessMiddleware, error_response

STATIC = Path(__file__).parent / "static"


def make_application(
    routes: Sequence[BaseRoute],
    access: Access,
    static: Path | None = None,
    lifespan: Lifespan[Starlette] | None = None,
) -> ASGIApp:
    """An application that serves `routes` under the rules of `access`.

    Every error is JSON, `{"error": text}`. A `UserError` that a route raises becomes status 400.
    Any other exception is logged with its traceback and becomes status 500.

    Args:
        static: a folder of files to serve under /static. /style is this package's own.
        lifespan: what to start before the first request and to end after the last one.
    """
    mounts = [Mount("/style", StaticFiles(directory=STATIC))]
    if static is not None:
        mounts.append(Mount("/static", StaticFiles(directory=static)))
    app = Starlette(
        routes=[*routes, *mounts],
        exception_handlers={
            UserError: _user_error,
            HTTPException: _http_error,
            Exception: _bug,
        },
        lifespan=lifespan,
    )
    # Outermost, so that the answers to errors carry the security headers too.
    return AccessMiddleware(app, access)


async def _user_error(request: Request, error: Exception) -> Response:
    return error_response(400, str(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_response(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _bug(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, so the server logs its traceback.
    return error_response(500, "the server failed; its log shows where")
