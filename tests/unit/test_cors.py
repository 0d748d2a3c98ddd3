from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tusd_py.http.cors import (
    EXPOSED_HEADERS,
    METHODS,
    NEEDED_HEADERS,
    CrossOrigin,
    missing_in_middleware,
    origin_pattern,
)
from tusd_py.http.tus.headers import single_values

ORIGIN = "https://app.example.org"


async def answer(app: ASGIApp, method: str, headers: Mapping[str, str]) -> tuple[int, dict[str, str]]:
    """Status and header fields of the answer to a request without a body."""
    messages: list[Any] = []
    scope = {
        "type": "http",
        "method": method,
        "path": "/files",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, send)
    return messages[0]["status"], {name.decode(): value.decode() for name, value in messages[0]["headers"]}


def application(*origins: str, credentials: bool = False) -> ASGIApp:
    cross_origin = CrossOrigin(origins, credentials=credentials)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = single_values(scope["headers"])
        fields = {name.decode(): value.decode() for name, value in cross_origin.headers(headers.get("origin"))}
        answered = PlainTextResponse("answered", headers={"Location": "/x", **fields})
        await (cross_origin.preflight(scope, headers) or answered)(scope, receive, send)

    return app


def words(text: str) -> set[str]:
    return {word.strip() for word in text.split(",")}


PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "PATCH",
    "Access-Control-Request-Headers": "tus-resumable,upload-offset,content-type,x-my-own",
}


@pytest.mark.parametrize("origins", [["*"], [ORIGIN], ["https://*.example.org"], ["https://other.example", ORIGIN]])
@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE", "GET"])
async def test_a_preflight_of_an_allowed_origin(origins: list[str], method: str) -> None:
    request = {**PREFLIGHT, "Access-Control-Request-Method": method}
    status, headers = await answer(application(*origins), "OPTIONS", request)
    assert status == 200
    assert headers["access-control-allow-origin"] in ("*", ORIGIN)
    assert method in words(headers["access-control-allow-methods"])
    asked = words(PREFLIGHT["Access-Control-Request-Headers"])
    assert asked <= words(headers["access-control-allow-headers"].lower())
    assert int(headers["access-control-max-age"]) >= 600


@pytest.mark.parametrize("origins", [["*"], [ORIGIN], ["https://*.example.org"]])
async def test_an_answer_to_an_allowed_origin(origins: list[str]) -> None:
    status, headers = await answer(application(*origins), "POST", {"Origin": ORIGIN})
    assert status == 200
    assert headers["access-control-allow-origin"] in ("*", ORIGIN)
    exposed = words(headers["access-control-expose-headers"])
    assert exposed == set(EXPOSED_HEADERS)
    assert {"Location", "Upload-Offset", "Upload-Length", "Upload-Metadata", "Tus-Resumable"} <= exposed
    if origins != ["*"]:
        assert "Origin" in words(headers["vary"])


async def test_a_foreign_origin_gets_no_permission() -> None:
    app = application("https://*.example.com")
    status, headers = await answer(app, "OPTIONS", PREFLIGHT)
    assert status >= 400
    assert "access-control-allow-origin" not in headers
    status, headers = await answer(app, "POST", {"Origin": ORIGIN})
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("origins", [["*"], [ORIGIN]])
async def test_requests_of_other_clients_pass(origins: list[str]) -> None:
    app = application(*origins)
    for method in (*METHODS, "OPTIONS"):
        status, headers = await answer(app, method, {})
        assert status == 200
        assert headers["location"] == "/x"
        assert "access-control-allow-origin" not in headers


async def test_an_options_request_that_is_no_preflight_is_the_applications() -> None:
    status, headers = await answer(application("*"), "OPTIONS", {"Origin": ORIGIN})
    assert status == 200
    assert headers["location"] == "/x"


