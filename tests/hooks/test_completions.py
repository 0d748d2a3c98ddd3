"""The question before a completion: every way in which an upload can get its last byte leads to it, and once."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.support.redis_server import shared_redis_url
from tusd_py import TusServer
from tusd_py.contracts.hooks import HookAnswer, HookCall, HookResponse
from tusd_py.core.upload import Status

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}
SMALL, LONG = b"abcd", bytes(200_000)
REJECTED = HookAnswer(HookResponse(422), reject=True)


class Asked:
    """A hook that notes the records of the uploads that it is asked about."""

    def __init__(self, answer: HookAnswer | None) -> None:
        self.answer = answer
        self.tus: TusServer
        self.statuses: list[Status | None] = []

    async def pre_finish(self, call: HookCall) -> HookAnswer | None:
        if call.upload.is_partial:
            return None
        record = await self.tus.service.state.get(call.upload.id)
        self.statuses.append(None if record is None else record.status)
        return self.answer


@contextmanager
def serving(path: Path, hooks: Asked, **options: Any) -> Iterator[TestClient]:
    hooks.tus = TusServer(upload_dir=path / "uploads", hooks=hooks, sweep_interval=0, **options)
    app = Starlette(routes=[hooks.tus.route("/files")], lifespan=hooks.tus.lifespan)
    with TestClient(app) as client:
        yield client


def post(client: TestClient, headers: Mapping[str, str], data: bytes = b"") -> Any:
    return client.post("/files", headers={**(BYTES if data else TUS), **headers}, content=data)


def patch(client: TestClient, url: str, offset: int, data: bytes, headers: Mapping[str, str] | None = None) -> Any:
    return client.patch(url, headers={**BYTES, "Upload-Offset": str(offset), **(headers or {})}, content=data)


def small(client: TestClient) -> Any:
    return patch(client, post(client, {"Upload-Length": "4"}).headers["Location"], 0, SMALL)


def small_after_another(client: TestClient) -> Any:
    url = post(client, {"Upload-Length": "4"}).headers["Location"]
    patch(client, url, 0, SMALL[:2])
    return patch(client, url, 2, SMALL[2:])


def long(client: TestClient) -> Any:
    return patch(client, post(client, {"Upload-Length": str(len(LONG))}).headers["Location"], 0, LONG)


def with_checksum(client: TestClient) -> Any:
    digest = base64.b64encode(hashlib.sha1(SMALL).digest()).decode()
    url = post(client, {"Upload-Length": "4"}).headers["Location"]
    return patch(client, url, 0, SMALL, {"Upload-Checksum": f"sha1 {digest}"})


def with_creation(client: TestClient) -> Any:
    return post(client, {"Upload-Length": "4"}, SMALL)


def long_with_creation(client: TestClient) -> Any:
    return post(client, {"Upload-Length": str(len(LONG))}, LONG)


def empty(client: TestClient) -> Any:
    return post(client, {"Upload-Length": "0"})


def deferred(client: TestClient) -> Any:
    url = post(client, {"Upload-Defer-Length": "1"}).headers["Location"]
    return patch(client, url, 0, SMALL, {"Upload-Length": "4"})


def deferred_and_declared_late(client: TestClient) -> Any:
    url = post(client, {"Upload-Defer-Length": "1"}).headers["Location"]
    patch(client, url, 0, SMALL)
    return patch(client, url, 4, b"", {"Upload-Length": "4"})


def final(client: TestClient) -> Any:
    url = post(client, {"Upload-Length": "4", "Upload-Concat": "partial"}, SMALL).headers["Location"]
    return post(client, {"Upload-Concat": f"final;{url}"})


WAYS = [
    small,
    small_after_another,
    long,
    with_checksum,
    with_creation,
    long_with_creation,
    empty,
    deferred,
    deferred_and_declared_late,
    final,
]
OPTIONS: dict[str, Mapping[str, Any]] = {
    "sqlite": {},
    "sqlite without syncs": {"durability": "never"},
    "sqlite with a sync each": {"durability": "always"},
    "redis": {"redis_url": ""},
    "redis without syncs": {"redis_url": "", "durability": "never"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_completion_is_asked_about_once_while_the_record_is_finishing(
    tmp_path: Path, way: Callable[[TestClient], Any], options: str
) -> None:
    given = dict(OPTIONS[options])
    if "redis_url" in given:
        given |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    accepting, rejecting = Asked(None), Asked(REJECTED)
    with serving(tmp_path, accepting, **given) as client:
        accepted = way(client)
    with serving(tmp_path, rejecting, **given) as client:
        rejected = way(client)
        left = client.portal.call(rejecting.tus.uploads.list)  # type: ignore[union-attr]

    assert accepted.status_code in (201, 204)
    assert accepting.statuses == [Status.FINISHING]
    assert rejected.status_code == 422
    assert rejecting.statuses == [Status.FINISHING]
    assert sum(upload.is_complete and not upload.is_partial for upload in left.uploads) == 1
