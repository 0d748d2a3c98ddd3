"""Errors with a stable code and one sentence; upload errors know nothing of HTTP.

The code is the same in answers, logs and metrics. The table in `http/errors.py` gives every `UploadError` its status;
an `HTTPError` has its own. Both are `CodedError`s, and neither derives from the other.
"""

from __future__ import annotations


class CodedError(Exception):
    """Base of all errors that a client may see, with a stable `code` and one sentence, `message`.

    Attributes:
        code: `ERR_` and a name, the same in answers, logs and metrics.
        default_message: the sentence of an error that is raised without one.

    Example: see `UploadError`.
    """

    code = "ERR_INTERNAL_SERVER_ERROR"
    default_message = "something went wrong in the server"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.default_message)

    @property
    def message(self) -> str:
        """The sentence of the error, which a client may see."""
        return str(self.args[0])


class UploadError(CodedError):
    """Base of every error of an upload.

    Example::

        try:
            upload = await tus.uploads.get(upload_id)
        except UploadNotFound:
            ...
        except UploadError as error:
            logger.warning("%s: %s", error.code, error.message)
    """

    default_message = "something went wrong with the upload in the server"


class UploadNotFound(UploadError):
    """No upload has this id, it is not complete where that is needed, or it has ended."""

    default_message = "there is no such upload"
    code = "ERR_UPLOAD_NOT_FOUND"


class UploadGone(UploadError):
    """The upload has ended, and the setting `gone_for` still remembers it."""

    default_message = "the upload has expired or was terminated"
    code = "ERR_UPLOAD_GONE"


class UploadExists(UploadError):
    """A record with this id exists already. Raised by `StateStore.create`."""

    default_message = "an upload with this id exists already"
    code = "ERR_UPLOAD_EXISTS"


class WrongStatus(UploadError):
    """An administrator wants to do with an upload what its state does not allow."""

    default_message = "the state of the upload does not allow this"
    code = "ERR_WRONG_STATUS"


class OffsetMismatch(UploadError):
    """The offset of a request is not that of the upload, which `offset` names."""

    default_message = "the given offset is not the offset of the upload"
    code = "ERR_MISMATCHED_OFFSET"

    def __init__(self, offset: int) -> None:
        super().__init__(f"the upload is at offset {offset}")
        self.offset = offset


class SizeExceeded(UploadError):
    """A request brings more bytes than the length of the upload leaves room for."""

    default_message = "the request holds more bytes than the length of the upload leaves room for"
    code = "ERR_UPLOAD_SIZE_EXCEEDED"


class MaxSizeExceeded(UploadError):
    """An upload is larger than the setting `max_size` or the storage accepts."""

    default_message = "the upload is larger than this server accepts"
    code = "ERR_MAX_SIZE_EXCEEDED"


class QuotaExceeded(UploadError):
    """The owner of an upload has no room for it: the setting `quota_bytes` or `quota_uploads`, or the claim of a token.

    Raised by `StateStore.create` and `StateStore.update` of a store that counts (`SupportsQuotas`).
    """

    default_message = "the quota of the owner is exhausted"
    code = "ERR_QUOTA_EXCEEDED"


class InvalidLength(UploadError):
    """A declared length contradicts the record."""

    default_message = "the declared length contradicts what is known of the upload"
    code = "ERR_INVALID_UPLOAD_LENGTH"


class FinalUploadModified(UploadError):
    """A request wants to append to a final upload, which is made of partial ones only."""

    default_message = "a final upload cannot be modified"
    code = "ERR_MODIFY_FINAL"


class ChecksumMismatch(UploadError):
    """The digest of a request is not that of its bytes, which were discarded."""

    default_message = "the checksum does not match the bytes received; they were discarded"
    code = "ERR_CHECKSUM_MISMATCH"


class ContentRefused(UploadError):
    """The bytes of an upload do not fulfil its conditions; the upload was removed."""

    default_message = "the content of the upload is not accepted; the upload was removed"


class DigestMismatch(ContentRefused):
    """A digest of the whole upload, which its creation named, is not that of its bytes."""

    default_message = "the digest of the upload is another one; the upload was removed"
    code = "ERR_DIGEST_MISMATCH"


