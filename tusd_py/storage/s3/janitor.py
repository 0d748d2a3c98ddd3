"""Finds what crashes left in the bucket: multipart uploads and tails that no record names."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from tusd_py.storage.base import LayoutOf, Orphan
from tusd_py.storage.s3.engine import Engine
from tusd_py.storage.s3.layout import Layout, parse
from tusd_py.storage.s3.objects import key_pattern


@dataclass(frozen=True, slots=True)
class Finding(Orphan):
    """A multipart upload or a tail."""

    multipart: str = ""  # the id of a multipart upload


async def clean(engine: Engine, layout_of: LayoutOf, *, older_than: float, dry_run: bool) -> list[Finding]:
    """Remove what is found and at least `older_than` seconds old; with `dry_run` only find it."""
    before = time.time() - older_than
    found = []
    async for finding in _candidates(engine):
        if finding.created_at <= before and not await _is_needed(finding, layout_of, engine):
            found.append(finding)
    if not dry_run:
        for finding in found:
            if finding.kind == "multipart upload":
                await engine.abort(finding.name, finding.multipart)
        tails = [finding.name for finding in found if finding.kind == "tail"]
        if tails:
            await engine.remove(tails)
    return found


async def _is_needed(finding: Finding, layout_of: LayoutOf, engine: Engine) -> bool:
    text = await layout_of(finding.upload_id)
    layout = parse(text) if text is not None else Layout()
    if finding.kind == "multipart upload":
        return layout.multipart == finding.multipart
    return finding.name in {engine.tail_key(finding.upload_id, tail.name) for tail in layout.tails}


async def _candidates(engine: Engine) -> AsyncIterator[Finding]:
    async for finding in _multipart_uploads(engine):
        yield finding
    async for finding in _tails(engine):
        yield finding


async def _multipart_uploads(engine: Engine) -> AsyncIterator[Finding]:
    fixed, pattern = key_pattern(engine.config)
    below = {"Prefix": fixed} if engine.config.abilities.multipart_prefixes else {}
    marker: dict[str, str] = {}
    while True:
        answer = await engine.client.call("list_multipart_uploads", **below, **marker)
        for upload in answer.get("Uploads", []):
            match = pattern.fullmatch(upload["Key"])
            if match:
                created = _seconds(upload["Initiated"])
                yield Finding("multipart upload", upload["Key"], match["id"], created, upload["UploadId"])
        if not answer.get("IsTruncated"):
            return
        marker = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}


async def _tails(engine: Engine) -> AsyncIterator[Finding]:
    prefix = engine.config.tails
    marker: dict[str, str] = {}
    while True:
        answer = await engine.client.call("list_objects_v2", Prefix=prefix, **marker)
        for found in answer.get("Contents", []):
            upload_id = found["Key"].removeprefix(prefix).partition(".")[0]
            yield Finding("tail", found["Key"], upload_id, _seconds(found["LastModified"]))
        if not answer.get("IsTruncated"):
            return
        marker = {"ContinuationToken": answer["NextContinuationToken"]}


def _seconds(moment: datetime) -> float:
    return moment.timestamp()
