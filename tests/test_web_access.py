"""The access rules that all pages share."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from errors import UserError
from web.access import Access
from web.application import make_application
from web.server import address, listen

TOKEN = "a-token-of-many-characters"


async def echo(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body())})


async def refuse(request: Request) -> Response:
    raise UserError("class 'x': is not known; give one of a, b")


async def fail(request: Request) -> Response:
    raise RuntimeError("a bug")


def client(access: Access, base: str = "http://127.0.0.1:8000") -> TestClient:
    routes = [
        Route("/echo", echo, methods=["GET", "POST"]),
        Route("/refuse", refuse),
        Route("/fail", fail),
    ]
    app = make_application(routes, access)
    return TestClient(app, base_url=base, raise_server_exceptions=False, follow_redirects=False)


@pytest.fixture
def local() -> TestClient:
    return client(Access.for_address("127.0.0.1", 8000, max_body_bytes=100))


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:9000", "[::1]:8000"])
def test_a_local_name_is_answered(local: TestClient, host: str) -> None:
    assert local.get("/echo", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "192.168.1.5:8000", "", "[", "127.0.0.1.evil.example"]
)
def test_another_name_is_refused(local: TestClient, host: str) -> None:
    assert local.get("/echo", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_site_is_refused(local: TestClient, headers: dict[str, str]) -> None:
    assert local.post("/echo", headers=headers).status_code == 403


def test_the_own_page_is_answered(local: TestClient) -> None:
    headers = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert local.post("/echo", headers=headers).status_code == 200


def test_a_link_from_another_site_opens_a_page(local: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert local.get("/echo", headers=headers).status_code == 200
    assert local.post("/echo", headers=headers).status_code == 403


def test_a_large_body_is_refused_before_it_is_read(local: TestClient) -> None:
    assert local.post("/echo", content=b"x" * 100).json() == {"bytes": 100}
    assert local.post("/echo", content=b"x" * 101).status_code == 413


def test_a_large_body_of_unknown_length_is_refused(local: TestClient) -> None:
    def parts() -> list[bytes]:
        return [b"x" * 60, b"x" * 60]

    answer = local.post("/echo", content=iter(parts()))
    assert (answer.status_code, "error" in answer.json()) == (413, True)


def test_a_slow_body_is_refused() -> None:
    access = Access.for_address("127.0.0.1", 8000, body_seconds=0.05)
    app = make_application([Route("/echo", echo, methods=["POST"])], access)
    sent = []

    async def never() -> AsyncIterator[None]:
        await asyncio.sleep(5)
        yield

    async def receive() -> dict[str, object]:
        await asyncio.sleep(5)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/echo",
        "raw_path": b"/echo",
        "query_string": b"",
        "headers": [(b"host", b"localhost:8000")],
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 408


def test_security_headers_are_on_every_answer(local: TestClient) -> None:
    for path in ("/echo", "/style/style.css", "/nowhere", "/refuse", "/fail"):
        headers = local.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_errors_are_json(local: TestClient) -> None:
    assert local.get("/nowhere").status_code == 404
    user_error = local.get("/refuse")
    assert user_error.status_code == 400
    assert user_error.json() == {"error": "class 'x': is not known; give one of a, b"}
    bug = local.get("/fail")
    assert bug.status_code == 500
    assert "a bug" not in bug.text


def test_another_address_gets_a_token() -> None:
    assert Access.for_address("127.0.0.1", 8000).token is None
    token = Access.for_address("0.0.0.0", 8000).token
    assert token is not None
    assert len(token) >= 16
    assert token != Access.for_address("0.0.0.0", 8000).token
    with pytest.raises(UserError, match="guessed"):
        Access.for_address("0.0.0.0", 8000, "short")


def test_a_token_is_asked_for() -> None:
    page = client(Access.for_address("0.0.0.0", 8000, TOKEN), "http://192.168.1.5:8000")
    assert page.get("/echo").status_code == 401
    assert page.get("/echo?token=wrong-token-of-characters").status_code == 401
    assert page.post(f"/echo?token={TOKEN}").status_code == 401
    assert page.get("/echo", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert page.get("/echo", headers={"host": "evil.example"}).status_code == 403


def test_the_token_moves_from_the_address_into_a_cookie() -> None:
    page = client(Access.for_address("0.0.0.0", 8000, TOKEN), "http://192.168.1.5:8000")
    answer = page.get(f"/echo?a=1&token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/echo?a=1")
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert page.get("/echo?a=1").status_code == 200  # the client keeps the cookie


def test_the_redirect_stays_on_this_server() -> None:
    page = client(Access.for_address("0.0.0.0", 8000, TOKEN), "http://192.168.1.5:8000")
    answer = page.get(f"http://192.168.1.5:8000//evil.example/?token={TOKEN}")
    assert answer.headers["location"] == "/evil.example/"


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: .* another --port"):
            listen(Access.for_address("127.0.0.1", port))
    with pytest.raises(UserError, match="no port"):
        Access.for_address("127.0.0.1", 70000)
    with pytest.raises(UserError, match="--host"):
        listen(Access.for_address("203.0.113.7", 8000))


def test_a_free_port_is_found_and_printed() -> None:
    listener, access = listen(Access.for_address("127.0.0.1", 0))
    with listener:
        assert address(access) == f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert access.port != 0
