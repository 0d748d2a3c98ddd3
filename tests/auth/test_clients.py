"""Clients whose token expires in the middle of an upload: with a new one they go on where they were."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from tests.auth.site import ask, bearer, jwt_of, token_files
from tests.support.harness import serving
from tests.support.wire.messages import KIBI, payload


def test_tuspy_goes_on_with_a_new_token(tmp_path: Path) -> None:
    data = payload(300 * KIBI)
    with serving(tmp_path, **token_files(tmp_path)) as server:
        client = TusClient(server.url, headers=bearer(jwt_of("ann")))
        uploader = client.uploader(file_stream=io.BytesIO(data), chunk_size=100 * KIBI)
        uploader.upload_chunk()  # type: ignore[no-untyped-call]
        client.set_headers(bearer(jwt_of("ann", exp=1)))
        with pytest.raises(TusCommunicationError, match="401"):
            uploader.upload_chunk()  # type: ignore[no-untyped-call]
        client.set_headers(bearer(jwt_of("ann")))
        path = str(uploader.url).removeprefix(server.origin)
        assert ask(server, jwt_of("ann"), "HEAD", path).offset == uploader.offset == 100 * KIBI
        uploader.upload()
        assert ask(server, jwt_of("ann"), "GET", path).body == data
        assert ask(server, jwt_of("bob"), "GET", path).status == 404


def test_tuspy_comes_back_after_its_token_has_expired(tmp_path: Path) -> None:
    data = payload(300 * KIBI)
    with serving(tmp_path, **token_files(tmp_path)) as server:
        first = TusClient(server.url, headers=bearer(jwt_of("ann")))
        begun = first.uploader(file_stream=io.BytesIO(data), chunk_size=100 * KIBI)
        begun.upload_chunk()  # type: ignore[no-untyped-call]
        again = TusClient(server.url, headers=bearer(jwt_of("ann", exp=1)))
        with pytest.raises(TusCommunicationError, match="423"):
            again.uploader(file_stream=io.BytesIO(data), url=begun.url)
        again.set_headers(bearer(jwt_of("ann")))
        resumed = again.uploader(file_stream=io.BytesIO(data), chunk_size=100 * KIBI, url=begun.url)
        assert resumed.offset == 100 * KIBI
        resumed.upload()
        assert ask(server, jwt_of("ann"), "GET", str(begun.url).removeprefix(server.origin)).body == data
