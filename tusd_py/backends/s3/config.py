"""The configuration of the storage in S3: the bucket, the capabilities of its server, and the properties of objects."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tusd_py.core.option_types import Names, Number, Size

MIB = 1 << 20
MIN_PART = 5 << 20  # bytes; only the last part of an object may be smaller
MAX_PART = 5 << 30
MAX_OBJECT = 5 << 40
MAX_PARTS = 10_000
MAX_KEY = 1024  # bytes
MAX_ID = 128  # characters
MAX_VALUE_LENGTH, MIN_VALUE_LENGTH = 128, 16  # characters of a metadata value in a key
ENDPOINT = re.compile(r"https?://[^/\s?#]+/?")
MAX_TAGS = 10  # S3 takes no more, and only these characters
TAG = re.compile(r"[\w +\-.:/@]{1,128}=[\w +\-=.:/@]{0,256}")
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


def check_endpoint(value: str) -> str:
    """Return the URL of an S3 server; refuse one with a path."""
    if not ENDPOINT.fullmatch(value):
        raise ValueError("a URL such as https://s3.example.org")
    return value


def check_key_template(value: str) -> str:
    """Return the template of keys; refuse one in which an upload has no key of its own, or with unknown fields."""
    fields = FIELD.findall(value)
    if fields.count("id") != 1:
        raise ValueError("a key that contains {id} exactly once")
    unknown = [field for field in fields if not FIELD_NAME.fullmatch(field)]
    if unknown or set(FIELD.sub("", value)) & set("{}"):
        raise ValueError("a key made of text, {prefix}, {id} and {metadata.NAME}")
    return value


def check_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tags; refuse those that S3 does not take."""
    names = {tag.partition("=")[0] for tag in tags}
    if len(tags) > MAX_TAGS or len(names) < len(tags) or not all(TAG.fullmatch(tag) for tag in tags):
        raise ValueError(
            f"at most {MAX_TAGS} different pairs such as project=press,kind=upload,"
            " of letters, digits, spaces and +-=._:/@"
        )
    return tags


class S3Config(BaseModel):
    """The options of a storage in S3. Sizes are bytes, times are seconds.

    A field with a description is a setting; the others are for applications that build the storage themselves.
    Credentials come from the usual places of AWS clients (environment, profile).

    Raises:
        ValueError: values that cannot work; the message names the field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bucket: str = Field(default="", description="store the bytes in this S3 bucket instead of the upload directory")
    endpoint: Annotated[str, AfterValidator(check_endpoint)] | None = Field(
        default=None, description="URL of the S3 server, if it is not AWS"
    )
    region: str | None = Field(
        default=None, description="region of the bucket; if it is not given, that of the AWS configuration"
    )
    dialect: S3Dialect = Field(default="aws", description="kind of S3 server; plain uses no optional features of S3")
    addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="place of the bucket in URLs: in the path, or in the host name (virtual)"
    )
    prefix: str = Field(default="", description="prefix of the keys of all objects")
    key_template: Annotated[str, AfterValidator(check_key_template)] = Field(
        default="{prefix}{id}",
        description="key of a finished object; {id} has to occur, {metadata.NAME} is a metadata value of the client",
    )
    part_size: Size = Field(
        default=8 << 20,
        ge=MIN_PART,
        le=MAX_PART,
        description="size of multipart parts, 5MiB to 5GiB; larger where an upload would need too many",
    )
    buffer_size: Size = Field(
        default=32 << 20,
        ge=MIN_PART,
        description="memory for parts on their way to S3, of all uploads of a process together",
    )
    parts_in_flight: int = Field(default=4, ge=1)  # of one upload
    concurrency: Number = Field(
        default=16, ge=6, le=256, description="largest number of concurrent requests to S3 of one process, 6 to 256"
    )
    storage_class: str = Field(
        default="", description="storage class of objects; that of the bucket if it is not given"
    )
    encryption: Literal["", "AES256", "aws:kms", "aws:kms:dsse"] = Field(
        default="", description="server-side encryption of objects; that of the bucket if it is not given"
    )
    kms_key: str = Field(default="", description="id or ARN of the key for aws:kms")
    acl: str = Field(default="", description="canned ACL of objects")
    tags: Annotated[Names, AfterValidator(check_tags)] = Field(
        default=(), description="tags of objects, at most ten: name=value,..."
    )
    delete_versions: bool = Field(
        default=False, description="in a bucket that keeps versions, delete all of them with what is removed"
    )
    download: Literal["proxy", "redirect"] = Field(
        default="proxy", description="send downloads through this server, or clients to a presigned URL"
    )
    redirect_expires: int = 900  # lifetime of a presigned URL
    connect_timeout: float = 5
    read_timeout: float = 20
    attempts: int = Field(default=4, ge=1)  # of one request

    @model_validator(mode="after")
    def _check_length_of_keys(self) -> Self:
        if self.max_value < MIN_VALUE_LENGTH:
            raise ValueError(f"prefix and template of the keys in S3 are too long: a key has at most {MAX_KEY} bytes")
        return self

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
