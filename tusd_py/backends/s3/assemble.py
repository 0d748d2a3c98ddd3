"""Parts and tails become one object. Every step may be repeated after a crash or a lost answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tusd_py.backends.s3.body import multipart_etag
from tusd_py.backends.s3.bucket import Bucket, Multipart
from tusd_py.backends.s3.errors import MultipartMissing, PartsRefused
from tusd_py.backends.s3.layout import Layout, checksum_of, contiguous, size_of
from tusd_py.backends.s3.object_keys import OWNER, object_key, owner
from tusd_py.core.errors import StorageBehind, StorageUnavailable
from tusd_py.core.upload import Upload, UploadPart

NOT_AS_EXPECTED = "the stored object is not what the parts should make"


async def complete(engine: Bucket, upload: Upload, layout: Layout, ledger: Sequence[UploadPart]) -> Layout:
    """Make the object; returns the layout of a whole upload.

    Raises `StorageBehind` with the offset to go on from if bytes are missing, and `UploadNotFound` if all are.
    """
    if layout.whole:
        return layout
    key = layout.key or object_key(engine.config, upload)
    covered = upload.offset if layout.placed else layout.covered(upload.offset)
    if covered < upload.offset:
        raise StorageBehind(covered)
    if layout.multipart:
        await _complete_multipart(engine, upload, layout, ledger)
    elif not (layout.placed and await engine.is_placed(upload, key, layout.placed)):
        await _place(engine, upload, layout, key)
    engine.memory.forget(upload.id)
    engine.used_numbers.pop(upload.id, None)
    if layout.tail_names:
        await engine.remove_tails(upload, layout.tail_names)
    return Layout(key=key, whole=True)


async def _place(engine: Bucket, upload: Upload, layout: Layout, key: str) -> None:
    """An upload of less than a part."""
    covered = layout.covered(upload.offset)
    if covered < upload.offset:  # the object was there, and is no longer
        raise StorageBehind(covered)
    tails = layout.tails_from(0, upload.offset)
    await engine.memory.take(upload.offset)
    try:
        pieces = await engine.get_tails(upload, tails)
        await engine.put_object(upload, key, pieces, upload.token)
    except StorageBehind:
        found = await engine.head(key)  # after an earlier try, the tails are gone and the object is there
        ours = found is not None and found["Metadata"].get(OWNER, owner(upload)) == owner(upload)
        if found is None or not ours or found["ContentLength"] != upload.offset:
            raise
    finally:
        engine.memory.release(upload.offset)


async def _complete_multipart(engine: Bucket, upload: Upload, layout: Layout, ledger: Sequence[UploadPart]) -> None:
    parts = contiguous(ledger, upload.offset)
    end = parts[-1].end if parts else 0
    if end < min(layout.parts_end, upload.offset):
        raise StorageBehind(end)
    multipart = Multipart(layout.key, layout.multipart, layout.marker)
    try:
        if end < upload.offset:
            previous = parts[-1].number if parts else 0
            parts.append(await _last_part(engine, upload, layout, multipart, end, previous))
        await _join(engine, upload, multipart, parts)
    except (MultipartMissing, StorageBehind) as error:
        # An earlier try may have gone through although its answer never came.
        if await engine.is_placed(upload, layout.key, layout.marker, _etag(parts, upload)):
            return
        if isinstance(error, MultipartMissing) and await engine.head(layout.key) is not None:
            raise StorageUnavailable(NOT_AS_EXPECTED) from None  # it may be whole: its bytes are not lost for certain
        raise
    if not await engine.is_placed(upload, layout.key, layout.marker, _etag(parts, upload)):
        raise StorageUnavailable(NOT_AS_EXPECTED)


def _etag(parts: Sequence[UploadPart], upload: Upload) -> str:
    whole = parts and parts[-1].end == upload.offset
    return multipart_etag([part.etag for part in parts]) if whole else "unknown"


async def _last_part(
    engine: Bucket, upload: Upload, layout: Layout, multipart: Multipart, start: int, previous: int
) -> UploadPart:
    """The tails are the last part."""
    tails = layout.tails_from(start, upload.offset)
    size = upload.offset - start
    number = layout.next_number if engine.config.capabilities.number_gaps else previous + 1
    await engine.memory.take(size)
    try:
        pieces = await engine.get_tails(upload, tails)
        return await engine.upload_part(multipart, number, start, pieces)
    finally:
        engine.memory.release(size)


async def _join(engine: Bucket, upload: Upload, multipart: Multipart, parts: Sequence[UploadPart]) -> None:
    try:
        await engine.complete_multipart(multipart, parts)
    except PartsRefused:
        found = await _list_parts(engine, multipart)
        good = _reconciled(parts, found)
        if len(good) < len(parts):
            raise StorageBehind(good[-1].end if good else 0) from None
        await engine.complete_multipart(multipart, good)


async def _list_parts(engine: Bucket, multipart: Multipart) -> list[dict[str, Any]]:
    """List the parts that S3 has of a multipart upload; some servers list several parts of one number."""
    found: list[dict[str, Any]] = []
    marker: dict[str, int] = {}
    while True:
        answer = await engine.client.call("list_parts", Key=multipart.key, UploadId=multipart.id, **marker)
        found += answer.get("Parts", [])
        if not answer.get("IsTruncated"):
            return found
        marker = {"PartNumberMarker": answer["NextPartNumberMarker"]}


def _reconciled(parts: Sequence[UploadPart], found: Sequence[dict[str, Any]]) -> list[UploadPart]:
    """The parts up to the first that S3 does not have as the ledger says.

    The same bytes may have another ETag (a repeated request, with encryption): their checksum tells.
    """
    good: list[UploadPart] = []
    for part in parts:
        etags = {
            there["ETag"].strip('"'): there["ETag"]
            for there in found
            if there["PartNumber"] == part.number
            and there["Size"] == size_of(part)
            and (there["ETag"].strip('"') == part.etag.strip('"') or there.get("ChecksumCRC32") == checksum_of(part))
        }
        if not etags:
            break
        etag = etags.get(part.etag.strip('"')) or next(iter(etags.values()))
        good.append(UploadPart(part.number, part.end, etag, part.checksum))
    return good
