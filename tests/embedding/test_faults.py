"""The server in an application when things go wrong: no Redis, no lifespan, other middleware."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.asgi_calls import TUS, Call, create, http_scope
from tests.support.redis_server import RedisServer, shared_redis_url
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import Place
from tusd_py import PartialFinished, Status, TusServer, UploadFinished, create_app
from tusd_py.application import with_direct_uploads
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.core.errors import StorageBehind
from tusd_py.core.upload import Upload, UploadPart
from tusd_py.http.cors import EXPOSED_HEADERS


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def call(
    app: ASGIApp, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> Answer:
    """Make one request directly to the application, whose exceptions are raised; return the answer."""
    scope = http_scope(method, path, {"content-length": str(len(body)), **(headers or {})})
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]))


def mounted(tus: TusServer) -> Starlette:
    app = Starlette()
    app.router.routes.append(tus.route("/files"))
    return app


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("tusd-py")]
    assert not left


async def test_requests_before_the_records_can_be_reached_are_refused_and_later_ones_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    redis = RedisServer().start()
    redis.stop()
    tus = TusServer(upload_dir=tmp_path, redis_url=redis.url)
    app = mounted(tus)
    try:
        with nothing_left_behind():
            for _ in range(3):
                post = await call(app, "POST", "/files", {"Upload-Length": "5"})
                assert (post.status, post.headers["retry-after"]) == (503, "1")
                assert post.body.startswith(b"ERR_NOT_READY: ")
                assert redis.url.encode() not in post.body
                head = await call(app, "HEAD", "/files/abc")
                assert (head.status, head.headers["retry-after"]) == (423, "1")
                assert "upload-offset" not in head.headers
                assert (await call(app, "OPTIONS", "/files")).status == 200
                assert (await call(app, "GET", "/nothing")).status == 404
        told = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(told) == 1
        assert redis.url in told[0].getMessage()
        assert told[0].exc_info is None
        redis.start()
        deadline = asyncio.get_running_loop().time() + 30
        while (post := await call(app, "POST", "/files", {"Upload-Length": "5"})).status == 503:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.1)
        assert post.status == 201
    finally:
        await tus.shutdown()
        redis.close()


async def test_many_requests_share_one_attempt_to_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "uploads").write_text("a file")
    tus = TusServer(upload_dir=tmp_path / "uploads")
    app = mounted(tus)
    with nothing_left_behind():
        answers = await asyncio.gather(*(call(app, "POST", "/files", {"Upload-Length": "5"}) for _ in range(50)))
    assert {answer.status for answer in answers} == {503}
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    (tmp_path / "uploads").unlink()
    await asyncio.sleep(1.1)  # the pause between two attempts
    assert (await call(app, "POST", "/files", {"Upload-Length": "5"})).status == 201
    await tus.shutdown()


async def test_a_request_that_goes_away_does_not_end_the_start(tmp_path: Path) -> None:
    tus = TusServer(upload_dir=tmp_path)
    app = mounted(tus)
    first = asyncio.create_task(call(app, "POST", "/files", {"Upload-Length": "5"}))
    await asyncio.sleep(0)
    first.cancel()
    assert (await call(app, "POST", "/files", {"Upload-Length": "5"})).status == 201
    await tus.shutdown()


async def test_a_web_server_that_does_not_tell_the_raw_path_serves_uploads(tmp_path: Path) -> None:
    server = TusServer(upload_dir=tmp_path, sweep_interval=0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await server({**scope, "raw_path": None}, receive, send)

    async with server.lifespan():
        path = await create(server, 5)
        assert (await Call(app, "HEAD", f"{path}/").answer()).offset == 0


@pytest.mark.parametrize("in_the_way", ["", ".tusd-py", ".tusd-py/locks", ".tusd-py/uploads.sqlite3"])
async def test_a_start_that_fails_half_way_leaves_nothing_open(tmp_path: Path, in_the_way: str) -> None:
    path = tmp_path / "uploads" / in_the_way
    path.parent.mkdir(parents=True, exist_ok=True)
    if in_the_way.endswith("locks"):
        path.mkdir()
    else:
        path.write_text("something else " * 1000)
    tus = TusServer(upload_dir=tmp_path / "uploads")
    with nothing_left_behind():
        for _ in range(5):
            assert await tus.start_error(20) is not None
            tus._start_attempts.next_at = 0


async def test_ready_checks_say_why_and_start_the_server_later(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("a file")
    app = create_app(upload_dir=tmp_path / "uploads")
    answer = await call(app, "GET", "/readyz")
    assert (answer.status, answer.body) == (
        503,
        f"the upload directory {tmp_path / 'uploads'} cannot be used: Not a directory\n".encode(),
    )
    (tmp_path / "uploads").unlink()
    app.state.tus._start_attempts.next_at = 0
    assert (await call(app, "GET", "/readyz")).status == 200
    await app.state.tus.shutdown()


@pytest.mark.parametrize("path", ["/files", "/files/", "/files/abc", "/files/abc/events", "/files/events", "/nothing"])
async def test_a_websocket_is_refused_without_an_exception(tmp_path: Path, path: str) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": path, "headers": [], "root_path": "", "query_string": b"", "subprotocols": []}
    created, fastapi = create_app(upload_dir=tmp_path), FastAPI()
    embedded = [TusServer(upload_dir=tmp_path) for _ in range(2)]
    fastapi.mount("/files", embedded[0])
    apps = (created, with_direct_uploads(created), mounted(embedded[1]), fastapi)
    for app in apps:
        await app({**scope}, receive, send)
    for tus in (created.state.tus, *embedded):
        await tus.shutdown()
    assert [message["type"] for message in sent] == ["websocket.close"] * len(apps)


async def test_a_websocket_is_refused_after_the_shutdown_too(tmp_path: Path) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    tus = TusServer(upload_dir=tmp_path)
    async with tus.lifespan():
        pass
    await tus({"type": "websocket", "path": "/", "headers": []}, asyncio.Event().wait, send)  # type: ignore[arg-type]
    await tus.shutdown()
    assert [message["type"] for message in sent] == ["websocket.close"]


OPEN = {"allow_origins": ["*"], "allow_methods": ["*"], "allow_headers": ["*"]}


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ({"allow_origins": ["*"]}, ["allow_methods", "allow_headers"]),
        ({**OPEN, "allow_methods": ["GET", "POST"]}, ["allow_methods"]),
        ({**OPEN, "allow_headers": ["Authorization"]}, ["allow_headers"]),
        ({**OPEN, "expose_headers": ["X-Total"]}, ["expose_headers"]),
        (OPEN, []),
        ({**OPEN, "expose_headers": EXPOSED_HEADERS}, []),
    ],
)
@pytest.mark.parametrize("seen_at", ["start", "request"])
async def test_a_cors_middleware_around_the_server_that_stops_browsers_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, arguments: dict[str, Any], missing: list[str], seen_at: str
) -> None:
    tus = TusServer(upload_dir=tmp_path)
    app = FastAPI()
    app.add_middleware(CORSMiddleware, **arguments)
    app.router.routes.append(tus.route("/files"))
    preflight = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "tus-resumable,upload-offset,content-type",
    }
    async with contextlib.AsyncExitStack() as stack:
        if seen_at == "start":
            await stack.enter_async_context(tus.lifespan(app))
        else:
            stack.push_async_callback(tus.shutdown)
        for _ in range(2):
            created = await call(app, "POST", "/files", {"Upload-Length": "5", "Origin": "https://app.example"})
            assert created.status == 201
        allowed = (await call(app, "OPTIONS", "/files", preflight)).status == 200
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == bool(missing)
    assert all(name in warnings[0] for name in missing)
    readable = {name.strip().lower() for name in created.headers.get("access-control-expose-headers", "").split(",")}
    works = allowed and {name.lower() for name in EXPOSED_HEADERS} <= readable
    assert works is not bool(missing)  # the warning is right


# Several event loops in one process, as in test suites.


@pytest.fixture(params=["disk", "redis", "s3"])
def stored_in(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The settings of one server on each kind of record store and storage."""
    settings: dict[str, Any] = {"upload_dir": tmp_path / "uploads"}
    if request.param == "redis":
        settings |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    elif request.param == "s3":
        settings |= {name: value for name, value in Place(s3_server()).options().items() if name != "env"}
    return settings


