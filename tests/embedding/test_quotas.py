"""Quotas of applications: by authenticators, by hooks, with components of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from tusd_py import InvalidSettings, Principal, RequestContext, TusServer, create_app
from tusd_py.contracts.hooks import HookAnswer, HookCall, UploadChanges
from tusd_py.contracts.state import StateStore
from tusd_py.testing import MemoryLocker, MemoryState, MemoryStorage

TUS = {"Tus-Resumable": "1.0.0"}


class ByHeader:
    """An authenticator that takes the sender and its quota from header fields."""

    async def authenticate(self, context: RequestContext) -> Principal | None:
        quota = context.headers.get("x-quota")
        return Principal(context.headers["x-user"], quota_bytes=None if quota is None else int(quota))


class GivingAway:
    """Hooks that give every upload to the owner that its metadata name."""

    async def pre_create(self, call: HookCall) -> HookAnswer | None:
        owner = call.upload.decoded_metadata.get("for")
        return HookAnswer(changes=UploadChanges(owner=owner)) if owner else None


class MinimalState:
    """The records in memory as a package without quotas would offer them."""

    def __init__(self) -> None:
        self._state = MemoryState()

    def __getattr__(self, name: str) -> Any:
        if name in ("usage_of", "enforces_quotas"):
            raise AttributeError(name)
        return getattr(self._state, name)


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[TestClient]:
    with TestClient(create_app(upload_dir=folder / "uploads", **settings)) as client:
        yield client


def status_of(client: TestClient, length: int, **headers: str) -> int:
    fields = {**TUS, "Upload-Length": str(length), **{name.replace("_", "-"): text for name, text in headers.items()}}
    return client.post("/files", headers=fields).status_code


def test_quota_of_a_principal_takes_the_place_of_the_setting(tmp_path: Path) -> None:
    with serving(tmp_path, quota_bytes="1KiB", authenticator=ByHeader()) as client:
        assert status_of(client, 1025, X_User="ann") == 413
        assert status_of(client, 1024, X_User="ann") == 201
        assert status_of(client, 1, X_User="ann") == 413
        assert status_of(client, 1, X_User="ann", X_Quota="1025") == 201
        assert status_of(client, 11, X_User="bob", X_Quota="10") == 413
        assert status_of(client, 10, X_User="bob", X_Quota="10") == 201


def test_upload_counts_for_the_owner_that_a_hook_names(tmp_path: Path) -> None:
    for_bob = "for Ym9i"
    with serving(tmp_path, quota_bytes=10, authenticator=ByHeader(), hooks=GivingAway()) as client:
        assert status_of(client, 10, X_User="ann", X_Quota="0", Upload_Metadata=for_bob) == 201
        assert status_of(client, 1, X_User="eve", Upload_Metadata=for_bob) == 413
        assert status_of(client, 1, X_User="bob") == 413
        assert status_of(client, 10, X_User="ann") == 201


def test_quotas_hold_for_records_in_memory(tmp_path: Path) -> None:
    components = {"storage": MemoryStorage(), "state": MemoryState(), "locker": MemoryLocker()}
    with serving(tmp_path, quota_uploads=2, **components) as client:
        assert [status_of(client, 5) for _ in range(3)] == [201, 201, 413]


@pytest.mark.parametrize("quota", ["quota_bytes", "quota_uploads"])
def test_records_that_do_not_count_are_refused(tmp_path: Path, quota: str) -> None:
    settings: dict[str, Any] = {quota: 5}
    with pytest.raises(InvalidSettings, match=f"^{quota} needs records that count per owner: SQLite and Redis do, Min"):
        TusServer(upload_dir=tmp_path, state=cast(StateStore, MinimalState()), **settings)
    with pytest.raises(InvalidSettings, match=f"^{quota} needs one Redis, not a cluster$"):
        TusServer(upload_dir=tmp_path, redis_url="redis+cluster://localhost:7000", **settings)


def test_quota_of_a_principal_is_not_ignored_by_records_that_do_not_count(tmp_path: Path) -> None:
    components = {"storage": MemoryStorage(), "state": MinimalState(), "locker": MemoryLocker()}
    with serving(tmp_path, authenticator=ByHeader(), **components) as client:
        assert status_of(client, 1, X_User="ann") == 201
        assert status_of(client, 1, X_User="ann", X_Quota="10") == 503