class TypeNotAllowed(ContentRefused):
    """The upload has a media type that is not allowed, as its client declares it or by its first bytes."""

    default_message = "files of this type are not allowed here"
    code = "ERR_TYPE_NOT_ALLOWED"


class MalwareFound(ContentRefused):
    """A scanner has found malware in the upload."""

    default_message = "the upload holds malware and was removed"
    code = "ERR_MALWARE_FOUND"


class ScanSizeExceeded(ContentRefused):
    """The upload is too large to be scanned for malware, and must be."""

    default_message = "the upload is too large to be scanned for malware, and was removed"
    code = "ERR_SCAN_SIZE_EXCEEDED"


class InvalidConcatenation(UploadError):
    """The partial uploads that a request names cannot be put together."""

    default_message = "the uploads cannot be concatenated"
    code = "ERR_INVALID_CONCAT"


class PartialUnfinished(UploadError):
    """The partial upload `partial_id` is not complete yet."""

    code = "ERR_UPLOAD_NOT_FINISHED"

    def __init__(self, partial_id: str, message: str = "") -> None:
        super().__init__(message or f"partial upload {partial_id} is not finished yet")
        self.partial_id = partial_id


class PartialLost(PartialUnfinished):
    """The partial upload `partial_id` was complete, and its storage has lost bytes of it since."""

    def __init__(self, partial_id: str, stored: int) -> None:
        super().__init__(
            partial_id,
            f"partial upload {partial_id} has lost bytes and is at offset {stored} again; "
            "send it the rest, then concatenate again",
        )


class HookUnavailable(UploadError):
    """A hook of the application gave no valid answer in time; the question is asked again. Try again."""

    default_message = "the application cannot be asked about this upload now; try again"
    code = "ERR_HOOK_UNAVAILABLE"

    def __init__(self, message: str = "", *, explanation: str = "") -> None:
        """Take an `explanation` for the operator, a sentence that no client sees."""
        super().__init__(message)
        self.explanation = explanation or self.message
        self.created = ""  # id of an upload that exists now, although the request that created it has failed


class ScanUnavailable(HookUnavailable):
    """The upload cannot be scanned for malware now, and stays until it can. Try again."""

    default_message = "the upload cannot be scanned for malware now; try again"
    code = "ERR_SCAN_UNAVAILABLE"


