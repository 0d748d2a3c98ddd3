"""Storages, state stores and lockers of an application or of another package, in place of the built-in ones."""

from __future__ import annotations

import asyncio
import sys
import typing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.support.harness import serving
from tests.support.wire.promised import create
from tusd_py import InvalidSettings, Settings, StateUnavailable, StorageUnavailable, TusServer
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.lifecycle import close_service, open_service
from tusd_py.settings import FIELDS, SettingsOverrides
from tusd_py.testing import MemoryLocker, MemoryState, MemoryStorage
from tusd_py.uploads.identity import IDENTITY

TUS = {"Tus-Resumable": "1.0.0"}
MODULE = """\
from pathlib import Path

from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.sqlite.state import SQLiteState

HERE = Path(__file__).parent


def storage(settings):
    return DiskStorage(HERE / "bytes")


def state(settings):
    (HERE / "records").mkdir(exist_ok=True)
    return SQLiteState(HERE / "records" / "all.sqlite3")


def locker(settings):
    (HERE / "locks").mkdir(exist_ok=True)
    return LocalLocker(HERE / "locks" / "lock")


def broken(settings):
    raise RuntimeError("no such disk\\nat all")


def incomplete(settings):
    return object()


constant = 5
"""
ENTRY_POINTS = """\
[tusd_py.storages]
elsewhere = other_package:storage
broken = other_package:broken
incomplete = other_package:incomplete
constant = other_package:constant
missing = other_package:nothing

[tusd_py.state_stores]
elsewhere = other_package:state

[tusd_py.lockers]
elsewhere = other_package:locker
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with entry points, installed in a folder of its own on the path."""
    folder = tmp_path / "site"
    information = folder / "other_package-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "other_package.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "other_package", raising=False)
    return folder


def upload(server: TusServer, data: bytes) -> str:
    with TestClient(Starlette(routes=[server.route("/files")], lifespan=server.lifespan)) as client:
        created = client.post("/files", headers={**TUS, "Upload-Length": str(len(data))})
        assert created.status_code == 201, created.text
        path = created.headers["Location"].partition("testserver")[2]
        offset = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        assert client.patch(path, headers={**TUS, **offset}, content=data).status_code == 204
        assert client.get(path).content == data
        return path.rpartition("/")[2]


def test_given_components_take_the_place_of_the_chosen_ones(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    storage, state = DiskStorage(mine / "bytes"), SQLiteState(mine / "records")
    server = TusServer(upload_dir=tmp_path / "unused", storage=storage, state=state, locker=LocalLocker(mine / "locks"))
    for data in (b"once", b"and again after a shutdown"):
        assert (mine / "bytes" / upload(server, data)).read_bytes() == data
    assert not [file for file in (tmp_path / "unused").rglob("*") if "sqlite" in file.name or "locks" in file.name]


@pytest.mark.usefixtures("package")
def test_entry_points_name_components_of_other_packages(tmp_path: Path, package: Path) -> None:
    server = TusServer(
        upload_dir=tmp_path / "unused",
        storage_plugin="elsewhere",
        state_plugin="elsewhere",
        locker_plugin="elsewhere",
    )
    upload_id = upload(server, b"hello")
    assert (package / "bytes" / upload_id).read_bytes() == b"hello"
    assert (package / "records" / "all.sqlite3").exists()


def test_serve_takes_components_of_other_packages(tmp_path: Path, package: Path) -> None:
    options = {"storage_plugin": "elsewhere", "env": {"PYTHONPATH": str(package)}}
    with serving(tmp_path / "uploads", **options) as server:
        location = create(server.url, 5, body=b"12345")
    assert (package / "bytes" / location.rpartition("/")[2]).read_bytes() == b"12345"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("elsewere", "there is no storage 'elsewere'.*did you mean elsewhere"),
        ("broken", "the storage 'broken' cannot be made: RuntimeError: no such disk at all$"),
        ("incomplete", r"the storage 'incomplete' \(object\) is no storage: it lacks .*writer"),
        ("constant", "is not a function of the settings"),
        ("missing", "cannot be imported: AttributeError"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named_in_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        TusServer(upload_dir=tmp_path, storage_plugin=name)


def test_a_given_component_without_its_contract_is_refused(tmp_path: Path) -> None:
    wrong: Any = object()
    with pytest.raises(InvalidSettings, match=r"the given component \(object\) is no state store: it lacks"):
        TusServer(upload_dir=tmp_path, state=wrong)


def test_a_class_in_place_of_a_component_is_refused(tmp_path: Path) -> None:
    wrong: Any = DiskStorage
    with pytest.raises(InvalidSettings, match=r"the given component \(DiskStorage\) is a class"):
        TusServer(upload_dir=tmp_path, storage=wrong)


class ClosesWithoutTimeout(DiskStorage):
    """A storage with a method that does not take the arguments of its contract."""

    async def close(self) -> bool:  # type: ignore[override]
        return True


class LocatesNothing(DiskStorage):
    """A storage with a value in place of a method."""

    locate = None  # type: ignore[assignment]


class WritesForOldServers(DiskStorage):
    """A storage with a method that lacks an argument by name."""

    def writer(self, upload: Any, token: int, observer: Any = None) -> Any:  # type: ignore[override]
        return super().writer(upload, token, observer)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ClosesWithoutTimeout, "close has to take (timeout)"),
        (LocatesNothing, "locate has to take (upload)"),
        (WritesForOldServers, "writer has to take (upload, token, observer, *, unreleased_predecessors)"),
    ],
)
def test_a_component_whose_method_takes_other_arguments_is_refused(
    tmp_path: Path, kind: type[DiskStorage], reason: str
) -> None:
    with pytest.raises(InvalidSettings) as raised:
        TusServer(upload_dir=tmp_path, storage=kind(tmp_path / "bytes"))
    assert str(raised.value) == f"the given component ({kind.__name__}) is no storage: {reason}"


