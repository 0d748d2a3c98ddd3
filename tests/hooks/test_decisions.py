"""Hooks that decide, as clients see them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.support.timing import wait_until
from tusd_py import InvalidSettings, TusServer
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.contracts.hooks import HookAnswer, HookCall, HookResponse, UploadChanges
from tusd_py.core.errors import StateFull
from tusd_py.core.upload import Status, Upload
from tusd_py.hooks.held_loop import LONGEST_STEP
from tusd_py.hooks.python_hooks import PythonHooks

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}
REJECTED = HookAnswer(HookResponse(422, {"X-Reason": "size"}, "no such project"), reject=True)


@contextmanager
def serving(path: Path, hooks: object, **options: Any) -> Iterator[TestClient]:
    tus = TusServer(upload_dir=path / "uploads", hooks=hooks, sweep_interval=0, progress_hooks_interval=0, **options)
    app = Starlette(routes=[tus.route("/files")], lifespan=tus.lifespan)
    app.state.tus = tus
    with TestClient(app) as client:
        yield client


def create(client: TestClient, length: int = 4, headers: Mapping[str, str] | None = None) -> Any:
    return client.post("/files", headers={**TUS, "Upload-Length": str(length), **(headers or {})})


def patch(client: TestClient, url: str, data: bytes = b"abcd", offset: int = 0) -> Any:
    return client.patch(url, headers={**BYTES, "Upload-Offset": str(offset)}, content=data)


def head(client: TestClient, url: str) -> Any:
    return client.head(url, headers=TUS)


class Answers:
    """Hooks with answers that the test sets; an exception is raised."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.calls: list[HookCall] = []

    async def _answer(self, call: HookCall) -> HookAnswer | None:
        self.calls.append(call)
        answer = self.answers.get(call.type.replace("-", "_"))
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def types(self) -> list[str]:
        return [call.type for call in self.calls]


class Creating(Answers):
    async def pre_create(self, call: HookCall) -> HookAnswer | None:
        return await self._answer(call)


class Finishing(Answers):
    async def pre_finish(self, call: HookCall) -> HookAnswer | None:
        return await self._answer(call)


class Terminating(Answers):
    async def pre_terminate(self, call: HookCall) -> HookAnswer | None:
        return await self._answer(call)


class Receiving(Answers):
    async def post_receive(self, call: HookCall) -> HookAnswer | None:
        return await self._answer(call)


class Told(Answers):
    async def post_create(self, call: HookCall) -> None:
        await self._answer(call)

    async def post_finish(self, call: HookCall) -> None:
        assert call.read is not None
        self.bytes = b"".join([bytes(piece) async for piece in call.read(0, call.upload.length or 0)])
        await self._answer(call)

    async def post_terminate(self, call: HookCall) -> None:
        await self._answer(call)


def test_a_rejected_creation_is_answered_by_the_hook_and_creates_nothing(tmp_path: Path) -> None:
    hooks = Creating(pre_create=REJECTED)
    with serving(tmp_path, hooks) as client:
        response = create(client, headers={"Content-Type": "application/offset+octet-stream"})

    assert (response.status_code, response.text, response.headers["X-Reason"]) == (422, "no such project", "size")
    assert "location" not in response.headers
    assert hooks.calls[0].upload.id == ""
    assert [path for path in (tmp_path / "uploads").iterdir() if not path.name.startswith(".")] == []


def test_a_rejection_without_a_status_is_400(tmp_path: Path) -> None:
    with serving(tmp_path, Creating(pre_create=HookAnswer(reject=True))) as client:
        response = create(client)

    assert response.status_code == 400
    assert response.text.startswith("ERR_UPLOAD_REJECTED")


