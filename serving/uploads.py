"""Takes the files out of a request, under limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from serving.decoding.limits import Limits

RETRY_SECONDS = 1
NAME_CHARACTERS = 300


@dataclass(frozen=True)
class Upload:
    """One file of a request. The name is only ever shown; it never becomes a path."""

    name: str
    media_type: str
    data: bytes


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """The files of a request: its body, or every file of a form.

    Raises:
        HTTPException: 400 for a body that is none or broken, 413 for too many files.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == "multipart/form-data":
            return await _form_files(request, limits)
        data = await request.body()
    except ClientDisconnect:
        raise HTTPException(400, "the client ended the connection") from None
    return [Upload("", media_type, data)]


async def _form_files(request: Request, limits: Limits) -> list[Upload]:
    try:
        async with request.form(max_files=limits.max_images, max_fields=10) as form:
            files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            uploads = [
                Upload(
                    (file.filename or "")[:NAME_CHARACTERS],
                    (file.content_type or "").partition(";")[0].strip().lower(),
                    await file.read(),
                )
                for file in files
            ]
    except HTTPException as error:  # Starlette's, status 400 whatever is wrong with the form
        status = 413 if "Too many files" in error.detail else error.status_code
        raise HTTPException(status, f"form: {error.detail}") from error
    if not uploads:
        raise HTTPException(400, "form: holds no file; give each image as a part with a file name")
    return uploads


class Admission:
    """Bounds the requests in progress, and the bytes of their bodies.

    Args:
        max_requests: in progress at a time.
        max_bytes: of their bodies together.
        body_bytes: counted for a body whose length is not known.
    """

    def __init__(self, max_requests: int, max_bytes: int, body_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._body_bytes = body_bytes
        self.requests = 0
        self.bytes = 0

    @contextlib.contextmanager
    def request(self, request: Request) -> Iterator[None]:
        """Hold a place for the body; its bytes are read only then.

        Raises:
            HTTPException: 503 with Retry-After, all places are taken.
        """
        length = request.headers.get("content-length", "")
        size = int(length) if length.isdigit() else self._body_bytes
        full = self.requests >= self._max_requests
        # One body is always let in, whatever its size: the limit of a single body is elsewhere.
        if full or (self.requests and self.bytes + size > self._max_bytes):
            raise HTTPException(
                503, "busy: too many requests wait; try again", {"Retry-After": str(RETRY_SECONDS)}
            )
        self.requests += 1
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= size
