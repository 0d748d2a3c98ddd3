"""The client of clamd: every byte of a file is sent, and no verdict about a part of it counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from tests.support.clamd import MALWARE, Clamd
from tusd_py.backends.clamd.scanner import ClamdScanner
from tusd_py.contracts.scanner import ScanImpossible
from tusd_py.core.buffers import Buffer


@pytest.fixture
def clamd() -> Iterator[Clamd]:
    with Clamd() as daemon:
        yield daemon


async def pieces_of(*pieces: bytes, error: Exception | None = None) -> AsyncGenerator[Buffer, None]:
    for piece in pieces:
        yield piece
    if error is not None:
        raise error


async def test_empty_piece_does_not_end_the_file(clamd: Clamd) -> None:
    assert await ClamdScanner(clamd.address).scan(pieces_of(b"a", b"", MALWARE)) == "Test.Malware"
    assert clamd.scanned == [1 + len(MALWARE)]


async def test_error_of_the_bytes_is_no_error_of_the_connection(clamd: Clamd) -> None:
    with pytest.raises(ConnectionResetError, match="of the storage"):
        await ClamdScanner(clamd.address).scan(pieces_of(b"a", error=ConnectionResetError("of the storage")))


async def test_clean_verdict_before_the_end_of_the_file_does_not_count(tmp_path: Path) -> None:
    said = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(20)
        writer.write(b"stream: OK\0")
        writer.close()
        await writer.wait_closed()
        said.set()

    async def pieces() -> AsyncGenerator[Buffer, None]:
        yield b"first piece"
        await said.wait()
        for _ in range(100):
            yield bytes(1 << 16)

    path = tmp_path / "clamd"
    async with await asyncio.start_unix_server(serve, path):
        with pytest.raises(ScanImpossible, match="in the middle of the file") as caught:
            await ClamdScanner(f"unix:{path}").scan(pieces())
    assert caught.value.cut_at is not None
