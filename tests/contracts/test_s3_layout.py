"""Sizes of parts, and keys and properties of objects in S3."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import asyncio
import base64
import random
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pytest

from tests.contracts.s3_storage import (  # noqa: F401 (fixtures)
    DATA,
    PART,
    Opener,
    calls,
    opened,
    send_all,
    server,
    storage,
)
from tests.support.s3_server import (
    S3Server,
)
from tusd_py.backends.s3.config import MAX_PART, S3Config
from tusd_py.backends.s3.copy_plan import Slice, plan_copies, plan_equal
from tusd_py.backends.s3.layout import contiguous, entry
from tusd_py.backends.s3.object_keys import content_disposition, content_type, key_pattern, object_key, properties
from tusd_py.backends.s3.part_sizes import PartSizes, choose_sizes, skipped_numbers
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.contracts.storage import SupportsDownloadRedirect
from tusd_py.testing.storage_helpers import (
    UPLOAD,
    content,
)

# Sizes and numbers.


@pytest.mark.parametrize("length", [None, 0, 1, PART, 10_000 * PART, 80 << 30, 1 << 40, 4 << 40])
@pytest.mark.parametrize("max_parts", [1000, 10_000])
def test_every_length_fits_into_the_parts(length: int | None, max_parts: int) -> None:
    sizes = choose_sizes(length, PART, max_parts, equal=False)
    assert sizes.capacity_from(1) >= (5 << 40 if length is None and max_parts == 10_000 else length or 0)
    for number in (1, 2, max_parts // 2, max_parts):
        assert PART <= sizes.size(number) <= MAX_PART
        assert sizes.size(number) >= sizes.size(max(1, number - 1))


def test_equal_parts_stay_equal() -> None:
    sizes = choose_sizes(None, PART, 10_000, equal=True)
    assert {sizes.size(number) for number in range(1, 10_001)} == {PART}


def test_small_uploads_have_parts_of_the_configured_size() -> None:
    assert choose_sizes(5 << 30, 8 << 20, 10_000, equal=False) == PartSizes(8 << 20)
    assert choose_sizes(None, 8 << 20, 10_000, equal=False).size(900) == 8 << 20


@pytest.mark.parametrize(("number", "remaining"), [(1, 5 << 30), (9000, 900 * PART), (9990, 9 * PART), (10_000, 1)])
def test_skipping_numbers_leaves_room_for_the_rest(number: int, remaining: int) -> None:
    sizes = PartSizes(PART)
    count = skipped_numbers(sizes, number, remaining)
    assert 0 <= count <= 256
    assert sizes.capacity_from(number + count) >= remaining


def test_the_part_list_counts_only_what_follows_without_a_gap() -> None:
    parts = [entry(number, start, start + 10, "etag", "") for number, start in [(1, 0), (2, 10), (3, 20), (4, 30)]]
    assert contiguous(parts, 40) == parts
    assert contiguous(parts, 30) == parts[:3]
    assert contiguous([parts[0], *parts[2:]], 40) == parts[:1]
    again = [entry(7, 10, 20, "new", ""), entry(9, 20, 35, "new", "")]
    assert contiguous([*parts, *again], 100) == [parts[0], *again]


def test_plans_hold_every_byte_once() -> None:
    chance = random.Random(3)
    for _ in range(200):
        sizes = [chance.choice([1, 100, PART - 1, PART, PART + 1, 3 * PART, 40 * PART]) for _ in range(9)]
        sources = [Slice(str(number), 0, size) for number, size in enumerate(sizes)]
        for pieces in (plan_copies(sources, 10 * PART), plan_equal(sources, PART)):
            joined: dict[str, int] = {}
            for piece in pieces:
                assert piece.size >= PART or piece is pieces[-1]
                for part in piece.slices:
                    assert joined.get(part.key, 0) == part.start
                    joined[part.key] = part.end
            assert list(joined.items()) == [(source.key, source.end) for source in sources]
        downloaded = [piece.size for piece in plan_copies(sources, 10 * PART) if not piece.can_be_copied]
        assert all(size <= PART for size in downloaded)


# Layouts and objects.


def test_only_harmless_characters_of_metadata_come_into_keys() -> None:
    config = S3Config(bucket="bucket", prefix="a/", key_template="{prefix}{metadata.folder}/{id}/{metadata.filename}")
    # folder: ../../etc, filename: <x> "y"/ü ü.txt
    upload = replace(UPLOAD, metadata="folder Li4vLi4vZXRj,filename PHg+ICJ5Ii/DvCDDvC50eHQ=")
    key = object_key(config, upload)
    assert key == "a/etc/upload/_.txt"
    fixed, pattern = key_pattern(config)
    match = pattern.fullmatch(key)
    assert fixed == "a/"
    assert match is not None
    assert match["id"] == "upload"
    assert object_key(config, UPLOAD) == "a/_/upload/_"


def encoded(**values: str) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in values.items())


@pytest.mark.parametrize("name", ["\U0001f600" * 255, "\u00fc" * 3000, "a" * 3000, "\U0001f600" * 300 + ".mp4"])
def test_properties_of_an_object_with_a_long_file_name_fit_into_what_s3_takes(name: str) -> None:
    upload = replace(UPLOAD, metadata=encoded(filename=name, filetype=f"{'a' * 63}/{'b' * 63}"))
    disposition = content_disposition(upload)
    given = properties(S3Config(bucket="bucket"), upload, f"{1 << 62}-{'a' * 16}")
    headers = [given["ContentType"], disposition, *(f"{key}{value}" for key, value in given["Metadata"].items())]
    assert sum(map(len, headers)) <= 2048
    assert name[:10] in unquote(disposition)
    assert disposition.endswith(".mp4") == name.endswith(".mp4")


def test_a_key_with_many_long_values_fits_into_what_s3_takes() -> None:
    key = "{prefix}" + "".join(f"{{metadata.v{number}}}/" for number in range(20)) + "{id}"
    config = S3Config(bucket="bucket", prefix="p" * 100, key_template=key)
    values = {f"v{number}": "x" * 500 for number in range(20)}
    longest = object_key(config, replace(UPLOAD, id="i" * 128, metadata=encoded(**values)))
    assert len(longest) <= 1024
    with pytest.raises(ValueError, match="too long"):
        S3Config(bucket="bucket", prefix="p" * 900, key_template=key)


@pytest.mark.parametrize("key", ["", "{prefix}", "{id}{id}", "{id}{other}", "{id}{", "{metadata.}{id}"])
def test_keys_that_cannot_work(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        S3Config(bucket="bucket", key_template=key)


@pytest.mark.parametrize(
    "changes",
    [{"dialect": "other"}, {"part_size": 1 << 20}, {"part_size": 6 << 30}, {"concurrency": 0}, {"endpoint": "host"}],
)
def test_configurations_that_cannot_work(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"\b{next(iter(changes))}\b"):
        S3Config(**({"bucket": "bucket"} | changes))


def test_storage_without_a_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="no name"):
        S3Storage(S3Config())


def test_type_and_name_of_the_object() -> None:
    upload = replace(UPLOAD, metadata="filetype aW1hZ2UvcG5n,filename w7wiLnBuZw==")
    assert content_type(upload) == "image/png"
    assert content_disposition(upload) == "attachment; filename=\"__.png\"; filename*=UTF-8''%C3%BC%22.png"
    bad = replace(UPLOAD, metadata="filetype dGV4dC9odG1sDQpYOiB5,filename Li4vYQ0KYg==,broken %%%")
    assert content_type(bad) == "application/octet-stream"
    assert content_disposition(bad) == 'attachment; filename=".._a__b"'
    assert content_disposition(UPLOAD) == "attachment"


async def test_properties_of_the_object(opened: Opener, server: S3Server) -> None:
    storage = await opened(server, tags=("kind=test",), key_template="{prefix}finished/{id}")
    metadata = "filetype aW1hZ2UvcG5n,filename YS5wbmc="
    for data in (b"small", DATA):
        complete = await send_all(storage, replace(UPLOAD, metadata=metadata), data)
        client = server.client()
        key = f"{storage.config.prefix}finished/upload"
        found = await asyncio.to_thread(client.head_object, Bucket=server.bucket, Key=key)
        assert found["ContentLength"] == len(data)
        assert found["ContentType"] == "image/png"
        assert found["ContentDisposition"] == 'attachment; filename="a.png"'
        assert set(found["Metadata"]) == {"tusd-py-upload", "tusd-py-put"}
        assert UPLOAD.id not in str(list(found["Metadata"].values()))
        tags = await asyncio.to_thread(client.get_object_tagging, Bucket=server.bucket, Key=key)
        assert tags["TagSet"] == [{"Key": "kind", "Value": "test"}]
        assert await content(storage, complete) == data
        client.close()


async def test_redirects(opened: Opener, server: S3Server) -> None:
    import urllib.request

    storage: S3Storage = await opened(server, download="redirect")
    redirects: object = storage
    assert isinstance(redirects, SupportsDownloadRedirect)
    upload = await send_all(storage, UPLOAD, b"content")
    url = await storage.download_url(upload, 'attachment; filename="x"', "text/plain")
    assert url is not None

    def fetch() -> tuple[bytes, str, str]:
        with urllib.request.urlopen(url) as answer:
            return answer.read(), answer.headers["Content-Type"], answer.headers["Content-Disposition"]

    assert await asyncio.to_thread(fetch) == (b"content", "text/plain", 'attachment; filename="x"')
    proxied = await opened(server)
    assert await proxied.download_url(upload, "attachment", "text/plain") is None
