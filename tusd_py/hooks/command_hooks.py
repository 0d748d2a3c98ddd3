"""Hooks that are executables in a folder, in the form of tusd: JSON on stdin and on stdout."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path

from tusd_py.contracts.hooks import NO_OPINION, HookAnswer, HookCall, HookType
from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.errors import HookUnavailable
from tusd_py.core.event_document import parse_document
from tusd_py.core.outbox import OutboxEvent
from tusd_py.hooks.event_names import hook_of
from tusd_py.hooks.payload import MAX_ANSWER, InvalidAnswer, notification, parse_answer, question

logger = logging.getLogger("tusd_py.hooks")

MAX_PROCESSES = 32  # executables that are asked at the same time; clients wait beyond


class CommandFailure(Exception):
    """An executable gave no answer; the text says why, for the operator."""


class Commands:
    """The executables of a folder, each named as its hook. A missing one has no opinion."""

    def __init__(self, directory: Path, timeout: float) -> None:
        """Kill an executable, with the processes that it started, after `timeout` seconds."""
        self._directory = directory
        self._timeout = timeout

    async def run(self, hook: HookType, upload_id: str, size: int, offset: int, body: bytes) -> bytes | None:
        """Run the executable of a hook; return its output, or None if there is none.

        Raises:
            CommandFailure: it cannot be run, fails, takes too long, or writes too much.
        """
        environment = {**os.environ, "TUS_ID": upload_id, "TUS_SIZE": str(size), "TUS_OFFSET": str(offset)}
        try:
            process = await asyncio.create_subprocess_exec(
                str((self._directory / hook).absolute()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=self._directory,
                env=environment,
                start_new_session=True,
            )
        except FileNotFoundError:
            # Only the directory can tell that the application has no such hook: it may be on a disk that is away.
            if not self._directory.is_dir():
                raise CommandFailure("its directory is not there") from None
            if (self._directory / hook).exists() or (self._directory / hook).is_symlink():
                raise CommandFailure("its interpreter, or the file that it links to, is not there") from None
            return None
        except OSError as error:
            raise CommandFailure(error.strerror or str(error)) from error
        try:
            async with asyncio.timeout(self._timeout):
                output = await _communicate(process, body)
                code = await process.wait()
        except TimeoutError:
            await _kill(process)
            raise CommandFailure(f"it has not ended after {self._timeout:g} s") from None
        except BaseException:  # too much output, or a cancellation: nothing of it may go on
            await _kill(process)
            raise
        if code != 0:
            raise CommandFailure(f"it ended with the code {code}")
        return output


async def _communicate(process: asyncio.subprocess.Process, body: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    feeding = asyncio.create_task(_feed(process.stdin, body))
    try:
        output = bytearray()
        while piece := await process.stdout.read(MAX_ANSWER):
            output += piece
            if len(output) > MAX_ANSWER:
                raise CommandFailure(f"it wrote more than {MAX_ANSWER >> 10} KiB")
        return bytes(output)
    finally:
        feeding.cancel()
        await asyncio.wait((feeding,))


async def _feed(stdin: asyncio.StreamWriter, body: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read its input
        stdin.write(body)
        await stdin.drain()
        stdin.close()


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the process with its group, and reap it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()


class CommandHooks:
    """Blocking hooks of a folder with executables."""

    def __init__(self, commands: Commands, enabled: frozenset[HookType]) -> None:
        """Ask these commands about the `enabled` hooks."""
        self._enabled = enabled
        self._commands = commands
        self._slots = asyncio.Semaphore(MAX_PROCESSES)

    def handles(self, hook: HookType) -> bool:
        """Return whether the hook is enabled; its executable may be added while the server runs."""
        return hook in self._enabled

    async def ask(self, call: HookCall) -> HookAnswer:
        """Run the executable of the hook."""
        upload = call.upload
        try:
            async with self._slots:
                output = await self._commands.run(
                    call.type, upload.id, upload.length or 0, upload.offset, question(call)
                )
            return parse_answer(call.type, output) if output and output.strip() else NO_OPINION
        except (CommandFailure, InvalidAnswer) as error:
            logger.warning("hook %s for upload %s failed: %s", call.type, upload.id or "to be created", error)
            raise HookUnavailable(explanation=str(error)) from None


class CommandHookSink:
    """The sink of a folder with executables: hooks that tell of stored events. Their output is not looked at."""

    def __init__(self, name: str, commands: Commands) -> None:
        """Run these commands; events wait under the `name`."""
        self.name = name
        self._commands = commands

    async def open(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def send(self, event: OutboxEvent) -> None:
        """Run the executable of an event; success if it ends with the code 0, or is missing."""
        hook, document = hook_of(event.type), parse_document(event.document)
        try:
            await self._commands.run(
                hook, document.id, document.length or 0, document.offset, notification(hook, document)
            )
        except CommandFailure as error:
            raise DeliveryError(str(error)) from None
