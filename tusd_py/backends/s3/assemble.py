"""Completion of an upload: S3 makes one object of its parts and tails. Every step may be repeated after a crash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tusd_py.backends.s3.body import multipart_etag
from tusd_py.backends.s3.bucket import Bucket
from tusd_py.backends.s3.errors import MultipartMissing, PartsRefused
from tusd_py.backends.s3.layout import Layout, Multipart, checksum_of, contiguous, size_of_part
from tusd_py.backends.s3.memory_limiter import MemoryLimiter
from tusd_py.backends.s3.object_keys import OWNER, object_key, owner
from tusd_py.core.errors import StorageBehind, StorageUnavailable, UploadError
from tusd_py.core.upload import Upload, UploadPart


async def complete(
    bucket: Bucket, memory: MemoryLimiter, upload: Upload, layout: Layout, uploaded: Sequence[UploadPart]
) -> Layout:
    """Make the object of the uploaded parts and the tails; return the layout of a complete upload.

    Raises `StorageBehind` with the offset to continue at if bytes are missing, and `UploadNotFound` if all are.
    """
    if layout.is_assembled:
        return layout
    key = layout.key or object_key(bucket.config, upload)
    covered = upload.offset if layout.placed else layout.covered(upload.offset)
    if covered < upload.offset:
        raise StorageBehind(covered)
    if layout.multipart:
        await _complete_multipart(bucket, memory, upload, layout, uploaded)
    elif not (layout.placed and await bucket.is_placed(upload, key, layout.placed)):
        await _put_object(bucket, memory, upload, layout, key)
    bucket.drop_upload_state(upload.id)
    await bucket.remove_tails(upload, layout.tail_names)
    return Layout(key=key, is_assembled=True)


async def verify_object(
    bucket: Bucket, upload: Upload, multipart: Multipart, etag: str, error: UploadError | None
) -> None:
    """Verify that the object is the one that the parts of a multipart upload make.

    `error` tells why the multipart upload could not be completed now, None if it was. An earlier attempt may have
    succeeded although its reply was lost: then the object is there. Raises `error` if no object is there, and
    `StorageUnavailable` if another one is, which may hold every byte.
    """
    if await bucket.is_placed(upload, multipart.key, multipart.put_id, etag):
        return
    if error is None or (isinstance(error, MultipartMissing) and await bucket.head(multipart.key) is not None):
        raise StorageUnavailable("the assembled object has an unexpected size or ETag")
    raise error


async def _put_object(bucket: Bucket, memory: MemoryLimiter, upload: Upload, layout: Layout, key: str) -> None:
    """Make the object of an upload that is smaller than a part, in one request."""
    covered = layout.covered(upload.offset)
    if covered < upload.offset:  # the object that held these bytes was removed
        raise StorageBehind(covered)
    tails = layout.tails_from(0, upload.offset)
    try:
        if upload.offset > memory.total and bucket.has_free_sizes:
            await _put_in_parts(bucket, memory, upload, layout, key)
            return
        await memory.reserve(upload.offset)
        try:
            pieces = await bucket.get_tails(upload, tails, 0, upload.offset)
            await bucket.put_object(upload, key, pieces, upload.token)
        finally:
            memory.release(upload.offset)
    except StorageBehind:
        found = await bucket.head(key)  # after an earlier attempt the object is there, and the tails are not
        ours = found is not None and found["Metadata"].get(OWNER, owner(upload)) == owner(upload)
        if found is None or not ours or found["ContentLength"] != upload.offset:
            raise


async def _put_in_parts(bucket: Bucket, memory: MemoryLimiter, upload: Upload, layout: Layout, key: str) -> None:
    """Make the object of tails that do not fit into memory: they were stored with a larger limit."""
    multipart = await bucket.create_multipart(upload, key)
    try:
        parts = await _upload_tails(bucket, memory, upload, layout, multipart, 0, 1)
        await bucket.complete_multipart(multipart, parts)
    except UploadError:
        await bucket.try_abort(multipart)
        raise
    await verify_object(bucket, upload, multipart, _etag(parts, upload), None)


async def _complete_multipart(
    bucket: Bucket, memory: MemoryLimiter, upload: Upload, layout: Layout, uploaded: Sequence[UploadPart]
) -> None:
    parts = contiguous(uploaded, upload.offset)
    end = parts[-1].end if parts else 0
    if end < min(layout.parts_end, upload.offset):
        raise StorageBehind(end)
    multipart = Multipart(layout.key, layout.multipart, layout.put_id)
    error: UploadError | None = None
    try:
        if end < upload.offset:
            previous = parts[-1].number if parts else 0
            number = layout.next_number if bucket.config.capabilities.number_gaps else previous + 1
            parts += await _upload_tails(bucket, memory, upload, layout, multipart, end, number)
        await _complete_with_parts(bucket, multipart, parts)
    except (MultipartMissing, StorageBehind) as caught:
        error = caught
    await verify_object(bucket, upload, multipart, _etag(parts, upload), error)


async def _complete_with_parts(bucket: Bucket, multipart: Multipart, parts: Sequence[UploadPart]) -> None:
    """Complete with the parts, or those that S3 has in their place; raises `StorageBehind` if bytes are missing."""
    try:
        await bucket.complete_multipart(multipart, parts)
    except PartsRefused:
        matching = _matching_parts(parts, await bucket.list_parts(multipart))
        if len(matching) < len(parts):
            raise StorageBehind(matching[-1].end if matching else 0) from None
        await bucket.complete_multipart(multipart, matching)


def _etag(parts: Sequence[UploadPart], upload: Upload) -> str:
    """Return the ETag of the object that the parts make; one that no object has if the parts lack bytes."""
    is_assembled = parts and parts[-1].end == upload.offset
    return multipart_etag([part.etag for part in parts]) if is_assembled else "unknown"


async def _upload_tails(
    bucket: Bucket,
    memory: MemoryLimiter,
    upload: Upload,
    layout: Layout,
    multipart: Multipart,
    start: int,
    number: int,
) -> list[UploadPart]:
    """Upload the bytes of the tails from `start` on as the last part, or as several if they do not fit into memory."""
    parts: list[UploadPart] = []
    while start < upload.offset:
        end = upload.offset
        if end - start > memory.total and bucket.has_free_sizes:
            end = start + bucket.config.largest_part
        await memory.reserve(end - start)
        try:
            pieces = await bucket.get_tails(upload, layout.tails_from(start, end), start, end)
            parts.append(await bucket.upload_part(multipart, number, start, pieces))
        finally:
            memory.release(end - start)
        start, number = end, number + 1
    return parts


def _matching_parts(parts: Sequence[UploadPart], found: Sequence[dict[str, Any]]) -> list[UploadPart]:
    """Return the parts before the first one that S3 does not have as the part list says.

    The same bytes may have another ETag (a repeated request, with encryption): then their checksum decides.
    """
    matching: list[UploadPart] = []
    for part in parts:
        etags = {
            found_part["ETag"].strip('"'): found_part["ETag"]
            for found_part in found
            if found_part["PartNumber"] == part.number
            and found_part["Size"] == size_of_part(part)
            and (
                found_part["ETag"].strip('"') == part.etag.strip('"')
                or found_part.get("ChecksumCRC32") == checksum_of(part)
            )
        }
        if not etags:
            break
        etag = etags.get(part.etag.strip('"')) or next(iter(etags.values()))
        matching.append(UploadPart(part.number, part.end, etag, part.checksum))
    return matching
