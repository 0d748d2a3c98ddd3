"""The HTTP messages of S3 for a `BucketModel`: a request in, an answer out, both as on the wire."""

from __future__ import annotations

import base64
import hashlib
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.simulation.s3_bucket import PAGE, BucketModel, S3Error, Stored, crc_of

KEPT = (
    "content-type",
    "content-disposition",
    "x-amz-meta-",
    "x-amz-tagging",
)  # beginnings of the names of headers that objects keep


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a bucket that is in the path of the URL."""

    method: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def operation(self) -> str:
        """The name that botocore has for the operation."""
        copies = "x-amz-copy-source" in self.headers
        if not self.key:
            if self.method == "POST":
                return "delete_objects"
            named = {
                "versioning": "get_bucket_versioning",
                "versions": "list_object_versions",
                "uploads": "list_multipart_uploads",
            }
            return next((name for flag, name in named.items() if flag in self.query), "list_objects_v2")
        if "uploads" in self.query:
            return "create_multipart_upload"
        if "uploadId" in self.query:
            names = {"POST": "complete_multipart_upload", "DELETE": "abort_multipart_upload", "GET": "list_parts"}
            return names.get(self.method, "upload_part_copy" if copies else "upload_part")
        names = {"GET": "get_object", "HEAD": "head_object", "DELETE": "delete_object"}
        return names.get(self.method, "copy_object" if copies else "put_object")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def parse(prepared: Any, body: bytes) -> Request:
    """Return the request that botocore has prepared."""
    url = urlsplit(prepared.url)
    _, _, key = unquote(url.path).removeprefix("/").partition("/")
    headers = {
        name.lower(): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in prepared.headers.items()
    }
    return Request(prepared.method, key, dict(parse_qsl(url.query, keep_blank_values=True)), headers, body)


def error(failure: S3Error, *, is_head: bool = False) -> Reply:
    body = b"" if is_head else f"<Error><Code>{failure.code}</Code><Message>-</Message></Error>".encode()
    return Reply(failure.status, body, {"Content-Type": "application/xml"})


def answer(bucket: BucketModel, request: Request) -> Reply:
    """Carry out a request and return its answer."""
    try:
        _check_body(request)
        reply: Reply = _OPERATIONS[request.operation](bucket, request)
    except S3Error as failure:
        reply = error(failure, is_head=request.method == "HEAD")
    return Reply(reply.status, reply.body, {"Date": formatdate(bucket.now, usegmt=True)} | reply.headers)


def _check_body(request: Request) -> None:
    declared = request.headers.get("content-length")
    if request.method == "PUT" and declared is not None and int(declared) != len(request.body):
        raise S3Error(400, "IncompleteBody")
    crc, md5 = request.headers.get("x-amz-checksum-crc32"), request.headers.get("content-md5")
    if crc is not None and request.method == "PUT" and crc != crc_of(request.body):
        raise S3Error(400, "BadDigest")
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    if md5 is not None and md5 != base64.b64encode(digest).decode():
        raise S3Error(400, "BadDigest")


def _kept(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.startswith(KEPT)}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _xml(name: str, *content: str) -> Reply:
    body = f'<?xml version="1.0" encoding="UTF-8"?><{name}>{"".join(content)}</{name}>'
    return Reply(200, body.encode(), {"Content-Type": "application/xml"})


def _tag(name: str, value: object) -> str:
    return f"<{name}>{escape(str(value))}</{name}>"


def _truncated(more: bool, **cursor: str) -> str:
    tags = _tag("IsTruncated", "true" if more else "false")
    return tags + ("".join(_tag(name, value) for name, value in cursor.items()) if more else "")


# Objects.


def _put_object(bucket: BucketModel, request: Request) -> Reply:
    conditions = (request.headers.get("if-match", ""), request.headers.get("if-none-match", ""))
    return Reply(200, b"", {"ETag": bucket.put(request.key, request.body, _kept(request), *conditions).etag})


def _head_object(bucket: BucketModel, request: Request) -> Reply:
    stored = bucket.get(request.key)
    headers = {"Content-Length": str(len(stored.content)), "Last-Modified": formatdate(stored.at, usegmt=True)}
    return Reply(200, b"", headers | {"ETag": stored.etag} | stored.headers)


def _get_object(bucket: BucketModel, request: Request) -> Reply:
    stored = bucket.get(request.key)
    content, status = stored.content, 200
    if "range" in request.headers:
        first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        if first >= len(content):
            raise S3Error(416, "InvalidRange")
        content, status = content[first : last + 1], 206
    return Reply(status, content, {"Content-Length": str(len(content)), "ETag": stored.etag} | stored.headers)


def _delete_object(bucket: BucketModel, request: Request) -> Reply:
    bucket.delete(request.key, request.query.get("versionId", ""))
    return Reply(204)


def _delete_objects(bucket: BucketModel, request: Request) -> Reply:
    for element in ET.fromstring(request.body).iter():
        if element.tag.endswith("Key"):
            bucket.delete(element.text or "")
    return _xml("DeleteResult")


def _source(bucket: BucketModel, request: Request) -> Stored:
    if not bucket.capabilities.part_copy:
        raise S3Error(501, "NotImplemented")
    _, _, key = unquote(request.headers["x-amz-copy-source"]).removeprefix("/").partition("/")
    return bucket.get(key)


def _copy_object(bucket: BucketModel, request: Request) -> Reply:
    stored = bucket.put(request.key, _source(bucket, request).content, _kept(request), "", "")
    return _xml("CopyObjectResult", _tag("ETag", stored.etag), _tag("LastModified", _moment(stored.at)))


def _list_objects(bucket: BucketModel, request: Request) -> Reply:
    after = request.query.get("continuation-token", "")
    keys, more = bucket.list_objects(request.query.get("prefix", ""), after)
    entries = [
        _tag("Key", key)
        + _tag("LastModified", _moment(bucket.objects[key].at))
        + _tag("ETag", bucket.objects[key].etag)
        for key in keys
    ]
    contents = [f"<Contents>{entry}</Contents>" for entry in entries]
    return _xml("ListBucketResult", *contents, _truncated(more, NextContinuationToken=keys[-1] if keys else ""))


def _versioning(bucket: BucketModel, request: Request) -> Reply:
    return _xml("VersioningConfiguration", *([_tag("Status", "Enabled")] if bucket.keeps_versions else []))


def _list_versions(bucket: BucketModel, request: Request) -> Reply:
    prefix = request.query.get("prefix", "")
    after = (request.query.get("key-marker", ""), request.query.get("version-id-marker", ""))
    found = sorted((key, each) for key, ids in bucket.versions.items() for each in ids if key.startswith(prefix))
    found = [entry for entry in found if entry > after]
    entries = [f"<Version>{_tag('Key', key)}{_tag('VersionId', each)}</Version>" for key, each in found[:PAGE]]
    last = found[:PAGE][-1] if found else ("", "")
    cursor = {"NextKeyMarker": last[0], "NextVersionIdMarker": last[1]}
    return _xml("ListVersionsResult", *entries, _truncated(len(found) > PAGE, **cursor))


# Multipart uploads.


def _create(bucket: BucketModel, request: Request) -> Reply:
    upload_id = bucket.create(request.key, _kept(request))
    return _xml("InitiateMultipartUploadResult", _tag("Key", request.key), _tag("UploadId", upload_id))


def _upload_part(bucket: BucketModel, request: Request) -> Reply:
    number = int(request.query["partNumber"])
    stored = bucket.put_part(request.key, request.query["uploadId"], number, request.body)
    return Reply(200, b"", {"ETag": stored.etag})


def _upload_part_copy(bucket: BucketModel, request: Request) -> Reply:
    content = _source(bucket, request).content
    first, last = map(int, request.headers["x-amz-copy-source-range"].removeprefix("bytes=").split("-"))
    if last >= len(content):
        raise S3Error(400, "InvalidArgument")
    number = int(request.query["partNumber"])
    stored = bucket.put_part(request.key, request.query["uploadId"], number, content[first : last + 1])
    crc = _tag("ChecksumCRC32", stored.crc) if bucket.capabilities.copied_checksums else ""
    return _xml("CopyPartResult", _tag("ETag", stored.etag), crc)


def _complete(bucket: BucketModel, request: Request) -> Reply:
    listed = []
    for part in ET.fromstring(request.body):
        fields = {child.tag.rpartition("}")[2]: child.text or "" for child in part}
        listed.append((int(fields["PartNumber"]), fields["ETag"], fields.get("ChecksumCRC32", "")))
    stored = bucket.complete(request.key, request.query["uploadId"], listed)
    return _xml("CompleteMultipartUploadResult", _tag("Key", request.key), _tag("ETag", stored.etag))


def _abort(bucket: BucketModel, request: Request) -> Reply:
    bucket.abort(request.key, request.query["uploadId"])
    return Reply(204)


def _list_parts(bucket: BucketModel, request: Request) -> Reply:
    pending = bucket.find(request.key, request.query["uploadId"])
    after = int(request.query.get("part-number-marker", 0))
    numbers = sorted(number for number in pending.parts if number > after)
    entries = []
    for number in numbers[:PAGE]:
        part = pending.parts[number]
        fields = {"PartNumber": number, "Size": len(part.content), "ETag": part.etag, "ChecksumCRC32": part.crc}
        entries.append(f"<Part>{''.join(_tag(name, value) for name, value in fields.items())}</Part>")
    marker = str(numbers[:PAGE][-1]) if numbers else ""
    return _xml("ListPartsResult", *entries, _truncated(len(numbers) > PAGE, NextPartNumberMarker=marker))


def _list_uploads(bucket: BucketModel, request: Request) -> Reply:
    after = (request.query.get("key-marker", ""), request.query.get("upload-id-marker", ""))
    prefix = request.query.get("prefix", "")
    found = sorted(
        (pending.key, upload_id, pending.at)
        for upload_id, pending in bucket.pending.items()
        if pending.key.startswith(prefix) and (pending.key, upload_id) > after
    )
    entries = [
        f"<Upload>{_tag('Key', key)}{_tag('UploadId', upload_id)}{_tag('Initiated', _moment(at))}</Upload>"
        for key, upload_id, at in found[:PAGE]
    ]
    last = found[:PAGE][-1] if found else ("", "", 0.0)
    cursor = {"NextKeyMarker": last[0], "NextUploadIdMarker": last[1]}
    return _xml("ListMultipartUploadsResult", *entries, _truncated(len(found) > PAGE, **cursor))


_OPERATIONS = {
    "put_object": _put_object,
    "head_object": _head_object,
    "get_object": _get_object,
    "delete_object": _delete_object,
    "delete_objects": _delete_objects,
    "copy_object": _copy_object,
    "list_objects_v2": _list_objects,
    "get_bucket_versioning": _versioning,
    "list_object_versions": _list_versions,
    "create_multipart_upload": _create,
    "upload_part": _upload_part,
    "upload_part_copy": _upload_part_copy,
    "complete_multipart_upload": _complete,
    "abort_multipart_upload": _abort,
    "list_parts": _list_parts,
    "list_multipart_uploads": _list_uploads,
}
