"""Copies of records with other values of some fields."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from tusd_py.core.upload import Status, Upload, UploadKind, changed, make_upload

UPLOAD = Upload(
    id="some",
    created_at=1.5,
    length=10,
    metadata="name dA==",
    concatenation=UploadKind.PARTIAL,
    partial_ids=("a", "b"),
    updated_at=3.0,
)


def test_a_copy_is_that_of_dataclasses() -> None:
    copy = changed(UPLOAD, offset=10, status=Status.COMPLETE, token=7)
    expected = replace(UPLOAD, offset=10, status=Status.COMPLETE, token=7)
    assert [getattr(copy, field.name) for field in fields(Upload)] == [
        getattr(expected, field.name) for field in fields(Upload)
    ]
    assert (type(copy), copy, hash(copy), repr(copy)) == (Upload, expected, hash(expected), repr(expected))
    assert UPLOAD.offset == 0


def test_a_copy_cannot_be_changed() -> None:
    copy = changed(UPLOAD, offset=1)
    with pytest.raises(FrozenInstanceError):
        copy.offset = 2  # type: ignore[misc]


def test_a_name_that_is_no_field_is_refused() -> None:
    with pytest.raises(KeyError):
        changed(UPLOAD, size=1)


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_record_has_a_value_for_each_field(surplus: int) -> None:
    values = [None] * (len(fields(Upload)) + surplus)
    with pytest.raises(ValueError, match="zip"):
        make_upload(values)