async def test_without_origins_nothing_is_added() -> None:
    for request in (PREFLIGHT, {"Origin": ORIGIN}):
        _, headers = await answer(application(), "OPTIONS", request)
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("origins", [["*"], [ORIGIN]])
async def test_credentials_are_for_a_named_origin(origins: list[str]) -> None:
    app = application(*origins, credentials=True)
    _, headers = await answer(app, "OPTIONS", PREFLIGHT)
    assert headers["access-control-allow-credentials"] == "true"
    assert headers["access-control-allow-origin"] == ORIGIN  # browsers refuse * with credentials
    _, headers = await answer(app, "POST", {"Origin": ORIGIN, "Cookie": "session=1"})
    assert headers["access-control-allow-credentials"] == "true"
    assert headers["access-control-allow-origin"] == ORIGIN
    _, headers = await answer(application(*origins), "POST", {"Origin": ORIGIN})
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize(
    ("configured", "origin", "expected"),
    [
        ("https://app.example.org", "https://app.example.org", True),
        ("https://app.example.org/", "https://app.example.org", True),
        ("https://app.example.org", "http://app.example.org", False),
        ("https://app.example.org", "https://app.example.org:8443", False),
        ("https://app.example.org", "https://app.example.org.evil.example", False),
        ("https://app.example.org", "https://evil.example/https://app.example.org", False),
        ("https://app.example.org", "https://appXexample.org", False),
        ("https://app.example.org", "https://xapp.example.org", False),
        ("https://*.example.org", "https://app.example.org", True),
        ("https://*.example.org", "https://a.b.example.org", True),
        ("https://*.example.org", "https://example.org", False),
        ("https://*.example.org", "https://evilexample.org", False),
        ("https://*.example.org", "https://app.example.org.evil.example", False),
        ("https://*.example.org", "https://evil.example/.example.org", False),
        ("https://*.example.org", "https://evil.example#.example.org", False),
        ("https://*.example.org", "https://user@app.example.org", False),
        ("https://*.example.org", "https://app.example.org\n", False),
        ("http://localhost:*", "http://localhost:5173", True),
        ("http://localhost:*", "http://localhost", False),
        ("https://pr-*.example.org", "https://pr-17.example.org", True),
        ("https://app.example.org", "null", False),
        ("null", "null", True),
    ],
)
def test_origins_match_as_a_whole(configured: str, origin: str, expected: bool) -> None:
    for origins in ([configured], ["https://another.example", configured]):
        assert bool(re.fullmatch(origin_pattern(origins), origin)) is expected


# Private networks.


PRIVATE_NETWORK = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "PATCH",
    "Access-Control-Request-Private-Network": "true",
}


@pytest.mark.parametrize("origins", ["*", ORIGIN, "https://*.example.org"])
async def test_preflight_for_a_private_network_from_an_allowed_origin_is_answered(origins: str) -> None:
    status, headers = await answer(application(origins), "OPTIONS", PRIVATE_NETWORK)
    assert (status, headers["access-control-allow-private-network"]) == (200, "true")


async def test_preflight_for_a_private_network_from_another_origin_is_not() -> None:
    for app in (application("https://other.example.org"), application()):
        _, headers = await answer(app, "OPTIONS", PRIVATE_NETWORK)
        assert "access-control-allow-private-network" not in headers
        assert "access-control-allow-origin" not in headers


async def test_preflight_that_asks_for_no_private_network_is_told_of_none() -> None:
    asked = {name: value for name, value in PRIVATE_NETWORK.items() if "Private" not in name}
    status, headers = await answer(application("*"), "OPTIONS", asked)
    assert (status, "access-control-allow-private-network" in headers) == (200, False)


def test_middleware_has_to_allow_authorization_where_the_server_authenticates() -> None:
    app = Starlette(middleware=[Middleware(CORSMiddleware, allow_methods=["*"], allow_headers=NEEDED_HEADERS)])
    assert missing_in_middleware(app, authenticates=False) == ""
    assert missing_in_middleware(app, authenticates=True) == 'allow_headers=["*"]'
    app = Starlette(
        middleware=[Middleware(CORSMiddleware, allow_methods=["*"], allow_headers=[*NEEDED_HEADERS, "authorization"])]
    )
    assert missing_in_middleware(app, authenticates=True) == ""
