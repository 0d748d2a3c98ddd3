"""Appends to one upload in S3: parts leave while the body still arrives, the rest is stored as a tail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from tusd_py.asyncutil.serial_task import SerialTask
from tusd_py.backends.s3.bucket import Bucket, Multipart
from tusd_py.backends.s3.layout import Layout, Tail, dump, layout_of
from tusd_py.backends.s3.memory_limiter import Kept
from tusd_py.backends.s3.object_keys import object_key
from tusd_py.backends.s3.pace import Pace
from tusd_py.backends.s3.part_buffer import PartBuffer, PendingPart, copied, cut, worth_merging
from tusd_py.backends.s3.part_uploads import PartUploader
from tusd_py.backends.s3.tails import SupersededTails
from tusd_py.contracts.storage import Observer
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import MaxSizeExceeded, StorageBehind, UploadError
from tusd_py.core.upload import Upload, UploadPart

MAX_COPY_SIZE = 2 << 20  # bytes copied at a time
ALWAYS_ADMITTED = 256 << 10  # bytes
PACING_WINDOW = 1.0  # seconds that the memory looks ahead


class S3Writer:
    """One job at a time runs for the caller; parts on their way to S3 have tasks of their own."""

    synced = 0  # what S3 has confirmed it keeps

    def __init__(
        self, engine: Bucket, upload: Upload, token: int, observer: Observer | None, *, unreleased_predecessors: int
    ) -> None:
        self._engine = engine
        self._upload = upload
        self._token = token
        self._observer = observer
        layout = layout_of(upload)
        self._opened = layout
        self._key = layout.key or object_key(engine.config, upload)
        self._sizes = engine.sizes_of(upload, layout)
        self._parts_end = min(layout.parts_end, upload.offset)  # parts without a gap
        self._parts: list[UploadPart] = []
        self._tails = list(layout.tails_from(self._parts_end, upload.offset))
        needed = {tail.name for tail in self._tails}
        unneeded = [tail.name for tail in layout.tails if tail.name not in needed]
        self._dropped = SupersededTails(layout.dropped, unneeded)
        self._next = engine.first_number(upload, layout, self._sizes, unreleased_predecessors=unreleased_predecessors)
        multipart = Multipart(self._key, layout.multipart, layout.marker) if layout.multipart else None
        self._flights = PartUploader(engine, upload, self._key, multipart, self._part_landed, self._stored_apart)
        self._open = PartBuffer(self._parts_end, upload.offset, upload.offset)
        self._tail_lock = asyncio.Lock()
        self._spilling: asyncio.Task[None] | None = None
        self._jobs = SerialTask()
        self._admitted_at: float | None = None
        self._begun = self._changed = self._closed = False
        self._pace = Pace(time.monotonic())
        self._unchecked = bool(layout.multipart or self._tails)  # what earlier writers stored
        self._published: set[str] = set()  # names that a layout told of
        self._published_next = layout.next_number
        self._made: list[str] = []
        self._told = {upload.offset: 0}  # how many parts a layout told of that goes with a record at this offset
        self._closing: asyncio.Task[None] | None = None
        self._placed, self._whole = "", False
        self.stored = upload.offset

    # The state that the record describes.

    @property
    def layout(self) -> str:
        """Also takes note of what the record is about to know."""
        if not self._changed:
            return self._upload.layout
        layout = self._describe()
        self._published.update(layout.tail_names)
        self._published.add(layout.multipart)
        self._published_next = layout.next_number
        self._dropped.told(self.stored)
        self._told.setdefault(self.stored, sum(part.end <= self.stored for part in self._parts))
        return dump(layout)

    def _describe(self) -> Layout:
        multipart = self._flights.multipart
        return Layout(
            key=self._key,
            part_size=self._sizes.first,
            growing=self._sizes.growing,
            largest=self._sizes.largest if self._sizes.growing else 0,
            multipart=multipart.id if multipart else "",
            marker=multipart.marker if multipart else "",
            next_number=self._next,
            parts_end=self._parts_end,
            tails=tuple(self._tails),
            dropped=tuple(self._dropped.names),
            placed=self._placed,
            whole=self._whole,
        )

    def parts(self, after: int) -> Sequence[UploadPart]:
        self._dropped.committed(after)
        # Not by their ends: a part may hold bytes that were committed as tails before.
        return [part for part in self._parts[self._told.get(after, 0) :] if part.end <= self.stored]

    def _advance(self) -> None:
        """Take in the parts that arrived, as far as they follow each other."""
        if self._placed or self._whole:  # the object is there
            return
        for part in self._flights.arrived():
            self._parts.append(part)
            self._parts_end = part.end
            self._changed = True
        self._drop([tail for tail in self._tails if tail.end <= self._parts_end])
        end = self._parts_end
        for tail in self._tails:
            if tail.start <= end < tail.end:
                end = tail.end
        self.stored = end

    def _drop(self, tails: Sequence[Tail]) -> None:
        for tail in tails:
            self._tails.remove(tail)
            self._dropped.add(tail.name)

    # The contract.

    async def write(self, buffers: Sequence[Buffer]) -> None:
        await self._jobs.settle()
        if buffers:
            self._jobs.start(self._take(buffers))

    async def checkpoint(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        await self.write(buffers)  # what arrived in full parts counts; a tail would cost a request

    async def flush(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> None:
        await self._jobs.settle()
        if buffers or self._begun or self._unchecked:
            self._jobs.start(self._flush(buffers))
            await self._jobs.settle()

    async def finish(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> bool:
        await self._jobs.settle()
        if not buffers and not self._begun:
            return False
        self._jobs.start(self._finish(buffers))
        await self._jobs.settle()
        return self._whole

    async def discard(self, offset: int) -> None:
        await self._jobs.wait()
        await self._flights.land()
        if self._spilling is not None:
            await asyncio.wait((self._spilling,))
        kept = self._open if self._open.memory_start <= offset else PartBuffer(offset, offset, offset)
        if kept is not self._open:
            self._engine.memory.release(self._open.in_memory)
        self._engine.memory.release(kept.forget_from(offset))
        self._parts = [part for part in self._parts if part.end <= offset]
        self._told = {self._upload.offset: 0}
        self._parts_end = max([min(self._opened.parts_end, self._upload.offset), *(part.end for part in self._parts)])
        layouts = (Layout(tails=tuple(self._tails)), self._opened)
        candidates = [layout.tails_from(self._parts_end, offset) for layout in layouts]
        tails = next((tails for tails in candidates if tails and tails[-1].end == offset), ())
        needed = {tail.name for tail in tails}
        names = dict.fromkeys((*self._dropped.names, *(tail.name for tail in self._tails), *self._made))
        unneeded = [name for name in names if name not in needed]
        unused = [name for name in unneeded if name in self._made and name not in self._published]
        self._dropped.replace([name for name in unneeded if name not in unused])
        self._made = [name for name in self._made if name not in unused]
        self._tails = list(tails)
        self._flights.forget()
        if not self._engine.config.capabilities.number_gaps:
            self._next = self._sizes.number_at(self._parts_end)
        self.stored = tails[-1].end if tails else min(offset, self._parts_end)
        if kept is not self._open or kept.start != self._parts_end:
            kept = PartBuffer(self._parts_end, self.stored, self.stored)
        self._open = kept
        await self._remove(unused)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._jobs.wait()
        await self._flights.land()
        self._closed = True
        if self._begun:
            await self._let_go()

    # Taking bytes.

    def _begin(self) -> None:
        """With the first bytes: see that those before them are there."""
        if self._begun:
            return
        covered = self._opened.covered(self._upload.offset)
        if covered < self._upload.offset:
            raise StorageBehind(covered)
        self._begun = True
        memory = self._engine.memory
        memory.register(self)
        kept = memory.recall(self._upload.id, self._upload.layout, self._upload.offset)
        if kept is not None:
            self._open = PartBuffer(self._parts_end, kept.start, self._upload.offset, kept.pieces)

    async def _take(self, buffers: Sequence[Buffer]) -> None:
        """Copy the bytes; they leave with the part that they fill."""
        self._begin()
        self._pace.bytes_came(time.monotonic())
        try:
            await self._copy(buffers)
        finally:
            self._pace.bytes_taken(time.monotonic())

    async def _copy(self, buffers: Sequence[Buffer]) -> None:
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while views:
            room = self._sizes.size(self._next) - self._open.size
            if room <= 0:
                await self._launch()
                continue
            taken = cut(views, min(room, MAX_COPY_SIZE))
            size = sum(map(len, taken))
            await self._admission(room, size)
            await self._engine.memory.take(size)
            try:
                self._jobs.check()
                crc = self._open.crc if self._engine.wants_crc else None
                pieces, crc = await self._engine.copying.run(
                    partial(copied, taken, self._observer, self._engine.memory.block, crc)
                )
                self._jobs.check()
            except BaseException:
                self._engine.memory.release(size)
                raise
            for piece in pieces:
                self._open.add(piece)
            self._open.crc = crc
            self._engine.memory.rebalance()  # these can be spilled now
            if size == room and not self._ends_here():
                await self._launch()

    async def _admission(self, room: int, size: int) -> None:
        """Wait for the turn to fill a part; a little does not have to."""
        if self._admitted_at is None and self._open.in_memory + size > ALWAYS_ADMITTED:
            await self._engine.memory.admit(self, self._left(room))
            self._admitted_at = time.monotonic()

    def _left(self, room: int) -> int:
        """Bytes that can still come into the open part."""
        length = self._upload.length
        return room if length is None else min(room, max(0, length - self._open.end))

    def _ends_here(self) -> bool:
        """Whether this is the last byte of an upload that fits into one part, and so needs no multipart upload."""
        return self._open.start == 0 and self._open.end == self._upload.length

    async def _check_earlier(self) -> None:
        """See that parts and tails of earlier writers are still there, before more is acknowledged on top of them."""
        if not self._unchecked:
            return
        engine, opened = self._engine, self._opened
        if opened.multipart and opened.multipart not in engine.seen:
            await engine.check_multipart(self._key, opened.multipart)
        await engine.check_tails(self._upload, opened.tails_from(opened.parts_end, self._upload.offset))
        self._unchecked = False

    async def _flush(self, buffers: Sequence[Buffer]) -> None:
        await self._take(buffers)
        check, _, tail = await asyncio.gather(
            self._check_earlier(), self._flights.land(), self._store_tail(), return_exceptions=True
        )
        self._engine.memory.rebalance()  # while the tail was on its way, nothing could be spilled
        if isinstance(check, BaseException):
            raise check
        self._advance()
        self._jobs.check()
        if isinstance(tail, BaseException):
            raise tail
        await self._remove_dropped()

    async def _finish(self, buffers: Sequence[Buffer]) -> None:
        await self._take(buffers)
        if self._open.end == self._upload.offset and not self._flights and not self._parts:
            return  # nothing new
        if self._flights.multipart is None and self._open.start == 0 and not self._flights:
            await self._place()
            return
        if self._open.size:
            await self._launch()
        await self._flights.land()
        self._jobs.check()

    async def _place(self) -> None:
        """All bytes are in one part: they become the object in one request."""
        async with self._tail_lock:
            flight = self._flight()
        try:
            await self._flights.load(flight)
            marker = await self._engine.put_object(self._upload, self._key, flight.pieces, self._token, flight.crc)
            self._engine.memory.release_buffers(flight.pieces)
        finally:
            self._engine.memory.release(flight.held)
        self.stored = flight.end
        self._changed = True
        if self._tails or self._dropped.names:
            self._placed = marker
        else:
            self._whole = True

    # Parts.

    def _flight(self) -> PendingPart:
        """The open part leaves, the next one begins. Raises what has failed: a spill that did took bytes with it."""
        self._jobs.check()
        part = self._open
        self._admitted_at = None
        self._open = PartBuffer(part.end, part.end, part.end)
        tails = tuple(tail for tail in self._tails if part.start <= tail.start < part.memory_start)
        return PendingPart(
            self._next, part.start, part.end, part.memory_start, part.pieces, part.crc, tails, part.in_memory
        )

    async def _launch(self) -> None:
        await self._flights.wait_for_turn()
        if self._next > self._sizes.max_parts:
            raise MaxSizeExceeded(f"the storage takes no more than {self._sizes.max_parts} parts of an upload")
        async with self._tail_lock:
            flight = self._flight()
        self._next += 1
        self._flights.launch(flight)

    def _part_landed(self, failure: Exception | None) -> None:
        if failure is not None:
            self._jobs.fail(failure)
        self._advance()

    def _stored_apart(self, name: str) -> None:
        """A tail that no layout has to name, and nothing needs once its part has arrived."""
        self._made.append(name)
        self._dropped.add(name)

    # The tail.

    async def _store_tail(self) -> None:
        """Store what does not fill a part yet, if it is not stored already."""
        async with self._tail_lock:
            self._jobs.check()  # as in _flight
            part = self._open
            end = part.end
            tails = [tail for tail in self._tails if tail.start >= part.start]
            durable = tails[-1].end if tails else part.start
            if end == durable:
                return
            merged = await self._merged(part, tails, durable, end)
            first = merged[0].start if merged else durable
            tail = await self._engine.put_tail(self._upload, first, part.since(first))
            self._made.append(tail.name)
            self._drop([old for old in merged if old in self._tails])
            self._tails.append(tail)
            self._changed = True
            self._advance()

    async def _merged(self, part: PartBuffer, tails: Sequence[Tail], start: int, end: int) -> list[Tail]:
        """The tails that the new one replaces, with their bytes in memory."""
        merged = worth_merging(tails, start, end)
        absent = [tail for tail in merged if tail.start < part.memory_start]
        size = sum(tail.size for tail in absent)
        if absent and not self._engine.memory.try_take(size):
            return merged[len(absent) :]
        if absent:
            try:
                pieces = await self._engine.get_tails(self._upload, absent)
            except BaseException:
                self._engine.memory.release(size)
                raise
            part.prepend(pieces)
        return merged

    async def _remove_dropped(self) -> None:
        names = self._dropped.batch()
        if names:
            self._dropped.deleted(names, done=await self._engine.remove_tails(self._upload, names))

    async def _remove(self, names: Sequence[str]) -> None:
        if names:
            await self._engine.remove_tails(self._upload, names)

    # Memory.

    @property
    def expected(self) -> int:
        if self._admitted_at is None or self.silent:
            return 0
        left = self._left(self._sizes.size(self._next) - self._open.size)
        seconds = time.monotonic() - self._admitted_at
        return left if seconds < PACING_WINDOW else min(left, int(self._open.in_memory / seconds * PACING_WINDOW))

    @property
    def silent(self) -> bool:
        return self._pace.is_silent(time.monotonic())

    @property
    def spillable(self) -> int:
        busy = self._spilling is not None or self._tail_lock.locked() or self._closed
        return 0 if busy or self._jobs.failure is not None else self._open.in_memory

    def spill(self) -> None:
        self._engine.memory.spilling += 1
        self._spilling = asyncio.create_task(self._spill())

    async def _spill(self) -> None:
        memory = self._engine.memory
        part = self._open
        memory.moving += 1
        try:
            await self._store_tail()
            end = max((tail.end for tail in self._tails), default=0)
        except UploadError as error:
            self._jobs.fail(error)
            end = part.end
        finally:
            memory.moving -= 1
            memory.spilling -= 1
            self._spilling = None
        freed = part.forget_before(min(end, part.end)) if part is self._open else 0
        memory.release(freed)

    async def _forget_memory(self) -> None:
        if self._spilling is not None:
            await asyncio.wait((self._spilling,))
        part, self._open = self._open, PartBuffer(self._open.end, self._open.end, self._open.end)
        self._engine.memory.release(part.in_memory)

    async def _let_go(self) -> None:
        engine, part = self._engine, self._open
        if self._spilling is not None:
            await asyncio.wait((self._spilling,))
        engine.memory.unregister(self)
        if part.pieces and self._jobs.failure is None and self.stored == part.end:
            kept = Kept(dump(self._describe()), part.memory_start, part.pieces, part.in_memory)
            engine.memory.keep(self._upload.id, kept)
        else:
            await self._forget_memory()
        if self._next > self._published_next:
            engine.used_numbers[self._upload.id] = self._next
        await self._remove([name for name in self._made if name not in self._published])
        multipart = self._flights.multipart
        if multipart is not None and multipart.id not in (self._opened.multipart, *self._published):
            await self._flights.abort()