FAULTY_ANSWERS = [
    RuntimeError("secret"),
    asyncio.CancelledError("secret"),
    TimeoutError("secret"),
    "text",
    HookAnswer(HookResponse(status="200")),  # type: ignore[arg-type]
    HookAnswer(HookResponse(body=b"secret")),  # type: ignore[arg-type]
    HookAnswer(HookResponse(headers=["secret"])),  # type: ignore[arg-type]
    HookAnswer(HookResponse(headers={"X-A": 1})),  # type: ignore[dict-item]
    HookAnswer(changes=UploadChanges(id="../x")),
    HookAnswer(changes=UploadChanges(id=5)),  # type: ignore[arg-type]
    HookAnswer(changes=UploadChanges(owner=5)),  # type: ignore[arg-type]
    HookAnswer(changes=UploadChanges(owner="a\nb")),
    HookAnswer(changes=UploadChanges(owner="")),
    HookAnswer(changes=UploadChanges(owner=" ann")),
    HookAnswer(changes=UploadChanges(owner="a" * 256)),
    HookAnswer(changes=UploadChanges(metadata={"a": 1})),  # type: ignore[dict-item]
    HookAnswer(changes=UploadChanges(max_size=1.5)),  # type: ignore[arg-type]
    HookAnswer(changes=UploadChanges(expires_at=float("nan"))),
    HookAnswer(changes=UploadChanges(path="../elsewhere")),
]


@pytest.mark.parametrize("answer", FAULTY_ANSWERS, ids=repr)
def test_a_creation_is_503_without_a_valid_answer(tmp_path: Path, answer: Any) -> None:
    with serving(tmp_path, Creating(pre_create=answer)) as client:
        response = create(client)

    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert "secret" not in response.text


def test_an_accepted_creation_has_the_changes_and_the_answer_of_the_hook(tmp_path: Path) -> None:
    changes = UploadChanges(id="my-id", metadata={"a": "b", "empty": ""}, owner="ann")
    answer = HookAnswer(HookResponse(202, {"X-A": "b", "Location": "/elsewhere"}), changes=changes)
    hooks = Creating(pre_create=answer)
    with serving(tmp_path, hooks) as client:
        response = create(client, headers={"Upload-Metadata": "filename eA=="})
        url = response.headers["Location"]
        metadata = head(client, url).headers["Upload-Metadata"]
        again = create(client)
        portal = client.portal
        assert portal is not None
        owner = portal.call(client.app.state.tus.uploads.get, "my-id").owner  # type: ignore[attr-defined]

    assert (response.status_code, response.headers["X-A"]) == (202, "b")
    assert url.endswith("/files/my-id")
    assert metadata == "a Yg==,empty"
    assert owner == "ann"
    assert hooks.calls[0].upload.decoded_metadata == {"filename": "x"}
    assert again.status_code == 409


def test_metadata_of_a_hook_are_bounded_as_those_of_a_client(tmp_path: Path) -> None:
    hooks = Creating()
    with serving(tmp_path, hooks) as client:
        statuses = []
        for metadata in ({"a": "b" * (16 << 10)}, {f"key{number}": "" for number in range(65)}, {"a": "b" * 1000}):
            hooks.answers["pre_create"] = HookAnswer(changes=UploadChanges(metadata=metadata))
            statuses.append(create(client).status_code)

    assert statuses == [503, 503, 201]


@pytest.mark.parametrize("after", [0, 3600])
@pytest.mark.parametrize("concatenation", [{}, {"Upload-Concat": "partial"}])
def test_appends_do_not_change_an_expiry_of_the_hook(
    tmp_path: Path, after: int, concatenation: Mapping[str, str]
) -> None:
    given = time.time() + 100
    hooks = Creating(pre_create=HookAnswer(changes=UploadChanges(expires_at=given)))
    with serving(tmp_path, hooks, expires_after=after) as client:
        url = create(client, 300_004, concatenation).headers["Location"]
        portal, tus = client.portal, client.app.state.tus  # type: ignore[attr-defined]
        assert portal is not None
        expiries = []
        for offset, data in ((0, b"ab"), (2, bytes(300_000)), (300_002, b"cd")):
            expiries.append(portal.call(tus.uploads.get, url.rpartition("/")[2]).expires_at)
            assert patch(client, url, data, offset).status_code == 204
        complete = portal.call(tus.uploads.get, url.rpartition("/")[2])

    assert expiries == [given] * 3
    assert complete.expires_at == (given if concatenation else None)


