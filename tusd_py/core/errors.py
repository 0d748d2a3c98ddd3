"""Everything that can go wrong with an upload, as typed values without a word of HTTP.

Every error has a stable `code` (the same in answers, logs and metrics) and one clear sentence. The table in
`http/errors.py` turns each into an answer on the wire.
"""

from __future__ import annotations


class UploadError(Exception):
    """Base of every error that a request to the service can end with."""

    code = "ERR_INTERNAL_SERVER_ERROR"
    default_message = "something went wrong in the server"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.default_message)

    @property
    def message(self) -> str:
        return str(self.args[0])


class UploadNotFound(UploadError):
    default_message = "there is no such upload"
    code = "ERR_UPLOAD_NOT_FOUND"


class UploadGone(UploadError):
    default_message = "the upload has expired or was terminated"
    code = "ERR_UPLOAD_GONE"


class UploadExists(UploadError):
    default_message = "an upload with this id exists already"
    code = "ERR_UPLOAD_EXISTS"


class OffsetMismatch(UploadError):
    default_message = "the given offset is not the offset of the upload"
    code = "ERR_MISMATCHED_OFFSET"

    def __init__(self, offset: int) -> None:
        super().__init__(f"the upload is at offset {offset}")
        self.offset = offset


class SizeExceeded(UploadError):
    default_message = "the request holds more bytes than the length of the upload leaves room for"
    code = "ERR_UPLOAD_SIZE_EXCEEDED"


class MaxSizeExceeded(UploadError):
    default_message = "the upload is larger than this server accepts"
    code = "ERR_MAX_SIZE_EXCEEDED"


class InvalidLength(UploadError):
    default_message = "the declared length contradicts what is known of the upload"
    code = "ERR_INVALID_UPLOAD_LENGTH"


class FinalUploadModified(UploadError):
    default_message = "a final upload cannot be modified"
    code = "ERR_MODIFY_FINAL"


class ChecksumMismatch(UploadError):
    default_message = "the checksum does not match the bytes received; they were discarded"
    code = "ERR_CHECKSUM_MISMATCH"


class InvalidConcatenation(UploadError):
    default_message = "the uploads cannot be concatenated"
    code = "ERR_INVALID_CONCAT"


class PartialUnfinished(UploadError):
    code = "ERR_UPLOAD_NOT_FINISHED"

    def __init__(self, partial_id: str, message: str = "") -> None:
        super().__init__(message or f"partial upload {partial_id} is not finished yet")
        self.partial_id = partial_id


class PartialLost(PartialUnfinished):
    def __init__(self, partial_id: str, stored: int) -> None:
        super().__init__(
            partial_id,
            f"partial upload {partial_id} has lost bytes and is at offset {stored} again; "
            "send it the rest, then concatenate again",
        )


class LockTimeout(UploadError):
    default_message = "another request is using the upload; try again"
    code = "ERR_UPLOAD_LOCKED"


class LockLost(UploadError):
    default_message = "this request no longer holds the lock of the upload; nothing was changed"
    code = "ERR_LOCK_LOST"


class UploadInterrupted(UploadError):
    default_message = "another request took over the upload; the bytes received so far are kept"
    code = "ERR_UPLOAD_INTERRUPTED"


class ReadTimeout(UploadError):
    default_message = "the client sent too little for too long; the bytes received so far are kept"
    code = "ERR_READ_TIMEOUT"


class WriteTimeout(UploadError):
    default_message = "the client took too little of the answer for too long"
    code = "ERR_WRITE_TIMEOUT"


class IncompleteBody(UploadError):
    default_message = "the body of the request did not arrive; send it without Upgrade"
    code = "ERR_INCOMPLETE_BODY"


class ServerShutdown(UploadError):
    default_message = "the server is shutting down; the bytes received so far are kept"
    code = "ERR_SERVER_SHUTDOWN"


class NotReady(UploadError):
    default_message = "the server is not ready yet; try again"
    code = "ERR_NOT_READY"


class ClientDisconnected(UploadError):
    default_message = "the client closed the connection; the bytes received so far are kept"
    code = "ERR_CLIENT_DISCONNECTED"


class StorageFull(UploadError):
    default_message = "the storage is full; the bytes stored so far are kept"
    code = "ERR_STORAGE_FULL"


class StorageUnavailable(UploadError):
    default_message = "the storage cannot be used now"
    code = "ERR_STORAGE_UNAVAILABLE"


class StoredElsewhere(StorageUnavailable):
    default_message = "the bytes of this upload are in another storage than the one that is configured"


class WrongStorage(StorageUnavailable):
    """Absence of bytes is no knowledge here: this is not, or not certainly, the storage that the records name."""

    default_message = "the storage of this upload is away"

    def __init__(self, message: str = "", *, explanation: str = "") -> None:
        """`explanation` is a sentence for the operator, which no client sees."""
        super().__init__(message)
        self.explanation = explanation or self.message


class StorageBehind(UploadError):
    default_message = "the storage holds fewer bytes than were committed"
    code = "ERR_STORAGE_BEHIND"

    def __init__(self, stored: int) -> None:
        super().__init__(f"the storage holds {stored} bytes")
        self.stored = stored


class PartBehind(StorageBehind):
    default_message = "the storage holds fewer bytes of a partial upload than were committed"

    def __init__(self, upload_id: str, stored: int) -> None:
        super().__init__(stored)
        self.upload_id = upload_id


class StorageAhead(UploadError):
    default_message = "the storage has the finished upload, of which the record knows nothing"
    code = "ERR_STORAGE_AHEAD"


class BrokenRecord(UploadError):
    default_message = "the record of the upload cannot be read"
    code = "ERR_BROKEN_RECORD"

    def __init__(self, upload_id: str, reason: str, remains: object) -> None:
        super().__init__()
        self.upload_id = upload_id
        self.reason = reason  # for the operator
        self.remains = remains  # an `Upload` of what can be read, enough to remove it


class StateUnavailable(UploadError):
    default_message = "the records of the uploads cannot be used now"
    code = "ERR_STATE_UNAVAILABLE"


class StateFull(StateUnavailable):
    default_message = "there is no room for the records of the uploads"
    code = "ERR_STORAGE_FULL"
