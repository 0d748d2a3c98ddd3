"""The part of the storage suite for storages that can put uploads together (`SupportsConcatenation`)."""

from __future__ import annotations

from dataclasses import replace

from tusd_py.contracts.storage import Storage, SupportsConcatenation
from tusd_py.core.errors import UploadNotFound
from tusd_py.testing.storage_helpers import LARGE, content, final_of, partials, store
from tusd_py.testing.support import Instances, pytest


class ConcatenationTests:
    """The duties of a storage that supports concatenation; skipped for others."""

    @pytest.fixture
    def concatenates(self, storage: Storage) -> SupportsConcatenation:
        """The storage, if it supports concatenation."""
        if not isinstance(storage, SupportsConcatenation):
            pytest.skip("the storage does not support concatenation")
        return storage

    @pytest.mark.parametrize("sync", [False, True])
    @pytest.mark.parametrize(
        ("contents", "order"),
        [
            pytest.param([b"one ", b"two ", b"three"], [0, 1, 2], id="in order"),
            pytest.param([b"one ", b"two ", b"three"], [2, 0, 1], id="in another order"),
            pytest.param([b"once"], [0], id="one"),
            pytest.param([b"same ", b"other "], [0, 1, 0, 0], id="one several times"),
            pytest.param([b"", b"a", b"", b"b", b""], [0, 1, 2, 3, 4], id="some without bytes"),
            pytest.param([b""], [0, 0], id="no bytes at all"),
            pytest.param([LARGE, b"between", LARGE[::-1]], [0, 1, 2, 0], id="large"),
            pytest.param([b"%d" % number for number in range(50)], list(range(50)), id="many"),
        ],
    )
    async def test_concatenating(
        self, storage: Storage, concatenates: SupportsConcatenation, contents: list[bytes], order: list[int], sync: bool
    ) -> None:
        stored = await partials(storage, *contents)
        parts = [stored[number] for number in order]
        final = final_of(parts)
        final = replace(final, storage_state=await concatenates.concatenate(final, parts, sync=sync))
        assert await storage.stored_size(final) == final.length
        assert await content(storage, final) == b"".join(contents[number] for number in order)
        for part, data in zip(stored, contents, strict=True):
            assert await content(storage, part) == data

    async def test_a_final_upload_does_not_need_its_partials_any_more(
        self, storage: Storage, concatenates: SupportsConcatenation
    ) -> None:
        parts = await partials(storage, b"one ", b"two")
        final = final_of(parts)
        final = replace(final, storage_state=await concatenates.concatenate(final, parts, sync=True))
        for part in parts:
            await storage.delete(part)
        assert await content(storage, final) == b"one two"
        await storage.delete(final)
        assert await storage.stored_size(final) == 0

    async def test_concatenating_may_be_repeated(
        self, storages: Instances[Storage], storage: Storage, concatenates: SupportsConcatenation
    ) -> None:
        parts = await partials(storage, b"one ", b"two")
        final = final_of(parts)
        await concatenates.concatenate(final, parts, sync=False)
        other = await storages.open()
        assert isinstance(other, SupportsConcatenation)
        final = replace(final, storage_state=await other.concatenate(final, parts, sync=True))
        assert await content(storage, final) == b"one two"

    async def test_a_partial_that_is_gone(self, storage: Storage, concatenates: SupportsConcatenation) -> None:
        parts = await partials(storage, b"one ", b"two ", b"three")
        final = final_of(parts)
        await storage.delete(parts[1])
        for _ in range(2):
            with pytest.raises(UploadNotFound):
                await concatenates.concatenate(final, parts, sync=True)
        parts[1] = await store(storage, parts[1].id, b"TWO ")
        final = replace(final, storage_state=await concatenates.concatenate(final, parts, sync=True))
        assert await content(storage, final) == b"one TWO three"

    async def test_what_a_failed_concatenation_left_can_be_deleted(
        self, storage: Storage, concatenates: SupportsConcatenation
    ) -> None:
        parts = await partials(storage, b"one ", b"two")
        final = final_of(parts)
        await storage.delete(parts[1])
        with pytest.raises(UploadNotFound):
            await concatenates.concatenate(final, parts, sync=True)
        await storage.delete(final)
        assert await storage.stored_size(final) == 0
        assert await content(storage, parts[0]) == b"one "