def test_an_expiry_of_the_hook_ends_an_upload_that_has_begun(tmp_path: Path) -> None:
    hooks = Creating(pre_create=HookAnswer(changes=UploadChanges(expires_at=time.time() + 1)))
    with serving(tmp_path, hooks, expires_after=3600) as client:
        url = create(client).headers["Location"]
        patch(client, url, b"ab")
        wait_until(lambda: head(client, url).status_code == 404)


def test_a_hook_that_holds_the_event_loop_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Slow:
        async def pre_create(self, call: HookCall) -> None:
            await asyncio.sleep(0)
            time.sleep(LONGEST_STEP * 2)  # noqa: ASYNC251 - the mistake that is to be found

    with serving(tmp_path, Slow()) as client:
        assert create(client).status_code == 201

    assert "hook pre-create held the event loop for" in caplog.text


def test_a_hook_that_holds_the_event_loop_now_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = re.compile(r"hook pre-create has held the event loop for [0-9]+\.[0-9] s")

    class Blocking:
        async def pre_create(self, call: HookCall) -> None:
            wait_until(lambda: line.search(caplog.text) is not None, seconds=60)

    with serving(tmp_path, Blocking()) as client:
        assert create(client).status_code == 201


def test_a_hook_that_goes_on_after_its_time_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = re.compile(r"hook pre-create has not ended [0-9]+\.[0-9] s after its call although it was cancelled")

    class Stubborn:
        async def pre_create(self, call: HookCall) -> None:
            deadline = time.monotonic() + 60
            while not line.search(caplog.text):
                assert time.monotonic() < deadline
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.01)

    monkeypatch.setattr(PythonHooks.__init__, "__defaults__", (0.05,))
    monkeypatch.setattr("tusd_py.hooks.held_loop.LATE_AFTER", 0.05)
    with serving(tmp_path, Stubborn()) as client:
        assert create(client).status_code == 201


@pytest.mark.parametrize("how", ["head", "patch", "sweep"])
def test_a_completed_upload_is_not_decided_about_again_by_an_older_record(tmp_path: Path, how: str) -> None:
    hooks = Finishing()
    with serving(tmp_path, hooks) as client:
        url = create(client).headers["Location"]
        assert patch(client, url).status_code == 204
        service = client.app.state.tus.service  # type: ignore[attr-defined]

        async def go_back() -> Upload:
            complete = await service.get(url.rpartition("/")[2])
            older = replace(complete, status=Status.FINISHING, completed_at=None)
            stored: Upload = await service.state.update(complete, older, complete.token)
            return stored

        older = client.portal.call(go_back)  # type: ignore[union-attr]
        hooks.answers["pre_finish"] = REJECTED
        if how == "head":
            head(client, url)
        elif how == "patch":
            patch(client, url, b"", 4)
        else:
            client.portal.call(service.sweep, older)  # type: ignore[union-attr]
        found = head(client, url)
        content = client.get(url).content

    assert (found.status_code, found.headers.get("Upload-Offset")) == (200, "4")
    assert content == b"abcd"


@pytest.mark.parametrize("answer", [None, REJECTED])
def test_a_complete_partial_upload_is_decided_about_again_by_an_older_record(
    tmp_path: Path, answer: HookAnswer | None
) -> None:
    hooks = Finishing()
    with serving(tmp_path, hooks) as client:
        url = create(client, 4, {"Upload-Concat": "partial"}).headers["Location"]
        assert patch(client, url).status_code == 204
        service = client.app.state.tus.service  # type: ignore[attr-defined]

        async def go_back() -> None:
            complete = await service.get(url.rpartition("/")[2])
            older = replace(complete, status=Status.FINISHING, completed_at=None)
            await service.state.update(complete, older, complete.token)

        client.portal.call(go_back)  # type: ignore[union-attr]
        hooks.answers["pre_finish"] = answer
        head(client, url)
        found = head(client, url)

    assert hooks.types() == ["pre-finish", "pre-finish"]
    assert found.status_code == (200 if answer is None else 404)


