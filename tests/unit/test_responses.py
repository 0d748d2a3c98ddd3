"""Assembly of responses: their fields, and the servers that get them as a whole."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.types import Message

from tusd_py.http.body_extension import BODY_EXTENSION
from tusd_py.http.cors import CrossOrigin
from tusd_py.http.request import CommonHeaders, Response, responder_of


class Server:
    """The responder behind `send` under the server of this package."""

    def respond(self, status: int, header_lines: bytes, body: bytes, *, close: bool) -> bool:
        return True

    async def send(self, message: Message) -> None: ...


def test_header_lines_name_and_value_each_ended() -> None:
    response = Response(204, {"Upload-Offset": "7", "Upload-Metadata": "name w7xiZXI="})
    assert response.header_lines() == b"upload-offset: 7\r\nupload-metadata: name w7xiZXI=\r\n"


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\x00b", "a\x7fb"])
def test_header_lines_with_a_value_that_could_end_its_line_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        Response(200, {"Upload-Length": "1", "Upload-Metadata": value}).header_lines()


def test_common_headers_are_the_same_in_both_forms_and_made_once_for_each_origin() -> None:
    common = CommonHeaders([(b"tus-resumable", b"1.0.0")], CrossOrigin(["https://*.example.org"], credentials=False))
    allowed = common.to("https://app.example.org")
    assert allowed.lines == b"".join(name + b": " + value + b"\r\n" for name, value in allowed.raw)
    assert dict(allowed.raw)[b"access-control-allow-origin"] == b"https://app.example.org"
    assert common.to("https://app.example.org") is allowed
    assert b"access-control-allow-origin" not in dict(common.to("https://evil.example").raw)
    assert (b"tus-resumable", b"1.0.0") in common.to(None).raw


def test_common_headers_of_more_origins_than_are_kept_stay_right() -> None:
    common = CommonHeaders([], CrossOrigin(["http://localhost:*"], credentials=False))
    for port in range(2000):
        origin = f"http://localhost:{port}"
        assert dict(common.to(origin).raw)[b"access-control-allow-origin"] == origin.encode()


def test_common_headers_of_an_origin_longer_than_any_of_a_page_are_not_kept() -> None:
    common = CommonHeaders([], CrossOrigin(["*"], credentials=False))
    origin = "https://" + 100_000 * "a"
    assert common.to(origin) is not common.to(origin)
    assert common.to(origin) == common.to(origin)


def test_responder_is_the_server_only_if_send_is_its_own() -> None:
    server = Server()
    scope: dict[str, Any] = {"extensions": {BODY_EXTENSION: server}}

    async def send_of_a_middleware(message: Message) -> None:
        await server.send(message)

    assert responder_of(scope, server.send) is server
    assert responder_of(scope, send_of_a_middleware) is None
    assert responder_of(scope, Server().send) is None
    assert responder_of({}, server.send) is None
