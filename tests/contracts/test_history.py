"""The history of uploads, kept by the state stores that can."""

from __future__ import annotations

from tusd_py.contracts.queries import SupportsHistory
from tusd_py.contracts.state import StateStore
from tusd_py.core.history import MAX_ENTRIES, HistoryEntry, decode_entry
from tusd_py.core.upload import Upload
from tusd_py.uploads.queries import RecordQueries

UPLOAD = Upload("upload", created_at=1.0)


def entry(number: int) -> HistoryEntry:
    return HistoryEntry("interrupted", 1.5 + number, number, "änn ☃", "2001:db8::1", "ERR_X")


async def test_history_is_kept_in_order_and_goes_with_the_record(state: StateStore, other_state: StateStore) -> None:
    assert isinstance(state, SupportsHistory)
    assert isinstance(other_state, SupportsHistory)
    await RecordQueries(state).prepare()
    await state.create(UPLOAD)
    await state.create(Upload("other", created_at=1.0))
    assert await state.history("upload") == []
    for number in range(3):
        await state.add_history("upload", entry(number))
    await state.add_history("other", entry(9))
    assert await other_state.history("upload") == [entry(number) for number in range(3)]
    await state.delete("upload", 1)
    assert await other_state.history("upload") == []
    assert await other_state.history("other") == [entry(9)]


async def test_newest_entries_are_kept(state: StateStore) -> None:
    assert isinstance(state, SupportsHistory)
    await state.create(UPLOAD)
    for number in range(MAX_ENTRIES + 5):
        await state.add_history("upload", entry(number))
    assert await state.history("upload") == [entry(number) for number in range(5, MAX_ENTRIES + 5)]


async def test_upload_without_a_record_has_no_history(state: StateStore) -> None:
    assert isinstance(state, SupportsHistory)
    await state.add_history("upload", entry(1))
    await state.create(UPLOAD)
    assert await state.history("upload") == []


def test_entry_of_another_version_is_passed_over() -> None:
    assert decode_entry(entry(1).encode()) == entry(1)
    for text in ("", "{}", "[]", '["a"]', '["a", 1.0, 0, "", "", "", "new"]', '["a", "x", 0, "", "", ""]', "null"):
        assert decode_entry(text) is None