class HookRejected(UploadError):
    """A hook of the application refused the request, with an answer of its own for the client.

    Attributes:
        status: the status of the answer.
        headers: header fields of the answer.
        body: the body of the answer; None for the text of the server.
    """

    default_message = "the upload was rejected"
    code = "ERR_UPLOAD_REJECTED"

    def __init__(
        self, message: str = "", *, status: int = 400, headers: dict[str, str] | None = None, body: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body = body


class TerminationRejected(HookRejected):
    """A hook of the application refused to remove the upload."""

    default_message = "the termination of the upload was rejected"
    code = "ERR_UPLOAD_TERMINATION_REJECTED"


class UploadStopped(HookRejected):
    """A hook of the application ended the upload, which was removed."""

    default_message = "the upload was stopped by the application, and removed"
    code = "ERR_UPLOAD_STOPPED"


class PathTaken(UploadError):
    """The place that a hook chose for the bytes of a new upload belongs to another upload, or something is there."""

    default_message = "the place that the application chose for the upload is taken"
    code = "ERR_PATH_TAKEN"

    def __init__(self, message: str = "", *, holder: str = "") -> None:
        """Take the id of the upload that has claimed the place, if there is one."""
        super().__init__(message)
        self.holder = holder


class LockTimeout(UploadError):
    """The lock of an upload was not obtained in time: another request uses the upload. Try again."""

    default_message = "another request is using the upload; try again"
    code = "ERR_UPLOAD_LOCKED"


class LockLost(UploadError):
    """The lock of an upload went to another holder; the change was not made."""

    default_message = "this request no longer holds the lock of the upload; nothing was changed"
    code = "ERR_LOCK_LOST"


class UploadInterrupted(UploadError):
    """Another request took over the upload; the bytes received until then are kept."""

    default_message = "another request took over the upload; the bytes received so far are kept"
    code = "ERR_UPLOAD_INTERRUPTED"


class ReadTimeout(UploadError):
    """The client sent nothing, or too little, for too long."""

    default_message = "the client sent too little for too long; the bytes received so far are kept"
    code = "ERR_READ_TIMEOUT"


class WriteTimeout(UploadError):
    """The client took too little of an answer for too long."""

    default_message = "the client took too little of the answer for too long"
    code = "ERR_WRITE_TIMEOUT"


class IncompleteBody(UploadError):
    """The web server did not pass on the body of a request, as with Upgrade."""

    default_message = "the body of the request did not arrive; send it without Upgrade"
    code = "ERR_INCOMPLETE_BODY"


class ServerShutdown(UploadError):
    """The server is shutting down and begins no new work."""

    default_message = "the server is shutting down; the bytes received so far are kept"
    code = "ERR_SERVER_SHUTDOWN"


class NotReady(UploadError):
    """The server has not been able to start yet. Try again."""

    default_message = "the server is not ready yet; try again"
    code = "ERR_NOT_READY"


class AuthenticationUnavailable(UploadError):
    """The sender of a request cannot be found out now: an issuer of tokens, or the application, is away. Try again."""

    default_message = "the server cannot tell now who you are; try again"
    code = "ERR_AUTHENTICATION_UNAVAILABLE"


class ClientDisconnected(UploadError):
    """The client closed the connection; the bytes received until then are kept."""

    default_message = "the client closed the connection; the bytes received so far are kept"
    code = "ERR_CLIENT_DISCONNECTED"


class StorageFull(UploadError):
    """The storage has no room for more bytes; those stored until then are kept."""

    default_message = "the storage is full; the bytes stored so far are kept"
    code = "ERR_STORAGE_FULL"


class StorageUnavailable(UploadError):
    """The storage cannot be used now, or not with these settings."""

    default_message = "the storage cannot be used now"
    code = "ERR_STORAGE_UNAVAILABLE"


class StoredElsewhere(StorageUnavailable):
    """The record names another storage than the configured one."""

    default_message = "the bytes of this upload are in another storage than the one that is configured"


class CompletionDelayed(StorageUnavailable):
    """A sync has failed that no byte depends on: the upload keeps its offset, and its completion is tried again."""

    default_message = "the upload cannot be completed now; all its bytes are stored"


class WrongStorage(StorageUnavailable):
    """The storage does not show the identity that the records name, so that absence of bytes proves nothing."""

    default_message = "the storage of this upload is away"

    def __init__(self, message: str = "", *, explanation: str = "") -> None:
        """Take an `explanation` for the operator, a sentence that no client sees."""
        super().__init__(message)
        self.explanation = explanation or self.message


class StorageBehind(UploadError):
    """The storage holds `stored` bytes, fewer than were committed."""

    default_message = "the storage holds fewer bytes than were committed"
    code = "ERR_STORAGE_BEHIND"

    def __init__(self, stored: int) -> None:
        super().__init__(f"the storage holds {stored} bytes")
        self.stored = stored


class PartBehind(StorageBehind):
    """The storage holds `stored` bytes of the partial upload `upload_id`, fewer than were committed."""

    default_message = "the storage holds fewer bytes of a partial upload than were committed"

    def __init__(self, upload_id: str, stored: int) -> None:
        super().__init__(stored)
        self.upload_id = upload_id


class StorageAhead(UploadError):
    """The storage has the finished upload, while the record says that it is unfinished."""

    default_message = "the storage has the finished upload, of which the record knows nothing"
    code = "ERR_STORAGE_AHEAD"


class BrokenRecord(UploadError):
    """A record cannot be read. `reason` is for the operator; `remains` is an `Upload` of what can be read."""

    default_message = "the record of the upload cannot be read"
    code = "ERR_BROKEN_RECORD"

    def __init__(self, upload_id: str, reason: str, remains: object) -> None:
        super().__init__()
        self.upload_id = upload_id
        self.reason = reason  # for the operator
        self.remains = remains  # an `Upload` of what can be read, enough to remove it


class StateUnavailable(UploadError):
    """The state store or the locker cannot be used now, or not with these settings."""

    default_message = "the records of the uploads cannot be used now"
    code = "ERR_STATE_UNAVAILABLE"


class StateFull(StateUnavailable):
    """The state store has no room for more records."""

    default_message = "there is no room for the records of the uploads"
    code = "ERR_STATE_FULL"
