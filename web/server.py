"""Listens on an address and serves one application with uvicorn."""

from __future__ import annotations

import argparse
import errno
import os
import socket
from dataclasses import replace

import uvicorn
from starlette.types import ASGIApp

from errors import UserError
from web.access import Access

TOKEN_VARIABLE = "PAGE_TOKEN"
SHUTDOWN_SECONDS = 3


def add_address_arguments(parser: argparse.ArgumentParser, port: int) -> None:
    """Add --host and --port to a tool; `port` is the default."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; one that other computers reach needs a token, which is made "
        f"up and printed unless {TOKEN_VARIABLE} is set in the environment",
    )
    parser.add_argument("--port", type=int, default=port, help=f"default {port}; 0: any free one")


def token_from_environment() -> str | None:
    """The token that the user chose, if any. The environment keeps it out of process lists."""
    return os.environ.get(TOKEN_VARIABLE) or None


def listen(access: Access) -> tuple[socket.socket, Access]:
    """Open the port; return the socket and the rules with the port that was found.

    Raises:
        UserError: the address does not exist here, or the port is in use or not allowed.
    """
    try:
        family = socket.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((access.host, access.port))
        listener.listen()  # so that the address works as soon as it is printed
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            remedy = "end the server that uses it, or give another --port"
        else:
            remedy = "give another --host or --port"
        reason = getattr(error, "strerror", None) or "not an address"
        where = f"--host {access.host} --port {access.port}"
        raise UserError(f"{where}: cannot be listened on ({reason}); {remedy}") from error
    return listener, replace(access, port=listener.getsockname()[1])


def address(access: Access) -> str:
    """What to open in a browser, with the token where there is one."""
    host = access.host
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    if ":" in host:
        host = f"[{host}]"
    query = f"?token={access.token}" if access.token else ""
    return f"http://{host}:{access.port}/{query}"


def serve(app: ASGIApp, listener: socket.socket, shutdown_seconds: int = SHUTDOWN_SECONDS) -> None:
    """Serve `app` until SIGINT or SIGTERM; requests under way have `shutdown_seconds` to end."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # it would hold tokens and file names of patients
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=shutdown_seconds,
    )
    uvicorn.Server(config).run(sockets=[listener])
