"""The configuration of the storage in S3: the bucket, the capabilities of its server, and the properties of objects."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20
MIN_PART = 5 << 20  # bytes; only the last part of an object may be smaller
MAX_PART = 5 << 30
MAX_OBJECT = 5 << 40
MAX_PARTS = 10_000
MAX_KEY = 1024  # bytes
MAX_ID = 128  # characters
MAX_VALUE_LENGTH, MIN_VALUE_LENGTH = 128, 16  # characters of a metadata value in a key
FIELD = re.compile(r"\{([^{}]*)\}")
FIELD_NAME = re.compile(r"id|prefix|metadata\.[A-Za-z0-9_.-]+")

S3Dialect = Literal["aws", "minio", "r2", "scaleway", "ceph", "plain"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Capabilities of an S3 server beyond those of every S3 server."""

    checksum: Literal["crc32", "md5"] = "md5"  # how the bytes of a request are protected on their way
    conditional_put: bool = False  # If-None-Match and If-Match of PutObject
    part_copy: bool = True  # the server has UploadPartCopy and CopyObject
    equal_parts: bool = False  # all parts but the last must have one size
    max_parts: int = MAX_PARTS
    number_gaps: bool = True  # part numbers only have to ascend
    copied_checksums: bool = True  # copied parts get the kind of checksum that the multipart upload announced
    multipart_prefixes: bool = True  # multipart uploads can be listed by the beginning of their key


CAPABILITIES: dict[S3Dialect, Capabilities] = {
    "aws": Capabilities(checksum="crc32", conditional_put=True),
    "minio": Capabilities(checksum="crc32", conditional_put=True, copied_checksums=False, multipart_prefixes=False),
    "r2": Capabilities(conditional_put=True, equal_parts=True),
    "scaleway": Capabilities(max_parts=1000),
    "ceph": Capabilities(),
    "plain": Capabilities(part_copy=False, number_gaps=False),
}


def tails_below(prefix: str) -> str:
    """Return the prefix of the keys of all tails below the prefix of a storage."""
    return f"{prefix}.tusd-py/tails/"


@dataclass(frozen=True, slots=True)
class S3Config:
    """The options of a storage in S3. Sizes are bytes, times are seconds.

    Credentials come from the usual places of AWS clients (environment, profile).

    Raises:
        ValueError: values that cannot work, in one sentence for the operator.
    """

    bucket: str
    endpoint: str | None = None  # None: AWS
    region: str | None = None
    prefix: str = ""
    key_template: str = "{prefix}{id}"  # of the finished object; {metadata.NAME} stands for a value of Upload-Metadata
    addressing: Literal["auto", "path", "virtual"] = "auto"
    dialect: S3Dialect = "aws"
    part_size: int = 8 << 20
    buffer_size: int = 32 << 20  # bytes of parts in memory, of all uploads together
    parts_in_flight: int = 4  # of one upload
    concurrency: int = 16  # requests to S3 at a time
    storage_class: str = ""
    encryption: str = ""  # AES256, aws:kms, aws:kms:dsse
    kms_key: str = ""
    acl: str = ""
    tags: tuple[str, ...] = ()  # name=value
    download: Literal["proxy", "redirect"] = "proxy"
    delete_versions: bool = False  # delete every version of an object, where the bucket keeps them
    redirect_expires: int = 900  # lifetime of a presigned URL
    connect_timeout: float = 5
    read_timeout: float = 20
    attempts: int = 4  # of one request

    def __post_init__(self) -> None:
        if not self.bucket:
            raise ValueError("the bucket has no name")
        if self.dialect not in CAPABILITIES:
            raise ValueError(f"there is no dialect {self.dialect!r}")
        if not MIN_PART <= self.part_size <= MAX_PART:
            raise ValueError(f"the part size must be from {MIN_PART} to {MAX_PART} bytes")
        if min(self.parts_in_flight, self.concurrency, self.attempts, self.buffer_size) < 1:
            raise ValueError("the number of parts, requests, attempts and buffered bytes must be positive")
        fields = FIELD.findall(self.key_template)
        if fields.count("id") != 1:
            raise ValueError("the key must contain {id} exactly once")
        unknown = [field for field in fields if not FIELD_NAME.fullmatch(field)]
        if unknown or set(FIELD.sub("", self.key_template)) & set("{}"):
            raise ValueError("a key is made of text, {prefix}, {id} and {metadata.NAME}")
        if self.max_value < MIN_VALUE_LENGTH:
            raise ValueError(f"the key is too long: those of S3 have at most {MAX_KEY} bytes")

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the server, by its dialect."""
        return CAPABILITIES[self.dialect]

    @property
    def memory(self) -> int:
        """The limit for bytes of parts in memory, which a whole part has to fit into."""
        return max(self.buffer_size, self.part_size)

    @property
    def largest_part(self) -> int:
        """The bytes that the parts of an upload of unknown length grow to."""
        return max(self.part_size, min(MAX_PART, self.memory // MIB * MIB))

    @property
    def max_value(self) -> int:
        """The most characters of each metadata value in a key, so that any upload has a key that S3 accepts."""
        fields: list[str] = FIELD.findall(self.key_template)
        values = sum(field.startswith("metadata.") for field in fields)
        prefix = fields.count("prefix") * len(self.prefix.encode())
        room = MAX_KEY - len(FIELD.sub("", self.key_template).encode()) - prefix - MAX_ID
        return min(MAX_VALUE_LENGTH, room // max(1, values))

    @property
    def identity(self) -> str:
        """The key of the object that holds the identity of the storage."""
        return f"{self.prefix}.tusd-py/identity"

    @property
    def tails(self) -> str:
        """The prefix of the keys of all tails."""
        return tails_below(self.prefix)
