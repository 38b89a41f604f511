"""The command line of the service, shared by `tools.serve` and the container."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from errors import OK, UserError
from serving.app import Correct, service_app
from serving.decoding.limits import Limits
from serving.engine import ENGINES
from serving.service import MAX_BATCH, Service, ServiceSettings
from web.access import Access
from web.server import add_address_arguments, address, listen, serve, token_from_environment

PORT = 8080
SHUTDOWN_SECONDS = 30  # in which requests that were accepted are finished
# A request leaves no cycles of objects behind, so Python's collector finds nothing. At its own
# threshold, 700 objects, it takes a tenth of the event loop's time.
COLLECTOR_THRESHOLD = 50_000
# The network's thread needs Python's lock between two batches. It waits for it at most so long.
SWITCH_SECONDS = 0.0001


def add_service_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything about a service but its folder."""
    add_address_arguments(parser, PORT)
    parser.add_argument(
        "--engine", choices=ENGINES, default="onnx", help="what runs the network; default onnx"
    )
    parser.add_argument(
        "--workers", type=int, default=_default_workers(),
        help="threads that run the network, one core each; default: the cores but one",
    )  # fmt: skip
    parser.add_argument(
        "--max-batch", type=int, default=MAX_BATCH,
        help=f"images of concurrent requests run together; 1: none; default {MAX_BATCH}",
    )  # fmt: skip
    limits, settings = Limits(), ServiceSettings()
    for name, default, text in (
        ("--max-requests", settings.max_requests, "accepted at a time; more get status 503"),
        ("--max-bytes", limits.max_bytes, "of one request"),
        ("--max-pixels", limits.max_pixels, "of one image"),
        ("--max-images", limits.max_images, "in one request"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text}; default {default}")


def _default_workers() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (usable or 1) - 1)


def settings_of(arguments: argparse.Namespace) -> ServiceSettings:
    """The settings on the command line.

    Raises:
        UserError: one is out of range.
    """
    for name in ("workers", "max_batch", "max_requests", "max_bytes", "max_pixels", "max_images"):
        if getattr(arguments, name) < 1:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {getattr(arguments, name)}: is too small; give 1 or more")
    return ServiceSettings(
        engine=arguments.engine,
        workers=arguments.workers,
        max_batch=arguments.max_batch,
        max_requests=arguments.max_requests,
        limits=replace(
            Limits(),
            max_bytes=arguments.max_bytes,
            max_pixels=arguments.max_pixels,
            max_images=arguments.max_images,
        ),
    )


def run_service(
    folder: Path,
    arguments: argparse.Namespace,
    access: Access | None = None,
    correct: Correct | None = None,
) -> None:
    """Serve an exported folder until SIGINT or SIGTERM.

    Args:
        access: who may use it; None: what the command line says.
        correct: takes corrections of the page; None: the page offers none.

    Raises:
        UserError: the folder, an option or the address cannot be used.
    """
    if access is None:
        access = Access.for_address(arguments.host, arguments.port, token_from_environment())
    service = Service(folder, settings_of(arguments))
    gc.set_threshold(COLLECTOR_THRESHOLD)
    sys.setswitchinterval(SWITCH_SECONDS)
    listener, access = listen(access)
    # uvicorn ends the service in order, then raises the signal again for whoever started it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(OK))
    print(f"serving {service.model.version} on {address(access)}", flush=True)
    serve(service_app(service, access, correct=correct), listener, SHUTDOWN_SECONDS)
