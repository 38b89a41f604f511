"""Who may talk to a page: checks of Host, Origin, token and body size, and the security headers.

A page listens on this computer alone by default. Another address needs a token.
The checks of Host and Origin keep other web sites, open in the same browser, away from the page.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import ipaddress
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errors import UserError
from web.timeout import timeout

LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
MAX_BODY_BYTES = 1 << 20
BODY_SECONDS = 30.0
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
RAW_NAMES = {name for name, _ in RAW_HEADERS}
CACHE_CONTROL = (b"cache-control", b"no-store")  # unless the answer has its own


@dataclass(frozen=True)
class Access:
    """The rules of one page. Make it with `for_address`.

    Attributes:
        host: the address that the server listens on.
        port: its port; 0 lets the system choose one.
        token: what every request has to bring; None where only this computer can connect.
        max_body_bytes: the largest request body.
        body_seconds: the longest time that a client may take to send one.
        any_host: any `Host` is right, as in a container, whose name others choose.
    """

    host: str
    port: int
    token: str | None
    max_body_bytes: int = MAX_BODY_BYTES
    body_seconds: float = BODY_SECONDS
    any_host: bool = False

    @classmethod
    def for_address(
        cls,
        host: str,
        port: int,
        token: str | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_seconds: float = BODY_SECONDS,
    ) -> Access:
        """Rules for a server on `host`; an address other than this computer gets a random token.

        Raises:
            UserError: the port is out of range, or the token is short enough to be guessed.
        """
        if not 0 <= port < 2**16:
            raise UserError(f"--port {port}: is no port; give one from 1024 to 65535, or 0 for any")
        if token is not None and len(token) < 16:
            raise UserError(f"token: {len(token)} characters can be guessed; give 16 or more")
        if token is None and host not in LOCAL_NAMES:
            token = secrets.token_urlsafe(24)
        return cls(host, port, token, max_body_bytes, body_seconds)

    @property
    def cookie_name(self) -> str:
        """Cookies do not tell ports apart, so the port is part of the name."""
        return f"token_{self.port}"

    def knows_host(self, header: str) -> bool:
        """Whether a `Host` header names this server.

        A foreign web site can make its own name point to this computer, but it cannot make the
        browser send an address or this computer's name in place of its own.
        """
        name = host_name(header)
        if self.any_host or name in LOCAL_NAMES:
            return True
        if self.host in LOCAL_NAMES or name is None:
            return False
        if name in {self.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _first_values(scope: Scope) -> dict[str, str]:
    """The request's headers by lower-case name; of one that is repeated, the first value."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in reversed(scope["headers"])
    }


@functools.lru_cache(maxsize=64)
def host_name(header: str) -> str | None:
    """The name in a `Host` header or an origin's authority, in lower case; None if malformed."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


class AccessMiddleware:
    """ASGI middleware that refuses what the rules do not allow and adds the security headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = _first_values(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [header for header in message["headers"] if header[0] not in RAW_NAMES]
                if all(name != CACHE_CONTROL[0] for name, _ in own):
                    own.append(CACHE_CONTROL)
                message["headers"] = own + RAW_HEADERS
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        await self.app(scope, self._limited(receive), send_with_headers)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """The answer to a request that is refused, or None."""
        host = headers.get("host", "")
        if not self.access.knows_host(host):
            return error_response(403, "Host: this server is not known by that name")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return error_response(403, "Origin: requests from other web sites are refused")
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            # A link from another site may open a page, but nothing more.
            opens_page = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
            if not opens_page:
                return error_response(403, "Origin: requests from other web sites are refused")
        length = headers.get("content-length")
        if length is not None and length.isdigit() and int(length) > self.access.max_body_bytes:
            return error_response(413, self._too_large())
        return None if self.access.token is None else self._token_refusal(scope, headers)

    def _token_refusal(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        token = self.access.token
        assert token is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given, token):
            return None
        if _same(_cookie(headers.get("cookie", ""), self.access.cookie_name), token):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["method"] == "GET" and _same(dict(query).get("token", ""), token):
            # The token moves from the address into a cookie, so that no history or log keeps it.
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            # One leading slash only: two would name another server.
            path = "/" + scope["path"].lstrip("/")
            response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            response.set_cookie(
                self.access.cookie_name, token, httponly=True, samesite="strict", path="/"
            )
            return response
        return error_response(
            401, "token: missing or wrong; open the address that the server prints"
        )

    def _too_large(self) -> str:
        return f"body: more than {self.access.max_body_bytes:,} bytes; send it in smaller parts"

    def _limited(self, receive: Receive) -> Receive:
        """`receive`, which raises HTTPException when the body is too large or takes too long."""
        size = 0
        complete = False
        deadline = time.monotonic() + self.access.body_seconds

        async def limited() -> Message:
            nonlocal size, complete
            if complete:  # what is left to receive is the end of the connection
                return await receive()
            try:
                async with timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except asyncio.TimeoutError:
                raise HTTPException(408, "body: it took too long; send it again") from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if size > self.access.max_body_bytes:
                    raise HTTPException(413, self._too_large())
            return message

        return limited


def error_response(status: int, text: str) -> Response:
    """A refusal as JSON: `{"error": text}`."""
    return JSONResponse({"error": text}, status)


def _cookie(header: str, name: str) -> str:
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(header)
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


def _same(given: str, token: str) -> bool:
    """Compare in a time that does not depend on where the two differ."""
    return hmac.compare_digest(given.encode(), token.encode())
