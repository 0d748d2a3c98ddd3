"""Clients that create, append, ask, download, concatenate and remove, with every bad habit."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.exchange import Answer, Exchange, pieces
from tests.simulation.oracle import Attempt, Expected

if TYPE_CHECKING:
    from tests.simulation.world import World

VERSION = {"Host": "uploads.example", "Tus-Resumable": "1.0.0"}
CONTENT = {"Content-Type": "application/offset+octet-stream"}
TIMEOUT = 25.0  # seconds a client waits for an answer
HEAD_PATIENCE = 4.0
NEVER = (("POST", 409), ("DELETE", 507))  # nobody else has the id of a new upload; removing needs no room


class Client:
    """One client with some uploads, one after the other."""

    def __init__(self, world: World, number: int, rng: Random) -> None:
        self.world = world
        self.number = number
        self.rng = rng
        self.uploads: list[Expected] = []
        self.doing = ""

    def _log(self, text: str) -> None:
        self.doing = text
        self.world.log(f"client {self.number}: {text}")

    async def live(self) -> None:
        """Make uploads, and look at them once more in the end."""
        await asyncio.sleep(self.rng.random() * 10)
        for _ in range(self.rng.randrange(1, 3)):
            if self.rng.random() < 0.2:
                await self._concatenate()
            else:
                await self._upload(await self._created(""))
            await asyncio.sleep(self.rng.random() * 8)
        while not self.world.is_calm:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        for upload in self.uploads:
            await self._upload(upload)
            await self._verify(upload)

    async def _concatenate(self) -> None:
        parts = [await self._created("partial") for _ in range(2)]
        for part in parts:
            await self._upload(part)
        if all(part.complete for part in parts):
            final = await self._final(parts)
            await self._upload(final)

    # Requests.

    async def _request(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        content: bytes = b"",
        *,
        attempt: Attempt | None = None,
        timeout: float = TIMEOUT,
        rough: bool = False,
    ) -> Answer | None:
        """Make a request, in a rough way perhaps; None if there is no answer."""
        host = self.world.host_for(self.rng)
        if host is None or host.process is None or host.server is None:
            await asyncio.sleep(0.3)
            return None
        exchange = Exchange(host.process, self.world.loop, watched=self.rng.random() < 0.7)
        headers = {**VERSION, **headers}
        if content or method in ("PATCH",):
            headers["Content-Length"] = str(len(content))
        exchange.start(host.server, method, path, headers)
        behaviour = self.rng.random() if rough and not self.world.is_calm else 1.0
        sending = asyncio.ensure_future(self._send(exchange, content, behaviour))
        done, _ = await asyncio.wait((exchange.answer,), timeout=timeout)
        sending.cancel()
        answer = exchange.answer.result() if done else None
        exchange.hang_up()
        if answer is not None:
            self.world.count(f"{method} {answer.status}")
        return answer

    async def _send(self, exchange: Exchange, content: bytes, behaviour: float) -> None:
        parts = pieces(content, self.rng)
        for number, part in enumerate(parts):
            if behaviour < 0.1 and self.rng.random() < 0.5:
                self._log("hangs up")
                exchange.hang_up()
                return
            if behaviour < 0.2 and self.rng.random() < 0.5:
                self._log("stalls")
                await asyncio.sleep(self.rng.choice((1.5, 4.0, 40.0)))
            if behaviour < 0.3 and self.rng.random() < 0.5:
                await self._cancel(exchange, again=behaviour < 0.27)
            exchange.push(part, last=number == len(parts) - 1)
            await asyncio.sleep(self.rng.choice((0, 0, 0.001, 0.05)) * self.rng.random())
        if 0.3 <= behaviour < 0.4:
            await asyncio.sleep(self.rng.choice((0, 0.0003, 0.01)) * self.rng.random())
            await self._cancel(exchange, again=behaviour < 0.37)
        elif 0.4 <= behaviour < 0.45:
            await asyncio.sleep(self.rng.choice((0, 0.0003, 0.01)) * self.rng.random())
            self._log("hangs up after the last byte")
            exchange.hang_up()

    async def _cancel(self, exchange: Exchange, *, again: bool) -> None:
        """Have the server around the application cancel the request, once or until it has ended."""
        self._log("is cancelled again and again" if again else "is cancelled")
        assert exchange.task is not None
        exchange.task.cancel()
        for _ in range(50 if again else 0):
            if exchange.task.done():
                break
            exchange.task.cancel()
            await asyncio.sleep(0 if self.rng.random() < 0.7 else 0.001)
        exchange.hang_up()

    # Verbs.

    async def _created(self, kind: str) -> Expected:
        length = self.rng.randrange(1, self.rng.choice(self.world.sizes) + 1)
        upload = Expected(self.world.next_upload(), length, self.rng.random() < 0.2, kind=kind)
        upload.declared = not upload.deferred
        headers = {"Upload-Defer-Length": "1"} if upload.deferred else {"Upload-Length": str(length)}
        if kind:
            headers["Upload-Concat"] = kind
        content = b""
        if self.rng.random() < 0.25:
            content = self.rng.randbytes(self.rng.randrange(1, length + 1))
            headers |= CONTENT
        while not upload.id:
            self._log(f"creates upload {upload.number} of {length} bytes, {len(content)} with it")
            losses = self.world.oracle.losses
            attempt = Attempt(0, content)
            answer = await self._request("POST", "/files", headers, content, rough=True)
            if answer is None or answer.status != 201:
                self._refused(answer, "POST")
                await asyncio.sleep(self.rng.random())
                continue
            upload.id = answer.headers["location"].rpartition("/")[2]
            upload.attempts.append(attempt)
            self.uploads.append(upload)
            self.world.oracle.uploads.append(upload)
            self._log(f"has created upload {upload.number} as {upload.id[:8]}")
            self.world.oracle.created(upload, losses)
            if answer.offset:
                self.world.oracle.acknowledged(upload, answer.offset, attempt, "POST", losses)
        return upload

    def _refused(self, answer: Answer | None, what: str) -> None:
        if answer is not None:
            self._log(f"{what} answers {answer.status} {answer.body[:80].decode()}")
        if answer is not None and answer.status == 500 and not self.world.storage_is_sick:
            self.world.complain(f"client {self.number}: {what} answers 500: {answer.body!r}")
        if answer is not None and (what, answer.status) in NEVER:
            self.world.complain(f"client {self.number}: {what} answers {answer.status}: {answer.body!r}")

    async def _final(self, parts: list[Expected]) -> Expected:
        final = Expected(self.world.next_upload(), sum(part.length for part in parts), kind="final", parts=tuple(parts))
        headers = {"Upload-Concat": "final;" + " ".join(part.path for part in parts)}
        while not final.id:
            self._log(f"concatenates {[part.number for part in parts]} as upload {final.number}")
            losses = self.world.oracle.losses
            answer = await self._request("POST", "/files", headers, rough=True)
            if answer is not None and answer.status in (400, 404) and any(part.may_be_gone for part in parts):
                final.given_up = True
                return final
            if answer is None or answer.status != 201:
                self._refused(answer, "POST")
                await asyncio.sleep(self.rng.random())
                continue
            final.id = answer.headers["location"].rpartition("/")[2]
            final.known = bytearray(b"".join(part.known for part in parts))
            self.uploads.append(final)
            self.world.oracle.uploads.append(final)
            self.world.oracle.created(final, losses)
            if answer.offset == final.length:
                self.world.oracle.acknowledged(final, answer.offset, None, "POST", losses)
        return final

    async def _upload(self, upload: Expected) -> None:
        """Ask and append until the upload is complete, or gone."""
        while not (upload.complete or upload.is_gone or upload.given_up):
            await self._ask(upload)
            if upload.complete or upload.is_gone or upload.kind == "final":
                if upload.kind == "final":
                    await asyncio.sleep(0.5)
                continue
            if self.rng.random() < 0.3 and not self.world.is_calm:
                await asyncio.sleep(self.rng.random() * self.rng.choice((0.02, 0.3, 3.0)))
            if self.rng.random() < 0.03 and not self.world.is_calm and upload.kind != "partial":
                await self._remove(upload)
            elif self.rng.random() < 0.1:
                await asyncio.gather(self._append(upload), self._append(upload))
            else:
                await self._append(upload)

    async def _ask(self, upload: Expected) -> bool:
        """HEAD; returns whether the server answered the offset."""
        losses = self.world.oracle.losses
        answer = await self._request("HEAD", upload.path, {}, timeout=HEAD_PATIENCE)
        if answer is None:
            await asyncio.sleep(0.2)
            return False
        self._log(f"asks for upload {upload.number}: {answer.status}, offset {answer.offset}")
        self.world.oracle.looked(upload, answer, "HEAD", losses)
        if answer.status != 200:
            await asyncio.sleep(0.5)
        return answer.status == 200

    async def _append(self, upload: Expected) -> None:
        start = upload.last_offset
        room = upload.length - start
        size = room if self.rng.random() < 0.5 or self.world.is_calm else self.rng.randrange(room + 1)
        whole = self.rng.random() < 0.25
        refused = whole and self.rng.random() < 0.3 and not self.world.is_calm
        if refused and not upload.declared:
            size += self.rng.randrange(2000)  # longer than all that will be kept
        content = self.rng.randbytes(size)
        headers = {**CONTENT, "Upload-Offset": str(start)}
        if upload.deferred and start + size == upload.length:
            headers["Upload-Length"] = str(upload.length)
        attempt = Attempt(start, content)
        if whole:
            attempt.whole, attempt.refused = True, refused
            digest = hashlib.sha1(content + (b"-" if attempt.refused else b"")).digest()
            headers["Upload-Checksum"] = f"sha1 {base64.b64encode(digest).decode()}"
        upload.attempts.append(attempt)
        losses = self.world.oracle.losses
        text = f"appends {size} bytes at {start} of {upload.length} to upload {upload.number}"
        self._log(text + (" with a checksum" if attempt.whole else ""))
        answer = await self._request("PATCH", upload.path, headers, content, rough=True)
        if answer is None:
            return
        self._log(f"upload {upload.number}: {answer.status}, offset {answer.offset}")
        if answer.status == 204 and answer.offset is not None:
            if attempt.refused and size:
                self.world.complain(f"upload {upload.number}: a wrong checksum is accepted")
            upload.declared = upload.declared or "Upload-Length" in headers
            self.world.oracle.appended(upload, answer.offset, attempt, losses)
        elif answer.status in (404, 410) and not upload.may_be_gone:
            self.world.complain(f"upload {upload.number}: PATCH answers {answer.status}")
        else:
            self._refused(answer, "PATCH")
            await asyncio.sleep(self.rng.random() * 0.1)

    async def _remove(self, upload: Expected) -> None:
        self._log(f"removes upload {upload.number}")
        upload.may_be_gone = True
        answer = await self._request("DELETE", upload.path, {})
        if answer is not None:
            self._log(f"upload {upload.number}: {answer.status}")
            self._refused(answer, "DELETE")
            if answer.status == 204:
                upload.given_up = upload.is_gone = True
                self.world.removed(upload)

    async def _verify(self, upload: Expected) -> None:
        """Look at an upload when all is well."""
        if upload.given_up and not upload.id:
            return
        await self._ask(upload)
        if upload.complete:
            await self._download_a_part(upload)
            answer = await self._request("GET", upload.path, {})
            if answer is None:
                if not upload.may_be_gone:
                    self.world.complain(f"upload {upload.number}: the download has no answer")
            else:
                self._log(f"downloads upload {upload.number}: {answer.status}, {len(answer.body)} bytes")
                self.world.oracle.downloaded(upload, answer)

    async def _download_a_part(self, upload: Expected) -> None:
        """Begin a download and leave, perhaps; then ask for a range of the bytes."""
        if self.rng.random() < 0.3:
            await self._request("GET", upload.path, {}, timeout=self.rng.random() * 0.003)
        if self.rng.random() < 0.5:
            return
        start = self.rng.randrange(upload.length)
        end = self.rng.randrange(start, upload.length)
        answer = await self._request("GET", upload.path, {"Range": f"bytes={start}-{end}"})
        if answer is not None and answer.status == 206 and answer.body != upload.known[start : end + 1]:
            self.world.complain(f"upload {upload.number}: the range {start}-{end} has {len(answer.body)} other bytes")
