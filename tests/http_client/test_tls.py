"""TLS to endpoints of the application: authorities of its own, and a certificate of the server."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.support.redis_server import MAKE_CERTIFICATE
from tests.support.timing import TIMEOUT
from tusd_py import InvalidSettings, TusServer
from tusd_py.http_client.client import HttpClient, HttpUrl, parse_http_url
from tusd_py.http_client.response_parser import HttpFailure
from tusd_py.http_client.tls import TlsFiles, make_context

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    make: list[str | Path] = [require("openssl"), *MAKE_CERTIFICATE, "-keyout", key, "-out", certificate]
    subprocess.run(make, check=True, capture_output=True)
    return TlsFiles(certificate, certificate, key)


@contextlib.asynccontextmanager
async def endpoint(files: TlsFiles, *, asks_certificate: bool) -> AsyncIterator[HttpUrl]:
    assert files.certificate is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
    context.load_cert_chain(files.certificate, files.key)
    context.verify_mode = ssl.CERT_REQUIRED if asks_certificate else ssl.CERT_NONE

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"body")
            writer.write(OK)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield parse_http_url(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    finally:
        server.close()
        await server.wait_closed()


async def status_of(url: HttpUrl, files: TlsFiles | None) -> int:
    client = HttpClient(context=None if files is None else make_context(files))
    try:
        return (await client.post(url, {}, b"body", TIMEOUT)).status
    finally:
        await client.close()


async def test_an_authority_of_the_application_is_trusted_and_others_are_not(files: TlsFiles) -> None:
    async with endpoint(files, asks_certificate=False) as url:
        assert await status_of(url, TlsFiles(ca=files.ca)) == 200
        with pytest.raises(HttpFailure, match=r"(?i)certificate.verify.failed"):
            await status_of(url, None)


async def test_an_endpoint_that_wants_a_certificate_gets_that_of_the_server(files: TlsFiles) -> None:
    async with endpoint(files, asks_certificate=True) as url:
        assert await status_of(url, files) == 200
        with pytest.raises(HttpFailure):
            await status_of(url, TlsFiles(ca=files.ca))


@pytest.mark.parametrize("name", ["hooks_http_ca_file", "hooks_http_cert_file", "hooks_http_key_file"])
@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "file.pem").write_bytes(content)
    options: dict[str, Any] = {"hooks_http": "https://a.example/", name: str(tmp_path / "file.pem")}
    with pytest.raises(InvalidSettings, match=str(tmp_path / "file.pem")):
        TusServer(upload_dir=tmp_path / "uploads", **options)
