"""The table from errors to answers."""

from __future__ import annotations

import pytest

from tusd_py.core.errors import BrokenRecord, UploadError
from tusd_py.http.errors import INTERNAL_ERROR, STATUS, TRY_LATER

WORTH_ANOTHER_TRY = (423, 429, 500, 503, 507)


@pytest.mark.parametrize("kind", STATUS, ids=lambda kind: kind.__name__)
def test_an_error_that_may_pass_is_answered_with_retry_after(kind: type[UploadError]) -> None:
    status, retry, _ = STATUS[kind]
    assert retry is (status in WORTH_ANOTHER_TRY and kind is not BrokenRecord)


def test_error_without_a_table_entry_is_answered_with_retry_after() -> None:
    assert INTERNAL_ERROR.retry
    assert TRY_LATER.retry
