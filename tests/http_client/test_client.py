from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.support.timing import TIMEOUT
from tusd_py.http_client.client import MAX_CONNECTIONS, HttpClient, HttpUrl, parse_http_url
from tusd_py.http_client.response_parser import HttpAnswer, HttpFailure

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


class Receiver:
    """A server that answers each connection as a test says, and keeps the requests."""

    def __init__(self, answer: bytes | Answer) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> HttpUrl:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        return parse_http_url(f"http://127.0.0.1:{port}/hook?a=b")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while request := await read_request(reader):
                self.requests.append(request)
                if callable(self.answer):
                    await self.answer(reader, writer)
                else:
                    writer.write(self.answer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def stop(self) -> None:
        self.server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-len"))
    return head + await reader.readexactly(length)


@contextlib.asynccontextmanager
async def receiving(answer: bytes | Answer) -> AsyncIterator[tuple[Receiver, HttpUrl, HttpClient]]:
    receiver, client = Receiver(answer), HttpClient()
    url = await receiver.start()
    try:
        yield receiver, url, client
    finally:
        await client.close()
        await receiver.stop()


async def post(client: HttpClient, url: HttpUrl, body: bytes = b"body", timeout: float = TIMEOUT) -> HttpAnswer:
    return await client.post(url, {"Content-Type": "text/plain"}, body, timeout, max_body=1000)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\nx-a: 2\r\n\r\nok"


async def test_request_arrives_whole_and_its_answer_is_read() -> None:
    async with receiving(OK) as (receiver, url, client):
        answer = await post(client, url)
    assert (answer.status, answer.body, answer.headers["x-a"]) == (200, b"ok", "1, 2")
    head, _, body = receiver.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /hook?a=b HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nContent-Type: text/plain\r\n" in head
    assert body == b"body"


async def test_connection_is_used_again() -> None:
    async with receiving(OK) as (receiver, url, client):
        for _ in range(5):
            await post(client, url)
        assert receiver.connections == 1


async def test_many_requests_at_once_have_connections_of_their_own() -> None:
    async with receiving(OK) as (receiver, url, client):
        answers = await asyncio.gather(*(post(client, url, b"%d" % number) for number in range(30)))
        assert [answer.status for answer in answers] == [200] * 30
        assert len(receiver.requests) == 30


SURPLUS = {
    "another answer": OK,
    "a rejection": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": b"\0\0\0",
    "an empty line": b"\r\n",
    "the beginning of an answer": b"HTTP/1.1 403 For",
}


@pytest.mark.parametrize("surplus", SURPLUS)
@pytest.mark.parametrize("late", [False, True])
async def test_bytes_after_an_answer_are_no_part_of_the_next_one(surplus: str, late: bool) -> None:
    sent = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent.clear()
        if not late:
            writer.write(OK + SURPLUS[surplus])
            return
        writer.write(OK)
        await writer.drain()
        asyncio.get_running_loop().call_later(0.05, send, writer)

    def send(writer: asyncio.StreamWriter) -> None:
        writer.write(SURPLUS[surplus])
        sent.set()

    async with receiving(answer) as (receiver, url, client):
        for number in range(1, 4):
            found = await post(client, url)
            assert (found.status, found.body, found.headers["x-a"]) == (200, b"ok", "1, 2")
            assert len(receiver.requests) == number
            if late:
                await sent.wait()
                await asyncio.sleep(0.05)  # the bytes are on their way
        assert receiver.connections == 3 or surplus == "an empty line"  # which is no part of any answer


async def test_connections_to_a_receiver_are_bounded_and_requests_wait() -> None:
    held, full, go_on = 0, asyncio.Event(), asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal held
        held += 1
        if held == MAX_CONNECTIONS:
            full.set()
        await go_on.wait()
        writer.write(OK)

    async with receiving(answer) as (receiver, url, client):
        posts = [asyncio.create_task(post(client, url)) for _ in range(MAX_CONNECTIONS + 20)]
        await full.wait()
        await asyncio.sleep(0.05)
        assert receiver.connections == MAX_CONNECTIONS
        go_on.set()
        assert {found.status for found in await asyncio.gather(*posts)} == {200}
        assert held == MAX_CONNECTIONS + 20


async def test_connection_that_the_receiver_closed_meanwhile_is_replaced() -> None:
    async def answer_and_close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        writer.close()

    async with receiving(answer_and_close) as (receiver, url, client):
        for _ in range(3):
            assert (await post(client, url)).status == 200
        assert receiver.connections == 3


@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", 302, b""),
        (b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, 200, None),
    ],
)
async def test_any_answer_is_returned_within_its_bounds(raw: bytes, status: int, body: bytes | None) -> None:
    async with receiving(raw) as (_, url, client):
        answer = await post(client, url)
    assert (answer.status, answer.body) == (status, body)


async def test_endless_answer_ends_at_the_bound() -> None:
    async def stream(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 1000)
            await writer.drain()

    async with receiving(stream) as (_, url, client):
        assert (await post(client, url)).body is None


async def test_body_that_ends_with_the_connection_is_read() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nok")
        await writer.drain()
        writer.write_eof()

    async with receiving(answer) as (_, url, client):
        assert (await post(client, url)).body == b"ok"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 100_000, "too long"),
    ],
)
async def test_answer_that_is_no_http_is_a_failure(raw: bytes, reason: str) -> None:
    async with receiving(raw) as (_, url, client):
        with pytest.raises(HttpFailure, match=reason):
            await post(client, url)


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok"])
async def test_connection_that_ends_before_the_answer_is_a_failure(raw: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.write_eof()

    async with receiving(answer) as (_, url, client):
        with pytest.raises(HttpFailure, match="before the end"):
            await post(client, url)


async def test_answer_that_does_not_come_is_a_failure_in_time() -> None:
    async def hang(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with receiving(hang) as (_, url, client):
        with pytest.raises(HttpFailure, match=r"no answer in 0\.1 s"):
            await post(client, url, timeout=0.1)


async def test_receiver_that_is_away_is_a_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = parse_http_url(f"http://127.0.0.1:{unused.getsockname()[1]}/")
        with pytest.raises(HttpFailure):
            await post(HttpClient(), url)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "10.1.2.3", "169.254.169.254", "[::ffff:10.0.0.1]"]
)
async def test_private_address_is_refused_if_asked_for(host: str) -> None:
    client = HttpClient(allow_private=False)
    with pytest.raises(HttpFailure, match="private address"):
        await post(client, parse_http_url(f"http://{host}:1/"))


def test_parts_of_urls() -> None:
    url = parse_http_url("https://user:p%40ss@App.example.org/a%20b?c=d")
    assert (url.secure, url.host, url.port, url.target) == (True, "app.example.org", 443, "/a%20b?c=d")
    assert url.host_header == "app.example.org"
    assert url.credentials == "Basic dXNlcjpwQHNz"
    assert parse_http_url("http://[::1]:8000").host_header == "[::1]:8000"
    with pytest.raises(ValueError, match="a URL such as"):
        parse_http_url("ftp://host/")
    assert "cEBzcw" not in repr(url)


@pytest.mark.parametrize(("value", "expected"), [("5", 5.0), (" 60 ", 60.0), ("soon", None), ("-1", None), ("", None)])
def test_retry_after_is_read_as_seconds(value: str, expected: float | None) -> None:
    assert HttpAnswer(503, {"retry-after": value}, b"").retry_after == expected
