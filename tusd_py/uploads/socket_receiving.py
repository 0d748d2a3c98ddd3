"""The receiving of one append by the thread that stores its bytes, past the event loop."""

from __future__ import annotations

from tusd_py.contracts.storage import ThreadedWriter
from tusd_py.transfer.batch_writer import BatchWriter
from tusd_py.transfer.body_source import BodySource, LendsSocket
from tusd_py.transfer.socket_turn import MIN_TURN


class SocketReceiving:
    """The turns of threads with the connection of one append, as long as its client is fast."""

    def __init__(self, source: BodySource, writer: ThreadedWriter, batches: BatchWriter) -> None:
        """Take the writer of `batches`."""
        self._source = source if isinstance(source, LendsSocket) else None
        self._writer = writer
        self._batches = batches

    async def receive(self, most: int) -> int | None:
        """Receive and store at most `most` bytes after those of `batches`; return None if the source has to be read.

        Raises:
            UploadError: see `Writer.flush`.
        """
        if self._source is None or most < MIN_TURN or not self._writer.can_receive():
            return None
        turn = self._source.lend(most)
        if turn is None:
            return None
        try:
            await self._batches.receive(self._writer, turn)
        finally:
            self._source.take_back(turn)
        return turn.received or None  # a turn in which nothing could be taken is not repeated
