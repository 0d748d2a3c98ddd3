"""The part of the state store suite about part lists."""

from __future__ import annotations

from dataclasses import replace

from tusd_py.contracts.state import StateStore
from tusd_py.core.errors import LockLost
from tusd_py.core.upload import Status, UploadPart
from tusd_py.testing.state_helpers import UPLOAD
from tusd_py.testing.support import pytest

PART_LIST = [UploadPart(1, 40, '"a"', "c1"), UploadPart(2, 80, '"b"'), UploadPart(11, 90, '"c"', "c3")]

IN_PARTS = replace(UPLOAD, storage_state="parts")


class PartListTests:
    """The duties of a state store that keeps the part lists of uploads."""

    async def test_parts_are_kept_with_the_offset(self, state: StateStore, other_state: StateStore) -> None:
        await state.create(IN_PARTS)
        assert list(await other_state.parts(UPLOAD.id)) == []
        first = await state.update(IN_PARTS, IN_PARTS.at(80), 1, parts=PART_LIST[:2])
        await state.update(first, first.at(90), 1, parts=PART_LIST[2:])
        assert list(await other_state.parts(UPLOAD.id)) == PART_LIST
        assert list(await other_state.parts("another")) == []

    async def test_a_part_takes_the_place_of_one_with_its_number(self, state: StateStore) -> None:
        await state.create(IN_PARTS)
        first = await state.update(IN_PARTS, IN_PARTS.at(90), 1, parts=PART_LIST)
        changed = UploadPart(2, 85, '"d"')
        await state.update(first, first.at(85), 1, parts=[changed])
        assert list(await state.parts(UPLOAD.id)) == [PART_LIST[0], changed, PART_LIST[2]]

    async def test_who_lost_the_lock_adds_no_parts(self, state: StateStore, other_state: StateStore) -> None:
        await state.create(IN_PARTS)
        await state.update(IN_PARTS, IN_PARTS.at(40), 9, parts=PART_LIST[:1])
        with pytest.raises(LockLost):
            await other_state.update(
                IN_PARTS, IN_PARTS.at(80), 8, parts=[replace(PART_LIST[0], etag="x"), PART_LIST[1]]
            )
        assert list(await state.parts(UPLOAD.id)) == PART_LIST[:1]

    async def test_a_complete_upload_has_no_parts(self, state: StateStore, other_state: StateStore) -> None:
        await state.create(IN_PARTS)
        before = await state.update(IN_PARTS, IN_PARTS.at(90), 1, parts=PART_LIST)
        await state.update(before, replace(before, status=Status.COMPLETE, storage_state="whole"), 1)
        assert list(await other_state.parts(UPLOAD.id)) == []

    async def test_parts_go_with_their_upload(self, state: StateStore, other_state: StateStore) -> None:
        await state.create(IN_PARTS)
        await state.update(IN_PARTS, IN_PARTS.at(90), 1, parts=PART_LIST)
        await state.delete(UPLOAD.id, 1)
        await other_state.create(IN_PARTS)
        assert list(await state.parts(UPLOAD.id)) == []
