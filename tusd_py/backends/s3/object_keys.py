"""Keys and properties of objects: pure functions of the configuration and the record."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from typing import Any
from urllib.parse import urlencode

from tusd_py.backends.s3.config import FIELD, S3Config, tails_below
from tusd_py.core import metadata
from tusd_py.core.errors import StoredElsewhere, UploadNotFound
from tusd_py.core.metadata import DEFAULT_TYPE, MAX_NAME_LENGTH, content_type_of, file_name_of, readable_metadata
from tusd_py.core.upload import Upload, is_upload_id

UNSAFE_IN_KEY = re.compile(r"[^A-Za-z0-9!_.*'()-]+")
ANY_ID = r"(?P<id>[A-Za-z0-9_-]{1,128})"
GENERATED_ID = r"(?P<id>[0-9a-f]{32})"
MAX_TYPE = 127  # characters
MAX_DISPOSITION = 1024  # bytes; S3 refuses an object with more than 2 KiB of metadata
OWNER = "tusd-py-upload"  # name in the metadata of an object: a digest of the upload's id
PUT_ID = "tusd-py-put"  # name in the metadata of an object: the request that made it


def _key_values(upload: Upload) -> dict[str, str]:
    """Return Upload-Metadata as text for the key, without pairs that cannot be read.

    Invariant: the result never changes, since keys of records without a location depend on it. For this reason Base64
    without padding, which the server accepts elsewhere, has no value here.
    """
    values = {}
    for pair in (upload.metadata or "").split(","):
        name, _, encoded = pair.strip().partition(" ")
        try:
            values[name] = base64.b64decode(encoded, validate=True).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            continue
    return values


def object_key(config: S3Config, upload: Upload) -> str:
    """Return the key of the finished object; values that clients choose are reduced to harmless characters."""
    if not is_upload_id(upload.id):
        raise UploadNotFound
    if upload.location:
        return _parsed(upload.location)[1]
    values = _key_values(upload)

    def value(field: re.Match[str]) -> str:
        name = field[1]
        if name == "id":
            return upload.id
        if name == "prefix":
            return config.prefix
        text = values.get(name.removeprefix("metadata."), "").replace("\\", "/").rpartition("/")[2]
        return UNSAFE_IN_KEY.sub("_", text)[: config.max_value].strip(".") or "_"

    return FIELD.sub(value, config.key_template)


def location_of(config: S3Config, upload: Upload) -> str:
    """Return the location of a new upload by this configuration: the prefix of its tails, and the key of its object."""
    return json.dumps([config.prefix, object_key(config, upload)], separators=(",", ":"))


def tails_of(config: S3Config, upload: Upload) -> str:
    """Return the prefix of the keys of the tails of an upload."""
    return tails_below(_parsed(upload.location)[0]) if upload.location else config.tails


def _parsed(location: str) -> tuple[str, str]:
    try:
        prefix, key = json.loads(location)
    except ValueError:  # a location of another backend
        raise StoredElsewhere from None
    return str(prefix), str(key)


def key_pattern(config: S3Config) -> tuple[str, re.Pattern[str]]:
    """Return the common prefix of all keys, and a pattern whose group `id` is the upload that a key belongs to."""
    pattern, fixed, open_end = "", "", False
    last = 0
    for field in FIELD.finditer(config.key_template):
        text = config.key_template[last : field.start()] + (config.prefix if field[1] == "prefix" else "")
        last = field.end()
        pattern += re.escape(text)
        fixed += "" if open_end else text
        if field[1] != "prefix":
            open_end = True
            pattern += ANY_ID if field[1] == "id" else r"[^/]*"
    pattern += re.escape(config.key_template[last:])
    return fixed, re.compile(pattern)


def generated_key_pattern(config: S3Config) -> re.Pattern[str] | None:
    """Return the pattern of keys that only a server with this configuration makes, or None.

    In such a key the id, as servers generate it, directly follows fixed text. None if metadata comes first, which could
    be the beginning of another server's prefix, or if the prefix that distinguishes this server is not in the key.
    """
    names: list[str] = FIELD.findall(config.key_template)
    has_prefix = not config.prefix or "prefix" in names
    if not has_prefix or next(name for name in names if name != "prefix") != "id":
        return None
    _, pattern = key_pattern(config)
    return re.compile(pattern.pattern.replace(ANY_ID, GENERATED_ID, 1))


def owner(upload: Upload) -> str:
    """Return a digest for the metadata of an object that identifies its upload without revealing the id."""
    return hashlib.sha256(upload.id.encode()).hexdigest()[:32]


def protection(config: S3Config) -> dict[str, Any]:
    """Return the parameters of encryption, for every object that holds bytes of an upload."""
    parameters = {"ServerSideEncryption": config.encryption, "SSEKMSKeyId": config.kms_key}
    return {name: value for name, value in parameters.items() if value}


def properties(config: S3Config, upload: Upload, put_id: str) -> dict[str, Any]:
    """Return the parameters of the request that makes the object of an upload."""
    parameters = protection(config) | {
        "Metadata": {OWNER: owner(upload), PUT_ID: put_id},
        "ContentType": content_type(upload),
        "ContentDisposition": content_disposition(upload),
        "StorageClass": config.storage_class,
        "ACL": config.acl,
        "Tagging": urlencode([(name, value) for name, _, value in (tag.partition("=") for tag in config.tags)]),
    }
    return {name: value for name, value in parameters.items() if value}


def content_type(upload: Upload) -> str:
    """Return the media type of the object; a very long one is replaced by the default."""
    found = content_type_of(readable_metadata(upload.metadata or ""))
    return found if len(found) <= MAX_TYPE else DEFAULT_TYPE


def content_disposition(upload: Upload) -> str:
    """Return the disposition of the object: a download under its name, since a bucket must serve no active content."""
    name, size = file_name_of(readable_metadata(upload.metadata or "")), MAX_NAME_LENGTH
    while len(disposition := metadata.content_disposition("attachment", name, size)) > MAX_DISPOSITION:
        size -= 8
    return disposition


def token_of(put_id: str) -> int:
    """Return the fencing token in the put id of an object; -1 if there is none."""
    token = put_id.partition("-")[0]
    return int(token) if token.isascii() and token.isdigit() else -1
