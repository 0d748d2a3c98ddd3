"""Scans that a scanner cuts off: one that was stopped is told from one that does not take so many bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pytest

from tusd_py.contracts.scanner import ScanImpossible
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import MalwareFound, ScanSizeExceeded, ScanUnavailable
from tusd_py.core.upload import Upload
from tusd_py.uploads import scans
from tusd_py.uploads.options import ScanOptions
from tusd_py.uploads.scans import CUT_TOLERANCE, Scans

UPLOAD = Upload("a", 1.0, 5, offset=5)
FAR = CUT_TOLERANCE + 1


class Scripted:
    """A scanner that answers its calls so: cut off after so many bytes, away (None), or with the name of malware."""

    def __init__(self, answers: Sequence[int | str | None]) -> None:
        self.answers = list(answers)
        self.read: list[bytes] = []

    async def scan(self, pieces: AsyncIterator[Buffer]) -> str:
        self.read.append(b"".join([bytes(piece) async for piece in pieces]))
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            return answer
        raise ScanImpossible("it is away", cut_at=answer)


async def pieces() -> AsyncGenerator[Buffer, None]:
    yield b"hel"
    yield b"lo"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([""], None),
        ([3, ""], None),
        ([3, "Test.Malware"], MalwareFound),
        ([None], ScanUnavailable),
        ([3, None], ScanUnavailable),
        ([3, 3], ScanSizeExceeded),
        ([3, 3 + CUT_TOLERANCE], ScanSizeExceeded),
        ([3, 3 + FAR], ScanUnavailable),
        ([3 + FAR, 3], ScanUnavailable),
    ],
)
async def test_only_a_second_cut_at_about_the_same_byte_is_a_limit(
    answers: list[int | str | None], expected: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "RETRY_AFTER_CUT", 0)
    scanner = Scripted(answers)
    subject = Scans(scanner, ScanOptions())
    if expected is None:
        await subject.scan(UPLOAD, pieces)
    else:
        with pytest.raises(expected):
            await subject.scan(UPLOAD, pieces)
    assert scanner.answers == []
    assert scanner.read == [b"hello"] * len(answers)
