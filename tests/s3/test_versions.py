"""Buckets that keep versions: what is deleted stays in them unless somebody does something about it."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.s3_server import S3Server, moto, s3_server
from tests.support.s3_uploads import Place, serving
from tests.support.wire.requests import create, patch, request


@pytest.fixture(params=[s3_server, moto], ids=["seaweedfs", "moto"])
def versioned(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = replace(request.param(), bucket=f"versioned-{secrets.token_hex(4)}")
    with contextlib.closing(server.client()) as client:
        client.create_bucket(Bucket=server.bucket)
        client.put_bucket_versioning(Bucket=server.bucket, VersioningConfiguration={"Status": "Enabled"})
    return server


def versions_of(server: S3Server, identity: str) -> list[str]:
    """Return the keys of everything that the bucket keeps, but for the identity of the storage."""
    with contextlib.closing(server.client()) as client:
        answer = client.list_object_versions(Bucket=server.bucket)
        keys = [found["Key"] for kind in ("Versions", "DeleteMarkers") for found in answer.get(kind, [])]
        return [key for key in keys if key != identity]


def test_a_bucket_that_keeps_versions_is_warned_of_once(tmp_path: Path, versioned: S3Server) -> None:
    with serving(tmp_path, Place(versioned)) as server:
        path = create(server.port, 2000, body=b"x" * 1000)
        assert patch(server.port, path, 1000, b"x" * 1000).offset == 2000
    assert sum("keeps versions" in line for line in server.log) == 1


def test_delete_versions_leaves_no_version_of_a_tail_or_a_removed_upload(tmp_path: Path, versioned: S3Server) -> None:
    place = Place(versioned)
    with serving(tmp_path, place, s3_delete_versions=True) as server:
        kept, removed = (create(server.port, 3000, body=b"x" * 1000) for _ in range(2))
        for path in (kept, removed):
            assert patch(server.port, path, 1000, b"y" * 1000).offset == 2000
            assert patch(server.port, path, 2000, b"z" * 1000).offset == 3000
        assert request(server.port, "DELETE", removed).status == 204
    assert versions_of(versioned, place.config().identity) == [place.key_of(kept)]
    assert not any("keeps versions" in line for line in server.log)


def test_a_bucket_without_versions_is_not_warned_of(tmp_path: Path) -> None:
    with serving(tmp_path, Place(s3_server())) as server:
        pass
    assert not any("versions" in line for line in server.log)
