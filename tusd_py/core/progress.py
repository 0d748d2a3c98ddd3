"""The changes of uploads that live progress tells of, and the interest in them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tusd_py.core.upload import Status, Upload, UploadKind


class ProgressKind(StrEnum):
    """The kind of a change or of a message; `STARTED` and `ENDED` are for servers alone, and no message has them."""

    SNAPSHOT = "snapshot"
    CREATED = "created"
    STARTED = "started"  # an append begins
    PROGRESS = "progress"
    ENDED = "ended"  # an append has come to its end
    INTERRUPTED = "interrupted"
    RESUMED = "resumed"
    FINISHING = "finishing"
    FINISHED = "finished"
    FAILED = "failed"
    TERMINATED = "terminated"
    EXPIRED = "expired"


RESUME_PAUSE = 2.0  # seconds without a change of its record after which an append resumes an upload

# Kinds after which nothing more happens to an upload.
FINAL_KINDS = frozenset({ProgressKind.FINISHED, ProgressKind.FAILED, ProgressKind.TERMINATED, ProgressKind.EXPIRED})
STATUS_OF_END = {
    ProgressKind.FINISHED: Status.COMPLETE,
    ProgressKind.FAILED: Status.TERMINATED,
    ProgressKind.TERMINATED: Status.TERMINATED,
    ProgressKind.EXPIRED: Status.EXPIRED,
}


@dataclass(frozen=True, slots=True)
class Change:
    """A change of an upload.

    Attributes:
        kind: the kind.
        id: the id of the upload.
        owner: its owner; empty without authentication.
        status: its status after the change.
        offset: its committed offset.
        length: its length; None if it is not known yet.
        token: the fencing token of its record.
        created_at: its creation in seconds since the epoch, since an id may be used again.
        time: of the change, in seconds since the epoch.
        concatenation: its role in a concatenation.
        code: the code of the refusal of an upload that has failed; otherwise empty.
    """

    kind: ProgressKind
    id: str
    owner: str
    status: Status
    offset: int
    length: int | None
    token: int
    created_at: float
    time: float
    concatenation: UploadKind = UploadKind.NONE
    code: str = ""

    def is_of(self, upload: Upload) -> bool:
        """Return whether this is a change of the upload, and not of another one that has had its id."""
        return (self.id, self.owner, self.created_at) == (upload.id, upload.owner, upload.created_at)


def change_of(upload: Upload, kind: ProgressKind, time: float, code: str = "") -> Change:
    """Return a change of an upload, whose record is that after the change, except for the status at its end."""
    return Change(
        kind,
        upload.id,
        upload.owner,
        STATUS_OF_END.get(kind, upload.status),
        upload.offset,
        upload.length,
        upload.token,
        upload.created_at,
        time,
        upload.concatenation,
        code,
    )


def kind_of(upload: Upload) -> ProgressKind:
    """Return the kind of change that has led to the status of a record."""
    return {
        Status.ACTIVE: ProgressKind.PROGRESS,
        Status.FINISHING: ProgressKind.FINISHING,
        Status.COMPLETE: ProgressKind.FINISHED,
        Status.TERMINATED: ProgressKind.TERMINATED,
        Status.EXPIRED: ProgressKind.EXPIRED,
    }[upload.status]


@dataclass(frozen=True, slots=True)
class Interests:
    """The uploads that a process wants to hear of.

    Attributes:
        ids: uploads by their ids.
        owners: all uploads of these owners.
        everything: all uploads.
    """

    ids: frozenset[str] = frozenset()
    owners: frozenset[str] = frozenset()
    everything: bool = False

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return self.everything or bool(self.ids) or bool(self.owners)

    def include(self, upload_id: str, owner: str) -> bool:
        """Return whether a change of this upload is wanted."""
        return self.everything or upload_id in self.ids or owner in self.owners


NO_INTERESTS = Interests()
