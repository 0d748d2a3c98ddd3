"""A client that a directed scenario leads request by request; the oracle judges every answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tests.simulation.clients import Client
from tests.simulation.exchange import Answer
from tests.simulation.oracle import Attempt, Expected
from tests.simulation.sender import CONTENT

Statuses: TypeAlias = "int | Sequence[int]"

UNKNOWN = -1  # a length that is not announced
PATIENCE = 120.0  # seconds for one request


class DirectedClient(Client):
    """One client, whose bytes come from the seed, and nothing else."""

    async def create(self, length: int, kind: str = "", headers: Mapping[str, str] | None = None) -> Expected:
        """Create an upload, which has to succeed."""
        is_deferred = length == UNKNOWN
        upload = Expected(self.world.next_upload(), max(length, 0), is_deferred, kind=kind)
        upload.declared = not is_deferred
        announced = {"Upload-Defer-Length": "1"} if is_deferred else {"Upload-Length": str(length)}
        kinds = {"Upload-Concat": kind} if kind else {}
        answer = await self.ask("POST", "/files", {**announced, **kinds, **self._metadata(upload), **(headers or {})})
        return self._named(upload, answer)

    def _named(self, upload: Expected, answer: Answer) -> Expected:
        if answer.status != 201:
            self.world.complain(f"upload {upload.number} is not created: {answer.status} {answer.body!r}")
        upload.id = answer.headers.get("location", "").rpartition("/")[2]
        upload.touched_at = self.world.loop.now
        self.uploads.append(upload)
        self.world.oracle.uploads.append(upload)
        return upload

    async def append(
        self, upload: Expected, size: int, *, status: Statuses = 204, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Append so many bytes at the offset that the client knows; the answer has to have this status."""
        start = upload.last_offset
        content = self.rng.randbytes(size)
        attempt = Attempt(start, content)
        upload.attempts.append(attempt)
        losses = self.world.oracle.losses
        sent = {**CONTENT, "Upload-Offset": str(start), **(headers or {})}
        answer = await self.ask("PATCH", upload.path, sent, content, status=status)
        self.world.oracle.note_expiry(upload)
        if answer.status == 204 and answer.offset is not None:
            upload.declared = upload.declared or "Upload-Length" in sent
            upload.touched_at = self.world.loop.now
            self.world.oracle.appended(upload, answer.offset, attempt, losses)
        return answer

    async def end(self, upload: Expected, size: int) -> Answer:
        """Append the last bytes of an upload whose length was not announced."""
        upload.length = upload.wanted_length = upload.last_offset + size
        return await self.append(upload, size, headers={"Upload-Length": str(upload.length)})

    async def look(self, upload: Expected, status: Statuses = 200) -> Answer:
        """Ask for the offset; the answer has to have this status."""
        losses, floor = self.world.oracle.losses, upload.floor
        answer = await self.ask("HEAD", upload.path, status=status)
        upload.join_parts()
        self.world.oracle.looked(upload, answer, "HEAD", losses, floor)
        return answer

    async def download(self, upload: Expected, status: Statuses = 200) -> Answer:
        """Download an upload; the answer has to have this status, and its bytes to be those that were sent."""
        answer = await self.ask("GET", upload.path, status=status)
        if answer.status == 200:
            self.world.oracle.downloaded(upload, answer)
        return answer

    async def remove(self, upload: Expected, status: int = 204) -> Answer:
        """Remove an upload; the answer has to have this status."""
        upload.may_be_gone = upload.is_ending = True
        answer = await self.ask("DELETE", upload.path, status=status)
        if answer.status == 204:
            upload.given_up = upload.is_gone = upload.was_removed = True
            self.world.removed(upload)
        return answer

    async def join(self, parts: Sequence[Expected]) -> Expected:
        """Make a final upload of these parts."""
        final = Expected(self.world.next_upload(), sum(part.length for part in parts), kind="final", parts=tuple(parts))
        headers = {"Upload-Concat": "final;" + " ".join(part.path for part in parts)} | self._metadata(final)
        self._named(final, await self.ask("POST", "/files", headers))
        final.join_parts()
        return final

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        *,
        status: Statuses | None = None,
    ) -> Answer:
        """Make a request that has to be answered, with this status if one is given."""
        self._log(f"{method} {path}, {len(content)} bytes")
        answer = await self._request(method, path, dict(headers or {}), content, timeout=PATIENCE)
        if answer is None:
            self.world.complain(f"{method} {path} has no answer")
            answer = Answer(0, {}, b"")
        self._log(f"{answer.status}, offset {answer.offset} {answer.body[:80]!r}")
        wanted = (status,) if isinstance(status, int) else status
        if wanted is not None and answer.status not in wanted:
            self.world.complain(f"{method} {path} answers {answer.status} instead of {wanted}: {answer.body!r}")
        return answer
