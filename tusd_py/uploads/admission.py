"""The upload that a request was let in to, which is compared with the record once more where the request acts on it."""

from __future__ import annotations

from dataclasses import dataclass

from tusd_py.core.errors import BrokenRecord, UploadNotFound
from tusd_py.core.upload import Upload


@dataclass(frozen=True, slots=True)
class Admission:
    """The upload about which a request was decided before the request had its lock.

    An id may be used again for an upload of another owner meanwhile: where the application chooses ids, and for final
    uploads, whose ids follow from those of their parts.

    Attributes:
        owner: the owner of the upload; None: any.
        created_at: its creation in seconds since the epoch; None: any.
    """

    owner: str | None = None
    created_at: float | None = None

    def fits(self, upload: Upload) -> bool:
        """Return whether this is the upload about which the request was decided."""
        return (self.owner is None or self.owner == upload.owner) and (
            self.created_at is None or self.created_at == upload.created_at
        )


ANY_UPLOAD = Admission()


def admission_to(upload: Upload) -> Admission:
    """Return the admission to this upload and no later one of its id."""
    return Admission(upload.owner, upload.created_at)


def remains_of(error: BrokenRecord, admission: Admission = ANY_UPLOAD) -> Upload:
    """Return what can be read of a broken record; raises `UploadNotFound` if the admission is to another upload."""
    remains = error.remains
    assert isinstance(remains, Upload)
    if not admission.fits(remains):
        raise UploadNotFound
    return remains
