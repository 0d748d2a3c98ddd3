"""A client of clamd: one connection for each file, whose bytes are sent with the command INSTREAM."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from tusd_py.contracts.scanner import ScanImpossible
from tusd_py.core.buffers import Buffer

CONNECT_TIMEOUT = 5.0  # seconds
LAST_WORDS_TIMEOUT = 2.0  # seconds in which clamd says why it closed the connection
MAX_ANSWER = 4096  # bytes
FOUND = re.compile(r"stream: (.+) FOUND")
CLEAN = "stream: OK"
CUT_OFF = "clamd closed the connection in the middle of the file"
TOO_LARGE = "size limit exceeded"


class ClamdScanner:
    """Scans by a clamd that listens on a socket (`unix:PATH`) or a port (`tcp://HOST:PORT`)."""

    def __init__(self, address: str) -> None:
        """Take the address, as `check_clamd` accepts it."""
        self._address = address

    async def scan(self, pieces: AsyncIterator[Buffer]) -> str:
        """See `Scanner.scan`."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await self._connect()
        except (OSError, TimeoutError) as error:
            raise ScanImpossible(f"clamd at {self._address} cannot be reached: {error or 'no answer'}") from error
        try:
            return _verdict(await _Exchange(reader, writer).answer_to(pieces))
        finally:
            writer.transport.abort()  # a clamd that does not read would keep a connection that is closed orderly

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._address.startswith("unix:"):
            return await asyncio.open_unix_connection(self._address.removeprefix("unix:"), limit=MAX_ANSWER)
        place = urlsplit(self._address)
        return await asyncio.open_connection(place.hostname, place.port, limit=MAX_ANSWER)


class _ConnectionCut(Exception):
    """clamd has closed the connection before the end of the file."""


class _Exchange:
    """One file and its answer, on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._sent = 0  # bytes of the file

    async def answer_to(self, pieces: AsyncIterator[Buffer]) -> str:
        """Send a file and return the answer; raises the errors of the pieces.

        clamd closes the connection in the middle of a file that is longer than its StreamMaxLength, and its answer may
        be lost then.
        """
        try:
            await self._send(pieces)
        except _ConnectionCut:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(LAST_WORDS_TIMEOUT):
                    answer = await self._read_answer()
                    if not _is_clean(answer):  # clamd has not seen the whole file
                        return answer
            raise ScanImpossible(CUT_OFF, cut_at=self._sent) from None
        try:
            return await self._read_answer()
        except ConnectionError:  # bytes that the kernel had taken were not read
            raise ScanImpossible(CUT_OFF, cut_at=self._sent) from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ScanImpossible("clamd gave no answer") from error

    async def _read_answer(self) -> str:
        return (await self._reader.readuntil(b"\0")).decode("utf-8", "replace")

    async def _send(self, pieces: AsyncIterator[Buffer]) -> None:
        """Send a file; raises `_ConnectionCut`, and the errors of the pieces."""
        await self._write(b"zINSTREAM\0")
        async for piece in pieces:
            if not piece:  # a length of zero would end the file
                continue
            # The transport may keep the bytes after the storage has used its buffer again.
            await self._write(len(piece).to_bytes(4), bytes(piece))
            self._sent += len(piece)
        await self._write(bytes(4))

    async def _write(self, *data: bytes) -> None:
        if self._writer.transport.is_closing():  # uvloop raises RuntimeError for a write then
            raise _ConnectionCut
        try:
            for part in data:
                self._writer.write(part)
            await self._writer.drain()
        except OSError:
            raise _ConnectionCut from None


def _is_clean(answer: str) -> bool:
    return answer.rstrip("\0\n") == CLEAN


def _verdict(answer: str) -> str:
    if _is_clean(answer):
        return ""
    answer = answer.rstrip("\0\n")
    match = FOUND.fullmatch(answer)
    if match:
        return match[1]
    shown = "".join(letter if letter.isprintable() else "?" for letter in answer[:200])
    raise ScanImpossible(f"clamd answered {shown!r}", too_large=TOO_LARGE in answer)