@pytest.mark.parametrize("is_final", [False, True])
def test_a_place_is_given_up_when_there_is_no_room_for_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_final: bool
) -> None:
    hooks = Creating()
    with serving(tmp_path, hooks) as client:
        headers = {}
        if is_final:
            part = create(client, 0, {"Upload-Concat": "partial"})
            headers = {"Upload-Concat": f"final;{part.headers['Location']}"}
        hooks.answers["pre_create"] = HookAnswer(changes=UploadChanges(path="ann/a.txt"))

        def ask() -> Any:
            return client.post("/files", headers={**TUS, **(headers or {"Upload-Length": "4"})})

        async def fail(new: Upload) -> None:
            raise StateFull

        with monkeypatch.context() as patched:
            patched.setattr(SQLiteState, "create", staticmethod(fail))
            refused = ask()
        again = ask()

    assert refused.status_code == 507
    assert again.status_code == 201


def test_an_unavailable_completion_keeps_the_bytes_until_the_hook_answers(tmp_path: Path) -> None:
    hooks = Finishing(pre_finish=RuntimeError())
    with serving(tmp_path, hooks) as client:
        response = client.post("/files", headers={**BYTES, "Upload-Length": "4"}, content=b"abcd")
        url = response.headers["Location"]
        while_away = head(client, url)
        by_patch = patch(client, url, b"", 4)
        download = client.get(url)
        hooks.answers = {}
        afterwards = head(client, url)
        content = client.get(url).content

    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.text.startswith("ERR_HOOK_UNAVAILABLE")
    assert while_away.status_code == 423
    assert by_patch.status_code == 503
    assert download.status_code == 404
    assert (afterwards.status_code, afterwards.headers["Upload-Offset"]) == (200, "4")
    assert content == b"abcd"


def test_an_unavailable_completion_of_an_empty_upload_tells_its_location(tmp_path: Path) -> None:
    with serving(tmp_path, Finishing(pre_finish=RuntimeError())) as client:
        response = create(client, 0)

    assert response.status_code == 503
    assert response.headers["Location"]


@pytest.mark.parametrize("size", [4, 200_000])
def test_a_rejected_completion_removes_the_upload_and_is_answered_by_the_hook(tmp_path: Path, size: int) -> None:
    with serving(tmp_path, Finishing(pre_finish=REJECTED)) as client:
        url = create(client, size).headers["Location"]
        response = patch(client, url, bytes(size))
        gone = head(client, url)

    assert (response.status_code, response.text) == (422, "no such project")
    assert gone.status_code == 404
    assert [path for path in (tmp_path / "uploads").iterdir() if not path.name.startswith(".")] == []


def test_the_answer_of_pre_finish_is_that_of_the_last_patch(tmp_path: Path) -> None:
    hooks = Finishing(pre_finish=HookAnswer(HookResponse(200, {"X-A": "b", "Upload-Offset": "9"}, "done")))
    with serving(tmp_path, hooks) as client:
        url = create(client).headers["Location"]
        first = patch(client, url, b"ab")
        last = patch(client, url, b"cd", 2)

    assert first.status_code == 204
    assert (last.status_code, last.text, last.headers["X-A"], last.headers["Upload-Offset"]) == (200, "done", "b", "4")
    assert [call.storage["type"] for call in hooks.calls] == ["filestore"]


