"""Finished uploads whose records are older than their objects: a state store may have lost its last changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tusd_py.backends.s3.bucket import Bucket
from tusd_py.backends.s3.layout import Layout, dump, layout_of
from tusd_py.backends.s3.object_keys import OWNER, PUT_ID, object_key, owner, token_of
from tusd_py.core.upload import Upload, final_upload_id


async def finished_since(bucket: Bucket, upload: Upload) -> Upload | None:
    """Return an upload with all the bytes of its object, placed but not verified; None if it has no such object."""
    layout = layout_of(upload)
    key = layout.key or object_key(bucket.config, upload)
    found = await bucket.head(key)
    if found is None or not is_finished(upload, layout, found["ContentLength"], found["Metadata"]):
        return None
    placed = replace(layout, key=key, multipart="", put_id="", placed=found["Metadata"][PUT_ID])
    size = int(found["ContentLength"])
    return replace(upload, length=size, offset=size, storage_state=dump(placed))


def is_finished(upload: Upload, layout: Layout, size: int, metadata: Mapping[str, str]) -> bool:
    """Return whether an object is certainly that of this upload, made of all its bytes.

    Objects are only made of all bytes, so that the size of one is the length of an upload of unknown length. The
    multipart upload that the record names has made the object if that bears its put id. Without one, nothing may
    contradict the bytes of the object: no byte was acknowledged, or no lock later than that of its maker has changed
    the record. A final upload must have the id that its parts give it: another id may have been used for other parts.
    """
    put_id = metadata.get(PUT_ID, "")
    if not put_id or metadata.get(OWNER) != owner(upload):
        return False
    if size < upload.offset or upload.length not in (None, size):
        return False
    if layout.multipart:
        return put_id == layout.put_id
    if upload.is_final:
        return upload.id == final_upload_id(upload.partial_ids, upload.metadata, upload.conditions)
    return not upload.offset or token_of(put_id) >= upload.token
