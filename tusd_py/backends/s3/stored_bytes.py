"""The parts and tails of one upload that S3 has stored, and their description in the record. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from tusd_py.backends.s3.config import S3Config
from tusd_py.backends.s3.layout import Layout, Multipart, Tail, dump
from tusd_py.backends.s3.object_keys import object_key
from tusd_py.backends.s3.part_sizes import PartSizes
from tusd_py.backends.s3.tails import SupersededTails
from tusd_py.contracts.storage import WriterSnapshot
from tusd_py.core.upload import Upload, UploadPart


class StoredBytes:
    """The stored bytes of one upload while a writer appends to it.

    Invariants: the bytes up to `parts_end` are in parts, those from there to `offset` in tails, without a gap; a tail
    that a committed record may name is never deleted. A record gets parts and tails from `take_snapshot`; `committed`
    tells that it has them.
    """

    def __init__(self, config: S3Config, upload: Upload, opened: Layout, sizes: PartSizes, next_number: int) -> None:
        self._config = config
        self._upload = upload
        self.opened = opened  # the layout that the writer found
        self.key = opened.key or object_key(config, upload)
        self.sizes = sizes
        self.next_number = next_number  # number of the next part
        self.multipart = Multipart(self.key, opened.multipart, opened.put_id) if opened.multipart else None
        self.parts: list[UploadPart] = []  # parts of this writer
        self.parts_end = min(opened.parts_end, upload.offset)
        self.tails = list(opened.tails_from(self.parts_end, upload.offset))
        self.offset = upload.offset  # end of the stored bytes
        self.is_assembled = False  # whether the object holds every byte
        self._placed = ""  # put id of the object that holds every byte, yet to be verified
        needed = {tail.name for tail in self.tails}
        unneeded = [tail.name for tail in opened.tails if tail.name not in needed]
        self.superseded = SupersededTails(opened.dropped, unneeded)
        self._changed = False
        self._own_tails: list[str] = []  # tails of this writer
        self._published: set[str] = set()  # tails and multipart uploads that a snapshot named
        self._published_next = opened.next_number
        self._committed_parts = 0  # number of `parts`, from the first on, that the part list of the record has

    # The record.

    def describe(self) -> Layout:
        """Return the current layout, without publishing it."""
        multipart = self.multipart
        return Layout(
            key=self.key,
            part_size=self.sizes.first,
            growing=self.sizes.growing,
            largest=self.sizes.largest if self.sizes.growing else 0,
            multipart=multipart.id if multipart else "",
            put_id=multipart.put_id if multipart else "",
            next_number=self.next_number,
            parts_end=self.parts_end,
            tails=tuple(self.tails),
            dropped=tuple(self.superseded.names),
            placed=self._placed,
            is_assembled=self.is_assembled,
        )

    def take_snapshot(self) -> WriterSnapshot:
        """Return the state up to `offset`; from now on a record may name everything in it."""
        if not self._changed:
            return WriterSnapshot(self.offset, storage_state=self._upload.storage_state)
        layout = self.describe()
        self._published.update(layout.tail_names)
        self._published.add(layout.multipart)
        self._published_next = layout.next_number
        self.superseded.snapshot_taken()
        # Counted, not compared by their ends: a part may hold bytes that were committed as tails before.
        new_parts = tuple(self.parts[self._committed_parts :])
        return WriterSnapshot(self.offset, storage_state=dump(layout), new_parts=new_parts)

    def committed(self, snapshot: WriterSnapshot) -> None:
        """Record that the record has the last snapshot, which makes tails that it does not need deletable."""
        self.superseded.snapshot_committed()
        self._committed_parts += len(snapshot.new_parts)

    # Progress.

    def add_parts(self, parts: Sequence[UploadPart]) -> None:
        """Record that S3 has stored these parts, which follow the ones before them."""
        for part in parts:
            self.parts.append(part)
            self.parts_end = part.end
            self._changed = True
        self._supersede([tail for tail in self.tails if tail.end <= self.parts_end])
        self._advance()

    def add_tail(self, tail: Tail, replaced: Sequence[Tail]) -> None:
        """Record that S3 has stored this tail, which holds the bytes of the `replaced` ones too."""
        self._own_tails.append(tail.name)
        self._supersede([old for old in replaced if old in self.tails])
        self.tails.append(tail)
        self._changed = True
        self._advance()

    def add_temporary_tail(self, name: str) -> None:
        """Record a tail that no record has to name, and that is not needed once its part is stored."""
        self._own_tails.append(name)
        self.superseded.add(name)

    def add_object(self, put_id: str, end: int) -> None:
        """Record that the object with this put id holds every byte up to `end`, the end of the upload."""
        self.offset = end
        self._changed = True
        if self.tails or self.superseded.names:
            self._placed = put_id
        else:
            self.is_assembled = True

    def _advance(self) -> None:
        self.offset = self.parts_end
        for tail in self.tails:
            if tail.start <= self.offset < tail.end:
                self.offset = tail.end

    def _supersede(self, tails: Sequence[Tail]) -> None:
        for tail in tails:
            self.tails.remove(tail)
            self.superseded.add(tail.name)

    # Rewinding.

    def rewind(self, offset: int) -> list[str]:
        """Drop the stored bytes from `offset` on; return the names of tails that no record names, to be deleted."""
        self.parts = [part for part in self.parts if part.end <= offset]
        self._committed_parts = 0
        opened_end = min(self.opened.parts_end, self._upload.offset)
        self.parts_end = max([opened_end, *(part.end for part in self.parts)])
        tails = self._tails_up_to(offset)
        needed = {tail.name for tail in tails}
        names = dict.fromkeys((*self.superseded.names, *(tail.name for tail in self.tails), *self._own_tails))
        unneeded = [name for name in names if name not in needed]
        unused = [name for name in unneeded if name in self._own_tails and name not in self._published]
        self.superseded.replace([name for name in unneeded if name not in unused])
        self._own_tails = [name for name in self._own_tails if name not in unused]
        self.tails = list(tails)
        self.offset = tails[-1].end if tails else min(offset, self.parts_end)
        if not self._config.capabilities.number_gaps:
            self.next_number = self.sizes.number_at(self.parts_end)
        return unused

    def _tails_up_to(self, offset: int) -> tuple[Tail, ...]:
        """Return the tails between the parts and `offset`, current or found at the start; none if they lack bytes."""
        for layout in (Layout(tails=tuple(self.tails)), self.opened):
            tails = layout.tails_from(self.parts_end, offset)
            if tails and tails[-1].end == offset:
                return tails
        return ()

    # The end of the writer.

    def unpublished_tails(self) -> list[str]:
        """Return the names of tails of this writer that no record can name."""
        return [name for name in self._own_tails if name not in self._published]

    def unpublished_multipart(self) -> Multipart | None:
        """Return the multipart upload of this writer if no record can name it."""
        multipart = self.multipart
        if multipart is None or multipart.id == self.opened.multipart or multipart.id in self._published:
            return None
        return multipart

    def unpublished_number(self) -> int | None:
        """Return the next part number if no record tells that those before it were used; otherwise None."""
        return self.next_number if self.next_number > self._published_next else None