class Unmounted(MemoryStorage):
    """A storage with a mistake in `open`."""

    async def open(self) -> None:
        raise KeyError("tape")


class Unwritten(MemoryState):
    """A state store whose `open` is no async function."""

    def open(self) -> None:  # type: ignore[override]
        pass


class Unplugged(MemoryLocker):
    """A locker with a mistake in `open`, and a message of two lines."""

    async def open(self) -> None:
        raise RuntimeError("no plug\nat all")


class Unanswered(MemoryState):
    """A state store that is away after its `open`, when storage and records are compared."""

    async def read_metadata(self, name: str) -> str | None:
        if name == IDENTITY:
            raise StateUnavailable("it does not answer")
        return await super().read_metadata(name)


@pytest.mark.parametrize(
    ("components", "error", "message"),
    [
        ({"state": Unanswered()}, StateUnavailable, "Unanswered of tests cannot be used: it does not answer"),
        ({"storage": Unmounted()}, StorageUnavailable, "Unmounted of tests cannot be used: KeyError: 'tape'"),
        ({"state": Unwritten()}, StateUnavailable, "Unwritten of tests cannot be used: TypeError: object NoneType"),
        ({"locker": Unplugged()}, StateUnavailable, "Unplugged of tests cannot be used: RuntimeError: no plug at all"),
    ],
)
async def test_an_unexpected_error_of_a_component_at_the_start_names_it_in_one_sentence(
    tmp_path: Path, components: dict[str, Any], error: type[Exception], message: str
) -> None:
    tus = TusServer(upload_dir=tmp_path, **components)
    with pytest.raises(error) as raised:
        await tus.startup()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


class WriterWithoutDiscard:
    """A writer that lacks a method, which else only an append would show."""

    async def write(self, buffers: Any) -> None: ...

    async def flush(self, buffers: Any = (), *, sync: bool) -> None: ...

    async def flush_available(self, buffers: Any, *, sync: bool) -> None: ...

    async def finish(self, buffers: Any = (), *, sync: bool) -> bool:
        return True

    def snapshot(self) -> Any: ...

    def committed(self, snapshot: Any) -> None: ...

    async def close(self) -> None: ...


class WriterWithOtherFlush(WriterWithoutDiscard):
    """A writer with a method that lacks an argument by name."""

    async def flush(self, buffers: Any = ()) -> None: ...  # type: ignore[override]

    async def discard(self, offset: int) -> None: ...


@pytest.mark.parametrize(
    ("writer", "reason"),
    [
        (WriterWithoutDiscard, "it lacks discard"),
        (WriterWithOtherFlush, "flush has to take (buffers, *, sync)"),
    ],
)
async def test_a_storage_whose_writer_breaks_its_contract_is_refused_at_the_start(
    tmp_path: Path, writer: type, reason: str
) -> None:
    class Storage(MemoryStorage):
        def writer(self, upload: Any, token: int, observer: Any = None, **_: Any) -> Any:
            return writer()

    tus = TusServer(upload_dir=tmp_path, storage=Storage())
    with pytest.raises(StorageUnavailable) as raised:
        await tus.startup()
    assert (
        str(raised.value) == f"Storage of tests cannot be used: its writer ({writer.__name__}) is no writer: {reason}"
    )