def test_a_rejected_termination_leaves_the_upload(tmp_path: Path) -> None:
    hooks = Terminating(pre_terminate=HookAnswer(reject=True))
    with serving(tmp_path, hooks) as client:
        url = create(client).headers["Location"]
        refused = client.delete(url, headers=TUS)
        still_there = head(client, url)
        hooks.answers = {}
        accepted = client.delete(url, headers=TUS)

    assert (refused.status_code, refused.text[:30]) == (400, "ERR_UPLOAD_TERMINATION_REJECTE")
    assert still_there.status_code == 200
    assert accepted.status_code == 204


def test_a_stopped_upload_is_removed(tmp_path: Path) -> None:
    hooks = Receiving(post_receive=HookAnswer(stop=True))
    with serving(tmp_path, hooks) as client:
        url = create(client).headers["Location"]
        patch(client, url, b"ab")
        wait_until(lambda: head(client, url).status_code == 404)

    assert hooks.calls[0].upload.offset == 2


def test_a_repeated_final_upload_is_the_same_one_and_not_decided_about_again(tmp_path: Path) -> None:
    changes = UploadChanges(metadata={"a": "b"}, owner="ann")
    hooks = Creating()
    with serving(tmp_path, hooks) as client:
        part = create(client, headers={"Upload-Concat": "partial"}).headers["Location"]
        patch(client, part)
        hooks.calls.clear()
        hooks.answers = {"pre_create": HookAnswer(changes=changes)}
        concat = {**TUS, "Upload-Concat": f"final;{part}"}
        first, second = client.post("/files", headers=concat), client.post("/files", headers=concat)
        portal = client.portal
        assert portal is not None
        upload_id = first.headers["Location"].rpartition("/")[2]
        final = portal.call(client.app.state.tus.uploads.get, upload_id)  # type: ignore[attr-defined]

    assert first.headers["Location"] == second.headers["Location"]
    assert (final.owner, final.decoded_metadata) == ("ann", {"a": "b"})
    assert hooks.types() == ["pre-create"]


def test_a_final_upload_takes_no_id_of_another_upload(tmp_path: Path) -> None:
    hooks = Creating()
    with serving(tmp_path, hooks) as client:
        part = create(client, headers={"Upload-Concat": "partial"}).headers["Location"]
        patch(client, part)
        other = create(client).headers["Location"]
        hooks.answers = {"pre_create": HookAnswer(changes=UploadChanges(id=other.rpartition("/")[2]))}
        refused = client.post("/files", headers={**TUS, "Upload-Concat": f"final;{part}"})
        patched = patch(client, other)
        content = client.get(other).content

    assert refused.status_code == 409
    assert patched.status_code == 204
    assert content == b"abcd"


def test_a_final_upload_has_the_size_limit_of_the_hook(tmp_path: Path) -> None:
    hooks = Creating()
    with serving(tmp_path, hooks) as client:
        part = create(client, headers={"Upload-Concat": "partial"}).headers["Location"]
        patch(client, part)
        hooks.answers = {"pre_create": HookAnswer(changes=UploadChanges(max_size=7))}
        refused = client.post("/files", headers={**TUS, "Upload-Concat": f"final;{part} {part}"})

    assert refused.status_code == 413


def test_a_final_upload_that_was_not_created_has_no_location(tmp_path: Path) -> None:
    hooks = Creating()
    with serving(tmp_path, hooks) as client:
        part = create(client, headers={"Upload-Concat": "partial"}).headers["Location"]
        patch(client, part)
        hooks.answers = {"pre_create": HookAnswer(changes=UploadChanges(path="../elsewhere"))}
        refused = client.post("/files", headers={**TUS, "Upload-Concat": f"final;{part}"})

    assert refused.status_code == 503
    assert "Location" not in refused.headers


