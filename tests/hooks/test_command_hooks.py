"""Executables as hooks: a directory that is away decides nothing, and clients cannot start any number of processes."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.services import running_service
from tests.support.timing import scaled, wait_until
from tusd_py.contracts.hooks import NO_OPINION, HookCall, HookType
from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.errors import HookUnavailable
from tusd_py.core.event_document import document_of
from tusd_py.core.outbox import EventType, OutboxEvent
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.hooks.command_hooks import MAX_PROCESSES, CommandHooks, CommandHookSink, Commands
from tusd_py.settings import from_arguments
from tusd_py.sinks import build_hooks, build_relay

REJECTS = "#!/bin/sh\necho '{\"RejectUpload\": true}'\n"
CALL = HookCall(HookType.PRE_CREATE, Upload("", 0.0, length=1), RequestContext("POST", "/files", {}))
EVENT = OutboxEvent(
    "e", "a", EventType.FINISHED, 1, 0.0, document_of(Upload("a", 0.0, length=1), {}, None), ("hooks-dir",)
)
BROKEN = ["missing directory", "missing directory, and a relative path", "broken link", "missing interpreter"]


def executable(directory: Path, name: str, script: str) -> Path:
    path = directory / name
    path.write_text(script)
    path.chmod(0o755)
    return path


def commands_in(directory: Path) -> Commands:
    return Commands(directory, scaled(60))


def break_hooks(directory: Path, how: str) -> None:
    if how.startswith("missing directory"):
        shutil.rmtree(directory)
        return
    for name in ("pre-create", "post-finish"):
        (directory / name).unlink()
        if how == "broken link":
            (directory / name).symlink_to(directory / "releases" / name)
        else:
            executable(directory, name, "#!/nowhere/interpreter\n")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "hooks"
    directory.mkdir()
    executable(directory, "pre-create", REJECTS)
    executable(directory, "post-finish", "#!/bin/sh\n")
    return directory


@pytest.mark.parametrize("how", BROKEN)
async def test_a_hook_that_is_away_decides_nothing(directory: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory.parent)
    place = Path("hooks") if how.endswith("relative path") else directory
    hooks = CommandHooks(commands_in(place), frozenset({HookType.PRE_CREATE}))
    assert (await hooks.ask(CALL)).reject
    break_hooks(directory, how)

    with pytest.raises(HookUnavailable):
        await hooks.ask(CALL)


@pytest.mark.parametrize("how", BROKEN)
async def test_a_hook_that_is_away_takes_no_event(directory: Path, how: str) -> None:
    sink = CommandHookSink("hooks-dir", commands_in(directory))
    await sink.send(EVENT)
    break_hooks(directory, how)

    with pytest.raises(DeliveryError):
        await sink.send(EVENT)


@pytest.mark.parametrize(
    "hooks", [{"hooks_dir_timeout": "5m"}, {"hooks_http": "http://127.0.0.1:9/hooks", "hooks_http_timeout": "5m"}]
)
async def test_an_event_has_the_time_that_its_hook_is_given(directory: Path, hooks: dict[str, Any]) -> None:
    settings = from_arguments({"upload_dir": directory.parent / "uploads", "hooks_dir": directory, **hooks})
    async with running_service({"upload_dir": settings.upload_dir}) as service:
        relay = build_relay(settings, service, build_hooks(settings))

    assert relay is not None
    assert relay.options.send_timeout > 300


async def test_a_missing_executable_has_no_opinion(directory: Path) -> None:
    (directory / "pre-create").unlink()
    hooks = CommandHooks(commands_in(directory), frozenset({HookType.PRE_CREATE}))

    assert await hooks.ask(CALL) == NO_OPINION


async def test_many_questions_start_a_bounded_number_of_processes(directory: Path, tmp_path: Path) -> None:
    started, gate = tmp_path / "started", tmp_path / "gate"
    started.mkdir()
    executable(directory, "pre-create", f"#!/bin/sh\n: > {started}/$$\nwhile [ ! -e {gate} ]; do sleep 0.05; done\n")
    hooks = CommandHooks(commands_in(directory), frozenset({HookType.PRE_CREATE}))
    asking = [asyncio.create_task(hooks.ask(CALL)) for _ in range(MAX_PROCESSES + 8)]
    try:
        await asyncio.to_thread(
            wait_until, lambda: len(list(started.iterdir())) >= MAX_PROCESSES, "the first processes run", seconds=60
        )
        assert len(list(started.iterdir())) == MAX_PROCESSES
    finally:
        gate.touch()
        answers = await asyncio.gather(*asking)
    assert len(list(started.iterdir())) == len(asking)
    assert answers == [NO_OPINION] * len(asking)
