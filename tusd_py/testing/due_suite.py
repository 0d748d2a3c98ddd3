"""The part of the state store suite about uploads that are due for the sweeper."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tusd_py.contracts.state import StateStore
from tusd_py.core.upload import Status, UploadKind
from tusd_py.testing.state_helpers import UPLOAD
from tusd_py.testing.support import pytest

NOW = 1000.0

DUE = [
    replace(UPLOAD, id="expired", expires_at=NOW - 1),
    replace(UPLOAD, id="expires-now", expires_at=NOW),
    replace(UPLOAD, id="expired-partial", status=Status.COMPLETE, expires_at=1.0, concatenation=UploadKind.PARTIAL),
    replace(UPLOAD, id="terminated", status=Status.TERMINATED, expires_at=NOW - 1),
    replace(UPLOAD, id="ended-by-the-sweeper", status=Status.EXPIRED, expires_at=NOW - 1),
    replace(UPLOAD, id="finishing", status=Status.FINISHING),
    replace(UPLOAD, id="finishing-and-to-expire", status=Status.FINISHING, expires_at=NOW + 1),
    replace(UPLOAD, id="finishing-and-expired", status=Status.FINISHING, expires_at=NOW - 1),
    replace(UPLOAD, id="final", status=Status.FINISHING, concatenation=UploadKind.FINAL),
    replace(UPLOAD, id="waited", status=Status.FINISHING, concatenation=UploadKind.FINAL, expires_at=NOW),
]

NOT_DUE = [
    replace(UPLOAD, id="active", expires_at=NOW + 0.001),
    replace(UPLOAD, id="never-expires"),
    replace(UPLOAD, id="waits", status=Status.FINISHING, concatenation=UploadKind.FINAL, expires_at=NOW + 1),
    replace(UPLOAD, id="complete", status=Status.COMPLETE, completed_at=1.0),
    replace(UPLOAD, id="partial", status=Status.COMPLETE, expires_at=NOW + 1, concatenation=UploadKind.PARTIAL),
]


class DueTests:
    """The duties of a state store that finds what is due."""

    async def test_due_is_what_has_expired_or_is_finishing(self, state: StateStore, other_state: StateStore) -> None:
        await asyncio.gather(*map(state.create, [*DUE, *NOT_DUE]))
        for store in (state, other_state):
            due = await store.due(NOW, 100)
            assert sorted(due, key=lambda upload: upload.id) == sorted(DUE, key=lambda upload: upload.id)

    @pytest.mark.parametrize("limit", [0, 1, 3, len(DUE), 1 << 31])
    async def test_at_most_so_many_are_due(self, state: StateStore, limit: int) -> None:
        await asyncio.gather(*map(state.create, [*DUE, *NOT_DUE]))
        due = await state.due(NOW, limit)
        assert len(due) == min(limit, len(DUE))
        assert len({upload.id for upload in due}) == len(due)
        assert all(upload in DUE for upload in due)

    @pytest.mark.parametrize("size", [1, 2, 5])
    async def test_due_passes_over_as_many_as_it_is_told(self, state: StateStore, size: int) -> None:
        await asyncio.gather(*map(state.create, [*DUE, *NOT_DUE]))
        pages = [await state.due(NOW, size, skip=skip) for skip in range(0, len(DUE) + size, size)]
        assert sorted(upload.id for page in pages for upload in page) == sorted(upload.id for upload in DUE)

    async def test_what_becomes_waiting_is_due_later(self, state: StateStore) -> None:
        final = replace(UPLOAD, status=Status.FINISHING, concatenation=UploadKind.FINAL)
        await state.create(final)
        assert [upload.id for upload in await state.due(NOW, 10)] == [UPLOAD.id]
        waiting = await state.update(final, replace(final, expires_at=NOW + 10), 1)
        await state.due(NOW + 20, 10)
        assert [upload.id for upload in await state.due(NOW + 10, 10)] == [UPLOAD.id]
        again = await state.update(waiting, replace(waiting, expires_at=NOW + 30), 1)
        assert [upload.id for upload in await state.due(NOW + 30, 10)] == [UPLOAD.id]
        await state.update(again, replace(again, status=Status.COMPLETE, expires_at=None), 1)
        assert list(await state.due(NOW + 1000, 10)) == []

    async def test_waiting_finals_are_found_by_their_part(self, state: StateStore, other_state: StateStore) -> None:
        finals = {f"final-{number}" for number in range(250)}
        await asyncio.gather(*(state.add_waiting("part", final) for final in finals))
        await state.add_waiting("other-part", "other-final")
        await state.add_waiting("part", "final-7")  # a second time
        assert list(await state.waiting_for("unknown", 10)) == []
        found: set[str] = set()
        while page := await other_state.waiting_for("part", 100):
            assert len(set(page)) == len(page) <= 100
            assert not found & set(page)
            found |= set(page)
            await other_state.remove_waiting("part", page)
        assert found == finals
        assert list(await state.waiting_for("other-part", 10)) == ["other-final"]
        await state.remove_waiting("other-part", [])
        await state.remove_waiting("other-part", ["unknown"])
        assert list(await state.waiting_for("other-part", 10)) == ["other-final"]

    async def test_what_was_dealt_with_is_no_longer_due(self, state: StateStore) -> None:
        await asyncio.gather(*map(state.create, DUE))
        seen = set()
        while due := await state.due(NOW, 3):
            for upload in due:
                seen.add(upload.id)
                if upload.status is Status.FINISHING:
                    complete = replace(upload, status=Status.COMPLETE, expires_at=None)
                    await state.update(upload, complete, upload.token)
                else:
                    await state.delete(upload.id, upload.token)
        assert seen == {upload.id for upload in DUE}

    async def test_nothing_is_due_in_an_empty_store(self, state: StateStore) -> None:
        assert list(await state.due(NOW, 10)) == []