def test_an_unavailable_completion_of_a_final_upload_tells_its_location(tmp_path: Path) -> None:
    hooks = Finishing()
    with serving(tmp_path, hooks) as client:
        part = create(client, headers={"Upload-Concat": "partial"}).headers["Location"]
        patch(client, part)
        hooks.answers = {"pre_finish": RuntimeError()}
        concat = {**TUS, "Upload-Concat": f"final;{part}"}
        unavailable = client.post("/files", headers=concat)
        hooks.answers = {}
        repeated = client.post("/files", headers=concat)
        content = client.get(repeated.headers["Location"]).content

    assert unavailable.status_code == 503
    assert unavailable.headers["Location"] == repeated.headers["Location"]
    assert content == b"abcd"


def test_a_final_upload_is_decided_about_twice(tmp_path: Path) -> None:
    class Both(Creating):
        async def pre_finish(self, call: HookCall) -> HookAnswer | None:
            return await self._answer(call)

    hooks = Both()
    with serving(tmp_path, hooks) as client:
        parts = []
        for _ in range(2):
            parts.append(create(client, headers={"Upload-Concat": "partial"}).headers["Location"])
            patch(client, parts[-1])
        hooks.calls.clear()
        hooks.answers = {"pre_finish": REJECTED}
        concat = {**TUS, "Upload-Concat": f"final;{parts[0]} {parts[1]}"}
        rejected = client.post("/files", headers=concat)
        hooks.answers = {"pre_create": HookAnswer(changes=UploadChanges(id="whole"))}
        final = client.post("/files", headers=concat)
        content = client.get("/files/whole").content

    assert rejected.status_code == 422
    assert final.status_code == 201
    assert content == b"abcdabcd"
    assert [call.upload.length for call in hooks.calls] == [8, 8, 8, 8]
    assert hooks.types() == ["pre-create", "pre-finish", "pre-create", "pre-finish"]


def test_post_hooks_are_told_of_stored_events_in_order(tmp_path: Path) -> None:
    hooks = Told()
    with serving(tmp_path, hooks) as client:
        url = create(client).headers["Location"]
        patch(client, url)
        wait_until(lambda: len(hooks.calls) == 2)
        client.delete(url, headers=TUS)
        wait_until(lambda: len(hooks.calls) == 3)

    assert hooks.types() == ["post-create", "post-finish", "post-terminate"]
    assert hooks.bytes == b"abcd"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"hooks": "tests.hooks.test_decisions:nothing"}, "cannot be imported"),
        ({"hooks": "tests.hooks.no_module:hooks"}, "cannot be imported"),
        ({"hooks": "tests.hooks.test_decisions:Failing"}, "cannot be imported: RuntimeError: at its start"),
        ({"hooks": "tests.hooks.test_decisions:TUS"}, "no hook such as pre_create"),
        ({"hooks_dir": "/nowhere"}, "there is no directory /nowhere"),
        ({"hooks_http": ["https://a.example/h", "https://u:p@a.example/h"]}, "is there twice"),
        ({"hooks_http": ["ftp://a.example/h"]}, "URLs such as"),
        ({"hooks_http": ["https://a.example/h#x"]}, "URLs such as"),
        ({"hooks_enabled_events": ["pre-crate"]}, "some of pre-create"),
    ],
)
def test_hooks_that_cannot_be_used_are_refused(tmp_path: Path, setting: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidSettings, match=reason):
        TusServer(upload_dir=tmp_path, **setting)


class Failing:
    def __init__(self) -> None:
        raise RuntimeError("at its start")


def test_an_object_with_a_plain_function_is_refused(tmp_path: Path) -> None:
    class Plain:
        def pre_create(self, call: HookCall) -> None: ...

    with pytest.raises(InvalidSettings, match="pre_create of Plain is not an async method"):
        TusServer(upload_dir=tmp_path, hooks=Plain())


def test_a_hook_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging:
        async def pre_create(self, call: HookCall) -> None:
            await asyncio.sleep(3600)

    monkeypatch.setattr(PythonHooks.__init__, "__defaults__", (0.05,))
    with serving(tmp_path, Hanging()) as client:
        assert create(client).status_code == 503
