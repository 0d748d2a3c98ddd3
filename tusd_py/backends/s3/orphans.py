"""Orphan cleanup: aborts multipart uploads and deletes tails that no record names.

The records say what is alive, never a name: metadata in a key can look like an id. S3 is listed first and the records
are asked afterwards, so that whatever is listed was there before. An upload's own records are read again under its
lock before anything of it is removed.
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
BATCH_SIZE = 10_000  # findings compared with the records in one pass over them


@dataclass(frozen=True, slots=True)
class Finding(Orphan):
    """A multipart upload or a tail."""

    multipart: str = ""  # the id of a multipart upload


async def clean(engine: Bucket, records: UploadRecords, *, older_than: float, dry_run: bool) -> list[Finding]:
    """Remove orphans at least `older_than` seconds old; with `dry_run` only find them."""
    orphans: list[Finding] = []
    batch: list[Finding] = []
    async for finding in _candidates(engine, older_than):
        if not _is_named(engine, await records.get(finding.upload_id), finding):
            batch.append(finding)
        if len(batch) == BATCH_SIZE:
            orphans += await _clean_batch(engine, records, batch, dry_run=dry_run)
            batch.clear()
    return orphans + await _clean_batch(engine, records, batch, dry_run=dry_run)


async def _clean_batch(
    engine: Bucket, records: UploadRecords, batch: Sequence[Finding], *, dry_run: bool
) -> list[Finding]:
    tails = [finding for finding in batch if finding.kind == TAIL]
    multiparts = await _unnamed_multiparts(engine, records, [one for one in batch if one.kind == MULTIPART])
    return [one for one in (*multiparts, *tails) if await _clean_one(engine, records, one, dry_run=dry_run)]


async def _unnamed_multiparts(engine: Bucket, records: UploadRecords, findings: Sequence[Finding]) -> list[Finding]:
    """The multipart uploads that no record names, each with the upload it was made for.

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
        layout = parse(upload.layout)
        if layout.multipart in ids:
            named.add(layout.multipart)
        key = layout.key or object_key(engine.config, upload)
        if key in keys:
            owners[key] = upload.id
    pattern = generated_key_pattern(engine.config)
    found = []
    for finding in findings:
        match = pattern.fullmatch(finding.name) if pattern is not None else None
        owner = owners.get(finding.name) or (match["id"] if match else "")
        if owner and finding.multipart not in named:
            found.append(replace(finding, upload_id=owner))
    return found


async def _clean_one(engine: Bucket, records: UploadRecords, finding: Finding, *, dry_run: bool) -> bool:
    """Remove a finding that no record names at a second look; whether it was removed, or would be."""
    try:
        if dry_run:
            return await _is_orphan(engine, await records.get(finding.upload_id), finding)
        async with records.locked(finding.upload_id) as upload:
            if not await _is_orphan(engine, upload, finding):
                return False
            if finding.kind == MULTIPART:
                await engine.abort(finding.name, finding.multipart)
            else:
                await engine.remove([finding.name])
            return True
    except LockTimeout:
        return False  # a request is using the upload, and may be about to commit it
    except UploadError as error:  # of this one, the next round tries again
        logger.warning("the orphaned %s %s could not be removed: %s", finding.kind, finding.name, error.message)
        return False


async def _is_orphan(engine: Bucket, upload: Upload | None, finding: Finding) -> bool:
    if _is_named(engine, upload, finding):
        return False
    # tusd keeps a description of each upload beside it, and its ids look like ours.
    return upload is not None or finding.kind == TAIL or await engine.head(f"{finding.name}.info") is None


def _is_named(engine: Bucket, upload: Upload | None, finding: Finding) -> bool:
    if upload is None:
        return False
    layout = parse(upload.layout)
    if finding.kind == MULTIPART:
        return layout.multipart == finding.multipart
    return finding.name in {engine.tail_key(upload, tail.name) for tail in layout.tails}


# The contents of the bucket.


async def _candidates(engine: Bucket, older_than: float) -> AsyncIterator[Finding]:
    """List multipart uploads and tails that are old enough by the clock of S3: that of this host may be wrong."""
    async for finding in _multipart_uploads(engine, older_than):
        yield finding
    async for finding in _tails(engine, older_than):
        yield finding


async def _multipart_uploads(engine: Bucket, older_than: float) -> AsyncIterator[Finding]:
    fixed, pattern = key_pattern(engine.config)
    below = {"Prefix": fixed} if engine.config.capabilities.multipart_prefixes else {}
    marker: dict[str, str] = {}
    while True:
        answer = await engine.client.call("list_multipart_uploads", **below, **marker)
        before = _now(answer) - older_than
        for upload in answer.get("Uploads", []):
            match = pattern.fullmatch(upload["Key"])
            created = _seconds(upload["Initiated"])
            if match and created <= before:
                yield Finding(MULTIPART, upload["Key"], match["id"], created, upload["UploadId"])
        if not answer.get("IsTruncated"):
            return
        marker = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}


async def _tails(engine: Bucket, older_than: float) -> AsyncIterator[Finding]:
    prefix = engine.config.tails
    marker: dict[str, str] = {}
    while True:
        answer = await engine.client.call("list_objects_v2", Prefix=prefix, **marker)
        before = _now(answer) - older_than
        for found in answer.get("Contents", []):
            upload_id = found["Key"].removeprefix(prefix).partition(".")[0]
            created = _seconds(found["LastModified"])
            if created <= before and is_upload_id(upload_id):
                yield Finding(TAIL, found["Key"], upload_id, created)
        if not answer.get("IsTruncated"):
            return
        marker = {"ContinuationToken": answer["NextContinuationToken"]}


def _now(answer: dict[str, Any]) -> float:
    """When S3 answered, in seconds since the epoch."""
    try:
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
    except (KeyError, ValueError):
        return time.time()


def _seconds(moment: datetime) -> float:
    return moment.timestamp()