def upload_with(client: TestClient) -> str:
    """Create an upload of five bytes and send them; returns its path."""
    created = client.post("/files", headers={**TUS, "Upload-Length": "5"})
    assert created.status_code == 201
    path = created.headers["location"].removeprefix("http://testserver")
    offset = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    patched = client.patch(path, headers=offset, content=b"hello")
    assert patched.status_code == 204
    return path


def test_a_client_with_a_loop_for_every_request_can_upload(stored_in: dict[str, Any]) -> None:
    """`TestClient(app)` without `with`, as in FastAPI's tutorial, runs every request in a new event loop."""
    client = TestClient(mounted(TusServer(**stored_in)))
    paths = [upload_with(client) for _ in range(3)]
    threads = threading.active_count()
    paths += [upload_with(client) for _ in range(3)]
    assert threading.active_count() <= threads + 1
    for path in paths:
        assert client.get(path).content == b"hello"


def test_a_server_that_was_shut_down_starts_again(stored_in: dict[str, Any]) -> None:
    tus = TusServer(**stored_in)
    app = Starlette(lifespan=tus.lifespan)
    app.router.routes.append(tus.route("/files"))
    for _ in range(3):
        with TestClient(app) as client:
            upload_with(client)


async def test_a_server_that_was_shut_down_starts_again_in_the_same_loop(stored_in: dict[str, Any]) -> None:
    tus = TusServer(**stored_in)
    app = mounted(tus)
    for _ in range(3):
        async with tus.lifespan(app):
            created = await call(app, "POST", "/files", {"Upload-Length": "5"})
            path = created.headers["location"].removeprefix("http://testserver")
            offset = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
            assert (await call(app, "PATCH", path, offset, b"hello")).status == 204


