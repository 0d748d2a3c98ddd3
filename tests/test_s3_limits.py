"""What S3 has no room for: refused at once with the limit in the answer, or made to fit; never a dead end."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.raw_client import create, patch
from tests.s3_server import FaultyProxy, s3_server
from tests.s3_uploads import PART, Place, serving

MAX_METADATA = 2048  # bytes; of an object in AWS


class StrictS3(FaultyProxy):
    """Refuses objects with more metadata than AWS takes, as AWS does."""

    def forward(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
        described = {"content-type", "content-disposition"}
        metadata = {
            name: value
            for name, value in headers.items()
            if name.lower() in described or name.lower().startswith("x-amz-meta-")
        }
        if sum(len(name) + len(value) for name, value in metadata.items()) > MAX_METADATA:
            error = b"<Error><Code>MetadataTooLarge</Code></Error>"
            return 400, {"Content-Type": "application/xml", "Content-Length": str(len(error))}, error
        return super().forward(method, target, headers, body)


@pytest.fixture
def strict() -> Iterator[FaultyProxy]:
    with StrictS3(s3_server()) as proxy:
        yield proxy


@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_an_upload_whose_file_name_is_longer_than_s3_takes_completes(
    tmp_path: Path, strict: FaultyProxy, size: int
) -> None:
    place = Place(s3_server())
    name = base64.b64encode(("\U0001f600" * 255 + ".mp4").encode()).decode()
    with serving(tmp_path, place, strict.server.endpoint) as server:
        path = create(server.port, size, {"Upload-Metadata": f"filename {name}"})
        answer = patch(server.port, path, 0, b"x" * size)
        assert (answer.status, answer.offset) == (204, size), answer
        assert place.describe(place.key_of(path))["ContentDisposition"].endswith(".mp4")
