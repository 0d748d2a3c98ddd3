"""Expiry times of uploads."""

from __future__ import annotations

from tusd_py.core.clock import SteadyClock
from tusd_py.core.upload import Upload
from tusd_py.uploads.options import UploadOptions


class Lifetimes:
    """The expiry times of uploads, by the options `expires_after`, `partial_retention` and `retention`.

    Times are seconds since the epoch; None stands for never. New times come from the wall clock, records are judged by
    the steady clock.
    """

    def __init__(self, options: UploadOptions, clock: SteadyClock) -> None:
        self._options = options
        self._clock = clock

    def of_unfinished(self, now: float) -> float | None:
        """Return the expiry of an unfinished upload after a write at `now`."""
        return now + self._options.expires_after if self._options.expires_after else None

    def extended(self, upload: Upload) -> float | None:
        """Return the expiry of an upload after a write: as the application set it, or not earlier than before."""
        if upload.given_expiry is not None:
            return upload.given_expiry
        expires_at = self.of_unfinished(self._clock.wall())
        if expires_at is None or upload.expires_at is None:
            return expires_at
        return max(expires_at, upload.expires_at)

    def of_complete(self, upload: Upload, completed_at: float) -> float | None:
        """Return the expiry of an upload that was completed at `completed_at`."""
        return self.extended(upload) if upload.is_partial else self._retained_until(completed_at)

    def corrected(self, upload: Upload) -> float | None:
        """Return the expiry of a complete upload under the current setting `retention`."""
        return self._retained_until(upload.completed_at or upload.created_at)

    def _retained_until(self, completed_at: float) -> float | None:
        return completed_at + self._options.retention if self._options.retention else None

    def is_gone(self, upload: Upload) -> bool:
        """Return whether no client may use an upload any more (`Upload.is_gone`)."""
        return upload.is_gone(self._clock.steady())

    def is_over(self, upload: Upload) -> bool:
        """Return whether an upload has ended, or was completed longer ago than the setting `retention`."""
        if not upload.is_complete or upload.is_partial:
            return self.is_gone(upload)
        until = self.corrected(upload)
        return until is not None and until <= self._clock.steady()