async def test_waiting_final_uploads_are_finished_after_a_new_loop_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = TestClient(mounted(TusServer(upload_dir=tmp_path, concatenation_unfinished=True, sweep_interval=0)))
    partial = {**TUS, "Upload-Concat": "partial", "Upload-Length": "5"}
    part = (await asyncio.to_thread(client.post, "/files", headers=partial)).headers["location"]
    made = await asyncio.to_thread(client.post, "/files", headers={**TUS, "Upload-Concat": f"final;{part}"})
    offset = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    await asyncio.to_thread(client.patch, part, headers=offset, content=b"hello")
    assert (await asyncio.to_thread(client.get, made.headers["location"])).content == b"hello"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_server_without_lifespan_closes_when_its_loop_ends(tmp_path: Path) -> None:
    with nothing_left_behind():
        assert asyncio.run(call(mounted(TusServer(upload_dir=tmp_path)), "POST", "/files", {"Upload-Length": "5"}))


# Events for subscribers.


async def test_finished_is_told_of_what_a_user_calls_an_upload_and_never_of_its_pieces(tmp_path: Path) -> None:
    tus = TusServer(upload_dir=tmp_path)
    finished: list[str] = []
    pieces: list[str] = []

    @tus.on(UploadFinished)
    def note(event: UploadFinished) -> None:
        finished.append(event.upload.id)

    @tus.on(PartialFinished)
    async def note_piece(event: PartialFinished) -> None:
        pieces.append(event.upload.id)

    app = mounted(tus)
    offset = {"Content-Type": "application/offset+octet-stream"}
    async with tus.lifespan(app):
        parts = []
        for length, content in (("5", b"hello"), ("0", b"")):
            headers = {"Upload-Concat": "partial", "Upload-Length": length, **offset}
            parts.append((await call(app, "POST", "/files", headers, content)).headers["location"])
        assert finished == []
        assert pieces == [part.rpartition("/")[2] for part in parts]
        final = await call(app, "POST", "/files", {"Upload-Concat": f"final;{' '.join(parts)}"})
        plain = await call(app, "POST", "/files", {"Upload-Length": "5", **offset}, b"hello")
        ids = [answer.headers["location"].rpartition("/")[2] for answer in (final, plain)]
        assert finished == ids
        assert len(pieces) == 2
        assert b"tusd_uploads_finished 4.0" in tus.metrics.render()


class _FirstSyncFails(DiskStorage):
    """A storage whose first completion meets a failed sync."""

    failed = False

    async def finish(self, upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        if not self.failed:
            self.failed = True
            raise StorageBehind(0)
        return await super().finish(upload, parts, sync=sync)


async def test_upload_without_bytes_whose_sync_fails_is_refused_for_now_and_completed_later(tmp_path: Path) -> None:
    tus = TusServer(upload_dir=tmp_path, storage=_FirstSyncFails(tmp_path))
    async with tus.lifespan():
        app = mounted(tus)
        created = await call(app, "POST", "/files", {**TUS, "upload-length": "0"})
        (upload,) = (await tus.uploads.list()).uploads
        asked = await call(app, "HEAD", f"/files/{upload.id}", TUS)
        (completed,) = (await tus.uploads.list()).uploads

    assert (created.status, upload.status) == (503, Status.FINISHING)
    assert (asked.status, completed.status) == (200, Status.COMPLETE)
