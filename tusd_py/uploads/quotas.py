"""Quotas of owners, as far as they are checked before the record changes; the state store enforces them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tusd_py.core.errors import StateUnavailable
from tusd_py.core.quotas import check_growth, counted_bytes, has_quota
from tusd_py.core.upload import Upload
from tusd_py.uploads.components import Components
from tusd_py.uploads.validation import AppendRequest

UNSUPPORTED = "quotas need a state store that counts what each owner has"


class Quotas:
    """The checks that come before a byte of a body is read. Uploads of known length need none after their creation."""

    def __init__(self, components: Components) -> None:
        self._state = components.state
        self._usage = components.usage

    def refuse_unsupported(self, new: Upload) -> None:
        """Raise `StateUnavailable` for a new upload with a quota that no part of this server would enforce."""
        if has_quota(new) and self._usage is None:
            raise StateUnavailable(UNSUPPORTED)

    async def admit_first_bytes(self, new: Upload, request: AppendRequest) -> None:
        """Raise `QuotaExceeded` if the first bytes of a new upload of unknown length are more than its owner may have.

        Those of known length are decided with the record.
        """
        size = request.source.declared_size
        if size and new.length is None and new.quota_bytes is not None and self._usage is not None:
            check_growth(new, size, await self._usage.usage_of(new.owner))

    async def admit_final(self, final: Upload, partials: Sequence[Upload]) -> None:
        """Raise `QuotaExceeded` if a final upload is more than its owner has room for beyond its partial uploads.

        The decision counts that is made when the final upload is complete; this one saves the copy.
        """
        if final.quota_bytes is None or final.length is None or self._usage is None:
            return
        own = {partial.id: counted_bytes(partial) for partial in partials if partial.owner == final.owner}
        grows = final.length - sum(own.values())
        if grows > 0:
            check_growth(final, grows, await self._usage.usage_of(final.owner))

    async def admit_append(
        self, record: Upload, upload: Upload, request: AppendRequest, token: int
    ) -> tuple[Upload, Upload, int | None]:
        """Return the record, the upload to append to, and the offset that its owner's quota lets it reach.

        A length that the request declares is reserved, which changes the record. A request with a checksum, which
        commits all or nothing, reserves its length with its bytes.

        Args:
            record: the record as committed.
            upload: the same with the length that the request declares.
            request: the request.
            token: the token of the lock.

        Raises:
            QuotaExceeded: the declared length, or the size of the body, is more than the owner has room for.
        """
        if record.length is not None or record.quota_bytes is None or self._usage is None:
            return record, upload, None
        if upload.length == record.offset:  # complete, by the step that says so
            return record, upload, None
        if upload.length is not None and request.verification is None:
            reserved = await self._state.update(record, replace(record, length=upload.length), token)
            return reserved, reserved, None
        usage = await self._usage.usage_of(record.owner)
        size = request.source.declared_size or 0
        check_growth(record, size if upload.length is None else upload.length - record.offset, usage)
        limit = record.offset + max(0, record.quota_bytes - usage.bytes)
        return record, upload, None if upload.length is not None else limit
