"""Ids that are used again between the decision about a request and its effect: no request meets another upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.asgi_calls import TIMEOUT, Call, ask, offset_stream
from tests.support.redis_server import shared_redis_url
from tusd_py import Principal, RequestContext, TusServer, Upload, UploadNotFound
from tusd_py.contracts.hooks import HookAnswer, HookCall, UploadChanges
from tusd_py.contracts.locks import Lock
from tusd_py.core.upload import UploadKind
from tusd_py.uploads.admission import ANY_UPLOAD, Admission, admission_to
from tusd_py.uploads.concatenation import is_part

ID = "chosen"
PATH = f"/{ID}"
LARGE = bytes(200 << 10)


class ByHeader:
    """An authenticator that knows senders by the field X-User; `root` is an administrator."""

    async def authenticate(self, context: RequestContext) -> Principal | None:
        user = context.headers["x-user"]
        return Principal(user, frozenset({"uploads:admin"} if user == "root" else ()))


class Choosing:
    """Hooks that give every upload but final ones the same id, and pause before a termination."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def pre_create(self, call: HookCall) -> HookAnswer | None:
        return None if call.upload.is_final else HookAnswer(changes=UploadChanges(id=ID))

    async def pre_terminate(self, call: HookCall) -> HookAnswer | None:
        self.asked.set()
        await self.go_on.wait()
        return None


class Site:
    """A server, and requests of its users."""

    def __init__(self, server: TusServer, hooks: Choosing) -> None:
        self.server = server
        self.hooks = hooks

    async def create(self, user: str, length: int | None = 8, body: bytes = b"", kind: str = "") -> None:
        concat = {"Upload-Concat": kind} if kind else {}
        size = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
        content = offset_stream(0) if body else {}
        answer = await ask(self.server, "POST", "/", {"X-User": user, **size, **content, **concat}, body)
        assert answer.status == 201, answer.body

    async def use_again(self, length: int | None = 8, lock: Lock | None = None, kind: str = "") -> Upload:
        """Remove the upload, and make another one of its id, which belongs to bob; return that."""
        if lock is None:
            await self.server.uploads.terminate(ID)
        else:
            await self.server.service.state.delete(ID, lock.token)
        await self.create("bob", length, kind=kind)
        return await self.upload()

    async def upload(self) -> Upload:
        return await self.server.service.get(ID)

    def call(self, user: str, method: str, **headers: str) -> Call:
        call = Call(self.server, method, PATH, {"X-User": user, **headers})
        call.give(b"", more=False)
        return call


