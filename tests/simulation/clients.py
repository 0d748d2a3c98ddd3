"""Clients that create, append, ask, download, concatenate and remove, with every bad habit."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import google_crc32c

from tests.simulation.application import NUMBER, REFUSED
from tests.simulation.exchange import Answer
from tests.simulation.oracle import Attempt, Expected
from tests.simulation.sender import CONTENT, NO_TRAILER, Sender, requests_to_refuse

if TYPE_CHECKING:
    from tests.simulation.world import World

HEAD_PATIENCE = 4.0
LOCKED_PATIENCE = 60  # GETs, one a second, for an upload that is locked
NEVER = (("POST", 409), ("DELETE", 507))  # nobody else has the id of a new upload; removing needs no room


class Client(Sender):
    """One client with some uploads, one after the other."""

    def __init__(self, world: World, number: int, rng: Random) -> None:
        super().__init__(world, number, rng)
        self.uploads: list[Expected] = []

    async def live(self) -> None:
        """Make uploads, and look at them once more in the end."""
        await asyncio.sleep(self.rng.random() * 10)
        for _ in range(self.rng.randrange(1, 3)):
            if self._draws(self.habits.concatenates):
                await self._concatenate()
            else:
                await self._upload(await self._created(""))
            await asyncio.sleep(self.rng.random() * 8)
        await self.world.calm.wait()
        await self.finish()

    async def finish(self) -> None:
        """Finish all uploads, and look at them once more."""
        for upload in self.uploads:
            await self._upload(upload)
            await self.verify(upload)

    async def _concatenate(self) -> None:
        parts = [await self._created("partial") for _ in range(2)]
        if not all(part.id for part in parts):
            return
        early = self.world.settings["concatenation_unfinished"] and self._draws(self.habits.early_finals)
        final = await self._final(parts) if early else None
        for part in parts:
            await self._upload(part)
        if final is None and all(part.complete for part in parts):
            final = await self._final(parts)
        if final is not None:
            await self._upload(final)

    # Verbs.

    async def _created(self, kind: str) -> Expected:
        is_empty = self._draws(self.habits.zero)
        length = 0 if is_empty else self.rng.randrange(1, self.rng.choice(self.world.sizes) + 1)
        upload = Expected(self.world.next_upload(), length, self._draws(self.habits.defers), kind=kind)
        upload.declared = not upload.deferred
        headers = {"Upload-Defer-Length": "1"} if upload.deferred else {"Upload-Length": str(length)}
        if kind:
            headers["Upload-Concat"] = kind
        headers |= self._metadata(upload)
        content = b""
        if length and self.rng.random() < 0.25:
            content = self.rng.randbytes(self.rng.randrange(1, length + 1))
            headers |= CONTENT
        while not upload.id:
            self._log(f"creates upload {upload.number} of {length} bytes, {len(content)} with it")
            losses, began = self.world.oracle.losses, self.world.loop.now
            attempt = Attempt(0, content)
            answer = await self._request("POST", "/files", headers, content, rough=True)
            if answer is not None and answer.status in self._refusals(upload):
                upload.given_up = True
                break
            if answer is None or (answer.status != 201 and "location" not in answer.headers):
                self._refused(answer, "POST")
                await asyncio.sleep(self.rng.random())
                continue
            upload.id = answer.headers["location"].rpartition("/")[2]
            upload.attempts.append(attempt)
            self.uploads.append(upload)
            self.world.oracle.uploads.append(upload)
            upload.touched_at = began
            self._log(f"has created upload {upload.number} as {upload.id[:8]}")
            self.world.oracle.created(upload, losses)
            if answer.offset:
                self.world.oracle.acknowledged(upload, answer.offset, attempt, "POST", losses)
        return upload

    def _refusals(self, upload: Expected) -> tuple[int, ...]:
        """Return the statuses that end the creation of an upload."""
        limit = self.world.settings.get("max_size")
        is_too_large = limit is not None and upload.length > limit
        assert REFUSED.status is not None
        return (REFUSED.status, *self.world.rules.refusals, *((413,) if is_too_large else ()))

    def _metadata(self, upload: Expected) -> dict[str, str]:
        """Return the header with the number of an upload, for the application, if there is one."""
        if self.world.application is None:
            return {}
        return {"Upload-Metadata": f"{NUMBER} {base64.b64encode(str(upload.number).encode()).decode()}"}

    def _refused(self, answer: Answer | None, what: str) -> None:
        if answer is not None:
            self._log(f"{what} answers {answer.status} {answer.body[:80].decode()}")
        if answer is not None and answer.status == 500 and not self.world.storage_is_sick:
            self.world.complain(f"client {self.number}: {what} answers 500: {answer.body!r}")
        if answer is not None and (what, answer.status) in NEVER:
            self.world.complain(f"client {self.number}: {what} answers {answer.status}: {answer.body!r}")

    async def _final(self, parts: list[Expected]) -> Expected:
        final = Expected(self.world.next_upload(), sum(part.length for part in parts), kind="final", parts=tuple(parts))
        headers = {"Upload-Concat": "final;" + " ".join(part.path for part in parts)} | self._metadata(final)
        while not final.id:
            self._log(f"concatenates {[part.number for part in parts]} as upload {final.number}")
            losses = self.world.oracle.losses
            began = self.world.loop.now
            answer = await self._request("POST", "/files", headers, rough=True)
            self.world.oracle.note_expiry(final)
            endings = self._refusals(final)
            if any(part.may_be_gone for part in parts):
                endings += (400, 404)
            if answer is not None and answer.status in endings:
                final.given_up = True
                return final
            if answer is None or (answer.status != 201 and "location" not in answer.headers):
                self._refused(answer, "POST")
                await asyncio.sleep(self.rng.random())
                if answer is not None and answer.status == 400:
                    await self._finish_again(parts)
                continue
            final.id = answer.headers["location"].rpartition("/")[2]
            final.touched_at = began
            final.may_be_gone = 413 in endings  # it is noticed once the last part has a length
            self.uploads.append(final)
            self.world.oracle.uploads.append(final)
            self.world.oracle.created(final, losses)
            final.join_parts()
            if answer.offset == final.length:
                self.world.oracle.acknowledged(final, answer.offset, None, "POST", losses)
        return final

    async def _finish_again(self, parts: Sequence[Expected]) -> None:
        """Finish parts that a failover of Redis took back after they were complete."""
        for part in parts:
            await self._upload(part)

    async def _finish_parts(self, final: Expected) -> None:
        """Finish parts that a failover of Redis took back, while the final upload waits for them."""
        if self.world.is_calm and not final.complete:
            await self._finish_again(final.parts)
            final.join_parts()

    async def _upload(self, upload: Expected) -> None:
        """Ask and append until the upload is complete, or gone."""
        abandons = upload.kind == "" and self._draws(self.habits.abandons) and not self.world.is_calm
        while not (upload.complete or upload.is_gone or upload.given_up):
            if any(part.given_up and not part.complete for part in upload.parts):
                upload.given_up = True  # it waits for a part that its client does not finish
                return
            if abandons and (self._draws(0.5) or self.world.is_calm):
                self._log(f"abandons upload {upload.number}")
                upload.abandoned = upload.given_up = True
                return
            if upload.kind == "final" or self._draws(1 - self.habits.blind) or self.world.is_calm:
                await self._ask(upload)
            if upload.kind == "final":
                await self._finish_parts(upload)
                await asyncio.sleep(0.5)
            if upload.complete or upload.is_gone or upload.kind == "final":
                continue
            if self.rng.random() < 0.3 and not self.world.is_calm:
                await asyncio.sleep(self.rng.random() * self.rng.choice((0.02, 0.3, 3.0)))
            if self._draws(self.habits.nonsense):
                await self._ask_nonsense(upload)
            if self._draws(self.habits.removes) and not self.world.is_calm and upload.kind != "partial":
                await self._remove(upload)
            elif self._draws(self.habits.parallel) and not self.world.is_calm:
                other = self._ask_meanwhile if self._draws(self.habits.asks_meanwhile) else self._append
                await asyncio.gather(self._append(upload), other(upload))
            else:
                await self._append(upload)

    async def _ask_meanwhile(self, upload: Expected) -> None:
        await asyncio.sleep(self.rng.choice((0.0, 0.01, 1.5)) * self.rng.random())
        await self._ask(upload)

    async def _ask(self, upload: Expected) -> bool:
        """HEAD; returns whether the server answered the offset."""
        losses, floor = self.world.oracle.losses, upload.floor
        answer = await self._request("HEAD", upload.path, {}, timeout=HEAD_PATIENCE)
        if answer is None:
            await asyncio.sleep(0.2)
            return False
        self._log(f"asks for upload {upload.number}: {answer.status}, offset {answer.offset}")
        upload.join_parts()
        self.world.oracle.looked(upload, answer, "HEAD", losses, floor)
        if answer.status != 200:
            await asyncio.sleep(0.5)
        return answer.status == 200

    async def _append(self, upload: Expected) -> None:
        start = upload.last_offset
        if self._draws(self.habits.misplaced) and not self.world.is_calm:
            start = min(upload.length, start + self.rng.randrange(1, 1000))
        room = max(0, upload.length - start)  # a defect may leave none
        size = room if self._draws(self.habits.rest) or self.world.is_calm else self.rng.randrange(room + 1)
        if size < room and self._draws(self.habits.empty):
            size = 0
        whole = self._draws(self.habits.checksum)
        refused = whole and self._draws(self.habits.wrong_checksum) and not self.world.is_calm
        if refused and not upload.declared:
            size += self.rng.randrange(2000)  # longer than all that will be kept
        if upload.declared and self._draws(self.habits.too_long) and not self.world.is_calm:
            size = room + self.rng.randrange(1, 100)
        content = self.rng.randbytes(size)
        headers = {**CONTENT, "Upload-Offset": str(start)}
        if upload.deferred and start + size == upload.length:
            headers["Upload-Length"] = str(upload.length)
        attempt = Attempt(start, content)
        checksum = ""
        if whole:
            attempt.whole, attempt.refused = True, refused
            checksum = self._checksum(content + (b"-" if attempt.refused else b""))
            if attempt.refused and self._draws(0.2):
                checksum = NO_TRAILER
        upload.attempts.append(attempt)
        losses, began = self.world.oracle.losses, self.world.loop.now
        text = f"appends {size} bytes at {start} of {upload.length} to upload {upload.number}"
        self._log(text + (" with a checksum" if attempt.whole else ""))
        answer = await self._request("PATCH", upload.path, headers, content, checksum=checksum, rough=True)
        self.world.oracle.note_expiry(upload)
        if answer is None:
            return
        self._log(f"upload {upload.number}: {answer.status}, offset {answer.offset}")
        if answer.status == 204 and answer.offset is not None:
            if attempt.refused and size:
                self.world.complain(f"upload {upload.number}: a wrong checksum is accepted")
            upload.declared = upload.declared or "Upload-Length" in headers
            upload.touched_at = max(began, upload.touched_at)
            self.world.oracle.appended(upload, answer.offset, attempt, losses)
        elif answer.status in (404, 410) and not upload.may_be_gone:
            self.world.complain(f"upload {upload.number}: PATCH answers {answer.status}")
        else:
            self._refused(answer, "PATCH")
            upload.given_up = answer.status == 413 and 413 in self._refusals(upload)
            self.world.oracle.refused(upload, answer.offset, losses)
            await asyncio.sleep(self.rng.random() * 0.1)

    async def _ask_nonsense(self, upload: Expected) -> None:
        """Make a request that must be refused, and must change nothing."""
        rules = self.world.rules
        method, path, headers, statuses = self.rng.choice(requests_to_refuse(upload, rules, self.number))
        if "Upload-Length" in headers and not upload.declared:
            return  # it would be accepted
        answer = await self._request(method, path, headers)
        # A Redis without memory gives out no lock for a PATCH or POST.
        later = (503, 507, *rules.later) if method in ("PATCH", "POST") else (503, *rules.later)
        if answer is not None and answer.status not in (*statuses, *later, 404, 410, 423):
            self.world.complain(f"upload {upload.number}: {method} with {headers} answers {answer.status}")

    def _checksum(self, content: bytes) -> str:
        name = self.rng.choice(("sha1", "sha1", "md5", "sha256", "sha512", "crc32", "crc32c"))
        if name == "crc32":
            digest = zlib.crc32(content).to_bytes(4)
        elif name == "crc32c":
            digest = google_crc32c.value(content).to_bytes(4)
        else:
            digest = hashlib.new(name, content, usedforsecurity=False).digest()
        return f"{name} {base64.b64encode(digest).decode()}"

    async def _remove(self, upload: Expected) -> None:
        self._log(f"removes upload {upload.number}")
        upload.may_be_gone = upload.is_ending = True
        answer = await self._request("DELETE", upload.path, {}, rough=True)
        if answer is not None:
            self._log(f"upload {upload.number}: {answer.status}")
            self._refused(answer, "DELETE")
            if answer.status == 204:
                upload.given_up = upload.is_gone = upload.was_removed = True
                self.world.removed(upload)

    async def check_expired(self, upload: Expected) -> None:
        """Look whether an upload that was left alone is gone."""
        answer = await self._request("HEAD", upload.path, {}, timeout=HEAD_PATIENCE)
        complete = answer is not None and answer.headers.get("upload-length") == str(answer.offset)
        if answer is None or complete:
            return
        if answer.status not in (404, 410):
            self.world.complain(f"upload {upload.number} has not expired: HEAD answers {answer.status}")
            return
        upload.has_expired = True
        left = self.world.oracle.look(upload.id)
        may_be_whole = left is not None and (upload.deferred or len(left) >= upload.length)
        if left and not may_be_whole:  # a file that may be whole is kept: see docs/backup.md
            self.world.complain(f"upload {upload.number} has expired, and its bytes are still there")

    async def verify(self, upload: Expected) -> None:
        """Look at an upload when all is well."""
        if (upload.given_up and not upload.id) or upload.abandoned:
            return
        await self._ask(upload)
        if upload.kind == "partial" and self.world.rules.checks_files:
            answer = await self._request("GET", upload.path, {})
            if answer is not None and answer.status == 200:
                self.world.complain(f"upload {upload.number} is a part of a file, and was not checked, but downloaded")
        elif upload.complete:
            await self._download_a_part(upload)
            answer = await self._download_at_rest(upload)
            if answer is None:
                if not upload.may_be_gone:
                    self.world.complain(f"upload {upload.number}: the download has no answer")
            else:
                self._log(f"downloads upload {upload.number}: {answer.status}, {len(answer.body)} bytes")
                self.world.oracle.downloaded(upload, answer)

    async def _download_at_rest(self, upload: Expected) -> Answer | None:
        """Return the answer to a GET; a lease may go on where Redis failed over to a server whose clock is behind."""
        answer = await self._request("GET", upload.path, {})
        for _ in range(LOCKED_PATIENCE):
            if answer is None or answer.status != 423:
                break
            await asyncio.sleep(1.0)
            answer = await self._request("GET", upload.path, {})
        return answer

    async def _download_a_part(self, upload: Expected) -> None:
        """Begin a download and leave, perhaps; then ask for a range of the bytes."""
        if self.rng.random() < 0.3:
            await self._request("GET", upload.path, {}, timeout=self.rng.random() * 0.003)
        if self.rng.random() < 0.5 or not upload.length:
            return
        start = self.rng.randrange(upload.length)
        end = self.rng.randrange(start, upload.length)
        text, wanted = self.rng.choice(
            (
                (f"{start}-{end}", upload.known[start : end + 1]),
                (f"{start}-", upload.known[start:]),
                (f"-{end + 1}", upload.known[upload.length - end - 1 :]),
            )
        )
        answer = await self._request("GET", upload.path, {"Range": f"bytes={text}"})
        is_sure = not self.world.oracle.proves_nothing
        if answer is not None and answer.status == 206 and answer.body != wanted and is_sure:
            self.world.complain(f"upload {upload.number}: the range {text} has {len(answer.body)} other bytes")
        if answer is not None and "etag" in answer.headers and self._draws(0.5):
            again = await self._request("GET", upload.path, {"If-None-Match": answer.headers["etag"]})
            if again is not None and again.status not in (304, 404, 410, 423, 500, 503):
                self.world.complain(f"upload {upload.number}: a download of what is known answers {again.status}")
        if self._draws(0.3):
            await self._request("HEAD", upload.path, {"Tus-Resumable": ""})
