"""The errors of S3 and of the connection to it, as upload errors."""

from __future__ import annotations

from tusd_py.core.errors import StorageFull, StorageUnavailable, UploadError, UploadNotFound

FULL_CODES = frozenset(["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "StorageFull", "507"])
DENIED_CODES = frozenset(
    ["AccessDenied", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"]
)
# Codes of answers without a body, as S3 sends them; a 404 with a body comes from a gateway that does not find S3.
BODYLESS_CODES = frozenset(["404", "NotFound"])


class ObjectMissing(UploadNotFound):
    """An object that is not in the bucket."""

    default_message = "the object is no longer there"


class MultipartMissing(UploadNotFound):
    """A multipart upload that was aborted or completed."""

    default_message = "the multipart upload was aborted; its bytes are lost"


class BytesMissing(StorageUnavailable):
    """Bytes of a part that are neither in memory nor in a tail."""

    default_message = "bytes on their way to the storage were lost"


class NotSatisfied(StorageUnavailable):
    """A condition of a PutObject that does not hold."""

    default_message = "another object has this key"


class PartsRefused(StorageUnavailable):
    """A completion of a multipart upload with parts that S3 does not have."""

    default_message = "the storage does not have the parts that were stored"


def code_of(error: BaseException) -> str:
    """Return a short stable name of an error, for metrics."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code") or "Unknown")
    return type(error).__name__


def translate(error: Exception, bucket: str) -> UploadError:
    """Return the upload error for an error of botocore."""
    code = code_of(error)
    if code == "NoSuchBucket":
        return StorageUnavailable(f"there is no bucket {bucket}")
    if code == "NoSuchUpload":
        return MultipartMissing()
    if code == "NoSuchKey" or (code in BODYLESS_CODES and getattr(error, "operation_name", "") == "HeadObject"):
        return ObjectMissing()
    if code in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
        return NotSatisfied()
    if code in ("InvalidPart", "InvalidPartOrder", "EntityTooSmall"):
        return PartsRefused()
    if code in FULL_CODES:
        return StorageFull()
    if code in DENIED_CODES or code in ("403", "Forbidden"):
        return StorageUnavailable(f"the storage refused the credentials for bucket {bucket} ({code})")
    if code == "ParamValidationError":
        return StorageUnavailable(f"a name is not valid: {' '.join(str(error).split())}")
    if code in ("NoCredentialsError", "PartialCredentialsError"):
        return StorageUnavailable("there are no credentials for the storage")
    if code in ("RequestTimeTooSkewed", "RequestExpired"):
        return StorageUnavailable("the storage refuses the time of this host: its clock is wrong")
    if getattr(error, "response", None) is not None:
        return StorageUnavailable(f"the storage answered {code}")
    return StorageUnavailable(f"the storage cannot be reached ({code})")