async def test_a_writer_of_a_storage_in_threads_has_the_methods_for_it_even_if_a_completion_needs_more(
    tmp_path: Path,
) -> None:
    class CompleteWriter(WriterWithoutDiscard):
        async def discard(self, offset: int) -> None: ...

    class Storage(MemoryStorage):
        stores_in_threads = False

        def writer(self, upload: Any, token: int, observer: Any = None, **_: Any) -> Any:
            return CompleteWriter()

        def run(self, work: Any, *, brief: bool = False) -> Any: ...

        def run_external(self, submit: Any, step: Any) -> Any: ...

        def save_completion_record_in_thread(self, upload: Any) -> None: ...

    tus = TusServer(upload_dir=tmp_path, storage=Storage())
    with pytest.raises(StorageUnavailable, match="is no writer: it lacks finish_in_thread, can_receive, receive"):
        await tus.startup()


class NeverClosed(MemoryStorage):
    """A storage that does not keep to the timeout of `close`."""

    async def close(self, timeout: float | None = None) -> bool:
        await asyncio.Event().wait()
        return True


async def test_closing_ends_although_a_storage_does_not_keep_to_its_timeout(tmp_path: Path) -> None:
    tus = TusServer(upload_dir=tmp_path, storage=NeverClosed(), state=MemoryState(), locker=MemoryLocker())
    await open_service(tus.service, tus.settings)
    async with asyncio.timeout(30):
        assert not await close_service(tus.service, timeout=0.1)


class FailsToClose(MemoryState):
    """A state store with a mistake in `close`."""

    async def close(self) -> None:
        raise RuntimeError("no tape\nto rewind")


async def test_an_error_of_a_component_at_its_end_is_one_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locker = MemoryLocker()
    tus = TusServer(upload_dir=tmp_path, storage=MemoryStorage(), state=FailsToClose(), locker=locker)
    await tus.startup()
    await tus.shutdown()
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "FailsToClose could not be closed: RuntimeError: no tape to rewind"
    assert not record.exc_info


class Passing:
    """A storage that passes every call on to another one."""

    def __init__(self, storage: DiskStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def test_a_given_component_may_pass_calls_on_to_another_one(tmp_path: Path) -> None:
    passing: Any = Passing(DiskStorage(tmp_path / "bytes"))
    upload_id = upload(TusServer(upload_dir=tmp_path / "records", storage=passing), b"through")
    assert (tmp_path / "bytes" / upload_id).read_bytes() == b"through"


def test_a_plugin_excludes_what_it_takes_the_place_of(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="storage_plugin takes the place of s3_bucket"):
        TusServer(upload_dir=tmp_path, storage_plugin="x", s3_bucket="y")


@pytest.mark.parametrize(
    ("components", "overrides", "message"),
    [
        ({"storage": MemoryStorage()}, {"s3_bucket": "b"}, "storage takes the place of s3_bucket"),
        ({"storage": MemoryStorage()}, {"storage_plugin": "x"}, "storage takes the place of storage_plugin"),
        ({"state": MemoryState()}, {"state_plugin": "x"}, "state takes the place of state_plugin"),
        ({"locker": MemoryLocker()}, {"locker_plugin": "x"}, "locker takes the place of locker_plugin"),
        (
            {"state": MemoryState(), "locker": MemoryLocker()},
            {"redis_url": "redis://localhost"},
            "state with locker takes the place of redis_url",
        ),
    ],
)
def test_a_given_component_excludes_the_settings_that_choose_one(
    tmp_path: Path, components: dict[str, Any], overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSettings, match=message):
        TusServer(upload_dir=tmp_path, **components, **overrides)


def test_settings_and_single_settings_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="give upload_dir within the settings"):
        TusServer(Settings(), upload_dir=tmp_path)


@pytest.mark.parametrize("given", ["uploads", {"upload_dir": "uploads"}])
def test_settings_that_are_something_else_are_refused(given: Any) -> None:
    with pytest.raises(InvalidSettings, match="is no Settings object: give single settings by name, as upload_dir="):
        TusServer(given)


@pytest.mark.parametrize("kind", ["UploadFinished", int, print])
def test_subscribing_to_something_else_than_an_event_is_refused(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(TypeError, match="is no class of events such as UploadFinished"):
        TusServer(upload_dir=tmp_path).on(kind)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("upload_dir", None, "a directory"),
        ("upload_dir", 5, "a directory"),
        ("expires_after", timedelta(days=1), "a time such as 30s, 15m, 24h or 7d"),
        ("expires_after", None, "a time such as 30s, 15m, 24h or 7d"),
    ],
)
def test_a_setting_of_another_type_is_refused_with_what_is_accepted(name: str, value: Any, accepted: str) -> None:
    overrides: Any = {name: value}
    with pytest.raises(InvalidSettings) as raised:
        TusServer(**overrides)
    assert str(raised.value) == f"{name} must be {accepted}, not {value!r}"


def test_typed_keyword_arguments_are_the_settings() -> None:
    assert list(typing.get_type_hints(SettingsOverrides)) == list(FIELDS)