@pytest.fixture(params=["sqlite", "redis"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    settings: dict[str, Any] = {"upload_dir": tmp_path / "uploads", "sweep_interval": 0, "lock_timeout": TIMEOUT}
    if request.param == "redis":
        settings |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:", "lock_ttl": 60}
    hooks = Choosing()
    server = TusServer(authenticator=ByHeader(), hooks=hooks, **settings)
    async with server.lifespan():
        yield Site(server, hooks)


class Holder:
    """The holder of a lock, who notices that another request wants it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def release_requested(self) -> None:
        self.asked.set()

    def commit_requested(self) -> None: ...

    def lock_lost(self) -> None: ...


@pytest.mark.parametrize("user", ["ann", "root"])
async def test_delete_spares_an_upload_that_took_the_id_while_the_application_was_asked(site: Site, user: str) -> None:
    await site.create("ann")
    site.hooks.go_on.clear()
    deleting = site.call(user, "DELETE")
    await asyncio.wait_for(site.hooks.asked.wait(), TIMEOUT)
    other = await site.use_again()
    site.hooks.go_on.set()
    assert (await deleting.answer()).status == 404
    assert await site.upload() == other


@pytest.mark.parametrize("body", [b"four", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("length", [len(LARGE), None], ids=["known", "deferred"])
async def test_patch_that_waits_for_the_lock_appends_nothing_to_an_upload_that_took_the_id(
    site: Site, body: bytes, length: int | None
) -> None:
    await site.create("ann", length)
    service, holder = site.server.service, Holder()
    lock = await service.locker.acquire(ID, holder, 0)
    headers = {"X-User": "ann", **offset_stream(0), "content-length": str(len(body))}
    patching = Call(site.server, "PATCH", PATH, headers)
    patching.give(body, more=False)
    await asyncio.wait_for(holder.asked.wait(), TIMEOUT)
    other = await site.use_again(length, lock)
    await lock.release()
    answer = await patching.answer()
    assert answer.status == 404
    assert "upload-expires" not in answer.headers
    assert await site.upload() == other
    assert (await ask(site.server, "HEAD", PATH, {"X-User": "bob"})).offset == 0


@pytest.mark.parametrize("body", [b"four", LARGE], ids=["small", "large"])
async def test_append_under_the_lock_is_for_the_admitted_upload(
    site: Site, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.create("bob", len(LARGE))
    other = await site.upload()
    headers = {"X-User": "ann", **offset_stream(0)}
    monkeypatch.setattr(site.server.service, "find", returning(replace(other, owner="ann")))
    answer = await ask(site.server, "PATCH", PATH, headers, body)
    assert answer.status == 404
    assert await site.upload() == other


def returning(upload: Upload) -> Callable[[str], Any]:
    """Return a function that finds this record, as one that was read earlier."""

    async def find(upload_id: str) -> Upload:
        return upload

    return find


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_nothing_of_an_upload_that_took_the_id_is_told(
    site: Site, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.create("bob", 4, b"mine")
    other = await site.upload()
    monkeypatch.setattr(site.server.service, "find", returning(replace(other, owner="ann")))
    answer = await ask(site.server, method, PATH, {"X-User": "ann"})
    assert answer.status == 404
    assert b"mine" not in answer.body
    assert "upload-offset" not in answer.headers


async def test_final_upload_that_waited_is_not_made_of_a_part_that_took_the_id(tmp_path: Path) -> None:
    hooks = Choosing()
    settings: dict[str, Any] = {"upload_dir": tmp_path / "uploads", "sweep_interval": 0}
    server = TusServer(authenticator=ByHeader(), hooks=hooks, concatenation_unfinished=True, **settings)
    async with server.lifespan():
        site = Site(server, hooks)
        await site.create("ann", 4, kind="partial")
        answer = await ask(server, "POST", "/", {"X-User": "ann", "Upload-Concat": f"final;{PATH}"})
        assert answer.status == 201
        final = "/" + answer.headers["location"].rpartition("/")[2]
        lock = await server.service.locker.acquire(ID, Holder(), 0)
        await site.use_again(4, lock, "partial")
        await lock.release()
        headers = {"X-User": "bob", **offset_stream(0)}
        assert (await ask(server, "PATCH", PATH, headers, b"mine")).status == 204
        assert (await ask(server, "HEAD", final, {"X-User": "ann"})).status == 404
        assert (await ask(server, "GET", final, {"X-User": "ann"})).status == 404
        assert (await ask(server, "GET", PATH, {"X-User": "bob"})).body == b"mine"


async def test_application_itself_removes_whatever_has_the_id(site: Site) -> None:
    await site.create("ann")
    await site.server.uploads.terminate(ID)
    with pytest.raises(UploadNotFound):
        await site.upload()


@pytest.mark.parametrize(
    ("admission", "fits"),
    [
        (ANY_UPLOAD, True),
        (Admission("ann"), True),
        (Admission("bob"), False),
        (Admission(""), False),
        (Admission("ann", 1.0), True),
        (Admission("ann", 2.0), False),
        (Admission(None, 2.0), False),
        (admission_to(Upload(ID, 1.0, owner="ann")), True),
    ],
)
def test_admission_is_to_an_owner_and_a_creation(admission: Admission, *, fits: bool) -> None:
    assert admission.fits(Upload(ID, 1.0, owner="ann", offset=5)) is fits


@pytest.mark.parametrize(
    ("owner", "created_at", "accepted"), [("ann", 3.0, True), ("bob", 1.0, True), ("bob", 3.0, False)]
)
def test_part_of_another_owner_is_older_than_its_final_upload(owner: str, created_at: float, *, accepted: bool) -> None:
    final = Upload("final", 2.0, owner="ann", concatenation=UploadKind.FINAL)
    assert is_part(final, Upload(ID, created_at, owner=owner)) is accepted
