"""The object of an upload in S3: its key, its header fields, its tags and its storage class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import PART, Place, digest_of, id_of, send_patches, serving
from tests.support.wire.messages import metadata, payload
from tests.support.wire.requests import assert_content, create, patch, request

STORAGE_CLASS = "REDUCED_REDUNDANCY"
HOSTILE: dict[str, str | bytes] = {
    "parent": "../../../etc/passwd",
    "dots": "..",
    "dot": ".",
    "absolute": "/etc/passwd",
    "backslashes": "..\\..\\boot.ini",
    "controls": "a\x00b\r\nX-Evil: 1\x7f",
    "field": "{id}{prefix}{metadata.name}",
    "escaped": "%2e%2e%2f%2e%2e",
    "query": "a?uploads&partNumber=1#x",
    "quotes": "a\"b'c;d",
    "other scripts": "Prüfung – 中文 🎧.webm",
    "long": "x" * 3000,
    "empty": "",
    "not text": b"\xff\xfe\x80",
}


def test_keys_from_hostile_metadata(tmp_path: Path) -> None:
    """An object is below the prefix, at a place that only one upload has, whatever clients say."""
    place = Place(s3_server())
    template = "{prefix}by/{metadata.folder}/{metadata.filename}-{id}.bin"
    data = payload(500)
    with serving(tmp_path, place, s3_key_template=template) as server:
        for value in HOSTILE.values():
            before = set(place.keys)
            fields = metadata(folder=value, filename=value)
            path = create(server.port, len(data), {"Upload-Metadata": fields}, data[:100])
            assert patch(server.port, path, 100, data[100:]).status == 204
            (key,) = set(place.keys) - before
            assert re.fullmatch(rf"{place.prefix}by/[A-Za-z0-9!_.*'()-]+/[^/]*-{id_of(path)}\.bin", key), key
            assert not {".", "..", ""} & set(key.split("/")), key
            assert len(key) <= 1024
            assert place.digest(key) == digest_of(data)
            assert_content(server.port, path, data)
        without = create(server.port, len(data), body=data)
        assert_content(server.port, without, data)
        server.restart()
        before = set(place.keys)
        large = payload(PART + 1)
        path = create(server.port, len(large), {"Upload-Metadata": metadata(folder="a", filename="b")}, large[:1000])
        server.restart()
        send_patches(server, path, large, len(large), 1000)
        assert set(place.keys) - before == {f"{place.prefix}by/a/b-{id_of(path)}.bin"}
        assert_content(server.port, path, large)
        assert request(server.port, "DELETE", path).status == 204
        assert set(place.keys) == before
    assert all(key.startswith(f"{place.prefix}by/") for key in place.keys)


@pytest.mark.parametrize("length", [100, PART + 100])
def test_type_and_name_of_the_object(server: ServerProcess, place: Place, length: int) -> None:
    fields = metadata(filename='Prü"fung.webm', filetype="video/webm")
    path = create(server.port, length, {"Upload-Metadata": fields}, payload(length))
    found = place.describe(place.key_of(path))
    assert found["ContentType"] == "video/webm"
    assert found["ContentDisposition"] == (
        "attachment; filename=\"Pr__fung.webm\"; filename*=UTF-8''Pr%C3%BC%22fung.webm"
    )
    assert found["ContentLength"] == length
    user = {name: value for name, value in found["Metadata"].items() if not name.startswith("tusd-py-")}
    assert user == {}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_types_and_names_are_no_header_fields(server: ServerProcess, place: Place, value: str | bytes) -> None:
    fields = metadata(filename=value, filetype=value)
    path = create(server.port, 10, {"Upload-Metadata": fields}, b"0123456789")
    found = place.describe(place.key_of(path))
    assert found["ContentType"] == "application/octet-stream"
    assert re.fullmatch(r"attachment(; filename=\"[ -~]*\")?(; filename\*=UTF-8''[!-~]+)?", found["ContentDisposition"])
    assert "X-Evil" not in found["ResponseMetadata"]["HTTPHeaders"]
    assert_content(server.port, path, b"0123456789")


def test_tags_and_storage_class_of_the_object(tmp_path: Path) -> None:
    place = Place(s3_server())
    with serving(tmp_path, place, s3_tags="project=press + more,kind=upload", s3_storage_class=STORAGE_CLASS) as server:
        for length in (10, PART + 10):
            path = create(server.port, length, body=payload(length))
            assert place.tags_of(place.key_of(path)) == {"project": "press + more", "kind": "upload"}
            place.assert_alone(path, payload(length))
            assert place.describe(place.key_of(path)).get("StorageClass", STORAGE_CLASS) == STORAGE_CLASS
