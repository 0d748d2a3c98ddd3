"""Orphan cleanup: aborts multipart uploads and deletes tails that no record names.

The records decide what is needed, never a name: metadata in a key can look like an id. S3 is listed first and the
records are read afterwards, so that every finding is older than the records. The record of an upload is read again
under its lock before anything of the upload is removed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tusd_py.backends.s3.bucket import Bucket
from tusd_py.backends.s3.layout import parse
from tusd_py.backends.s3.object_keys import generated_key_pattern, key_pattern, object_key
from tusd_py.contracts.storage import Orphan, UploadRecords
from tusd_py.core.errors import LockTimeout, UploadError
from tusd_py.core.upload import Upload, is_upload_id

logger = logging.getLogger("tusd_py.sweeper")

MULTIPART, TAIL = "multipart upload", "tail"
MULTIPART_CURSOR = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
OBJECT_CURSOR = {"ContinuationToken": "NextContinuationToken"}
BATCH_SIZE = 10_000  # findings compared with the records in one pass over them


@dataclass(frozen=True, slots=True)
class Finding(Orphan):
    """A multipart upload or a tail that may be an orphan."""

    multipart: str = ""  # the id of a multipart upload


async def clean(bucket: Bucket, records: UploadRecords, *, older_than: float, dry_run: bool) -> list[Finding]:
    """Remove orphans at least `older_than` seconds old; with `dry_run` only find them."""
    orphans: list[Finding] = []
    batch: list[Finding] = []
    async for finding in _candidates(bucket, older_than):
        if not _is_named(bucket, await records.get(finding.upload_id), finding):
            batch.append(finding)
        if len(batch) == BATCH_SIZE:
            orphans += await _clean_batch(bucket, records, batch, dry_run=dry_run)
            batch.clear()
    return orphans + await _clean_batch(bucket, records, batch, dry_run=dry_run)


async def _clean_batch(
    bucket: Bucket, records: UploadRecords, batch: Sequence[Finding], *, dry_run: bool
) -> list[Finding]:
    tails = [finding for finding in batch if finding.kind == TAIL]
    multiparts = await _unnamed_multiparts(bucket, records, [one for one in batch if one.kind == MULTIPART])
    return [one for one in (*multiparts, *tails) if await _clean_one(bucket, records, one, dry_run=dry_run)]


async def _unnamed_multiparts(bucket: Bucket, records: UploadRecords, findings: Sequence[Finding]) -> list[Finding]:
    """Return the multipart uploads that no record names, each with the upload that it was made for.

    The key of a record identifies that upload. A key that is no record's is this server's only if nothing else could
    have made it (`generated_key_pattern`).
    """
    if not findings:
        return []
    named: set[str] = set()
    owners: dict[str, str] = {}  # upload ids by key
    ids = {finding.multipart for finding in findings}
    keys = {finding.name for finding in findings}
    async for upload in records.all():
        layout = parse(upload.storage_state)
        if layout.multipart in ids:
            named.add(layout.multipart)
        key = layout.key or object_key(bucket.config, upload)
        if key in keys:
            owners[key] = upload.id
    pattern = generated_key_pattern(bucket.config)
    found = []
    for finding in findings:
        match = pattern.fullmatch(finding.name) if pattern is not None else None
        owner = owners.get(finding.name) or (match["id"] if match else "")
        if owner and finding.multipart not in named:
            found.append(replace(finding, upload_id=owner))
    return found


async def _clean_one(bucket: Bucket, records: UploadRecords, finding: Finding, *, dry_run: bool) -> bool:
    """Remove a finding that its record does not name, read again; return whether it was removed, or would be."""
    try:
        if dry_run:
            return await _is_orphan(bucket, await records.get(finding.upload_id), finding)
        async with records.locked(finding.upload_id) as upload:
            if not await _is_orphan(bucket, upload, finding):
                return False
            if finding.kind == MULTIPART:
                await bucket.abort(finding.name, finding.multipart)
            else:
                await bucket.remove([finding.name])
            return True
    except LockTimeout:
        return False  # a request is using the upload, and may be about to commit it
    except UploadError as error:  # of this finding alone; the next cleanup tries again
        logger.warning("the orphaned %s %s could not be removed: %s", finding.kind, finding.name, error.message)
        return False


async def _is_orphan(bucket: Bucket, upload: Upload | None, finding: Finding) -> bool:
    if _is_named(bucket, upload, finding):
        return False
    # A multipart upload of tusd has a description (.info) beside it, and an id like those of this server.
    return upload is not None or finding.kind == TAIL or await bucket.head(f"{finding.name}.info") is None


def _is_named(bucket: Bucket, upload: Upload | None, finding: Finding) -> bool:
    if upload is None:
        return False
    layout = parse(upload.storage_state)
    if finding.kind == MULTIPART:
        return layout.multipart == finding.multipart
    return finding.name in {bucket.tail_key(upload, tail.name) for tail in layout.tails}


# The contents of the bucket.


async def _candidates(bucket: Bucket, older_than: float) -> AsyncIterator[Finding]:
    """Yield multipart uploads and tails that are old enough by the clock of S3, as that of this host may be wrong."""
    async for finding in _multipart_uploads(bucket, older_than):
        yield finding
    async for finding in _tails(bucket, older_than):
        yield finding


async def _multipart_uploads(bucket: Bucket, older_than: float) -> AsyncIterator[Finding]:
    fixed, pattern = key_pattern(bucket.config)
    below = {"Prefix": fixed} if bucket.config.capabilities.multipart_prefixes else {}
    async for page in bucket.list_pages("list_multipart_uploads", MULTIPART_CURSOR, **below):
        before = _now(page) - older_than
        for upload in page.get("Uploads", []):
            match = pattern.fullmatch(upload["Key"])
            created = _seconds(upload["Initiated"])
            if match and created <= before:
                yield Finding(MULTIPART, upload["Key"], match["id"], created, upload["UploadId"])


async def _tails(bucket: Bucket, older_than: float) -> AsyncIterator[Finding]:
    prefix = bucket.config.tails
    async for page in bucket.list_pages("list_objects_v2", OBJECT_CURSOR, Prefix=prefix):
        before = _now(page) - older_than
        for found in page.get("Contents", []):
            upload_id = found["Key"].removeprefix(prefix).partition(".")[0]
            created = _seconds(found["LastModified"])
            if created <= before and is_upload_id(upload_id):
                yield Finding(TAIL, found["Key"], upload_id, created)


def _now(answer: dict[str, Any]) -> float:
    """Return the time of the answer by the clock of S3, in seconds since the epoch."""
    try:
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
    except (KeyError, ValueError):
        return time.time()


def _seconds(moment: datetime) -> float:
    return moment.timestamp()
