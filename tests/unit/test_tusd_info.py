"""The .info files of tusd, read and turned into records."""

from __future__ import annotations

import pytest

from tests.support.tusd_directory import settings_of
from tests.support.wire.messages import encoded, shown
from tusd_py.core.upload import Status, UploadKind
from tusd_py.migration.report import UploadRefused
from tusd_py.migration.tusd.info import metadata_header, parse_info, to_upload


@pytest.mark.parametrize(
    ("pairs", "header"),
    [
        ({}, None),
        ({"a": ""}, "a"),
        ({"b": "2", "a": "1"}, "a MQ==,b Mg=="),
        ({"a": "", "b": ""}, "a,b"),
        ({"name": "é\0\n,="}, f"name {encoded('é' + chr(0) + chr(10) + ',=')}"),
        ({"k" * 100_000: "v" * 100_000}, f"{'k' * 100_000} {encoded('v' * 100_000)}"),
        ({str(number): "" for number in range(1000)}, ",".join(sorted(map(str, range(1000))))),
    ],
    ids=shown,
)
def test_metadata_header_is_sorted_and_encoded(pairs: dict[str, str], header: str | None) -> None:
    assert metadata_header(pairs) == header


def test_info_of_an_old_tusd_gives_a_complete_upload() -> None:
    found = parse_info(b'{"ID":"x","Size":3,"Offset":0,"MetaData":null,"IsPartial":false,"PartialUploads":null}')
    assert (found.id, found.length, found.metadata, found.path) == ("x", 3, None, "")
    upload = to_upload(found, 3, created_at=5, modified_at=6, now=7, settings=settings_of())
    assert (upload.status, upload.created_at, upload.completed_at) == (Status.COMPLETE, 5, 6)
    assert upload.concatenation is UploadKind.NONE
    assert upload.expires_at is None


def test_info_of_a_final_upload_gives_concat_header_with_base_path() -> None:
    found = parse_info(b'{"ID":"x","Size":3,"IsFinal":true,"PartialUploads":["a","b","a"]}')
    settings = settings_of(base_path="/deep/files")
    upload = to_upload(found, 3, created_at=5, modified_at=6, now=7, settings=settings)
    assert upload.concat_header == "final;/deep/files/a /deep/files/b /deep/files/a"
    assert upload.partial_ids == ("a", "b", "a")
    with pytest.raises(UploadRefused, match="only 2 of its 3 bytes"):
        to_upload(found, 2, created_at=5, modified_at=6, now=7, settings=settings)


@pytest.mark.parametrize("seconds", [-1e9, 1e15])
def test_info_with_times_out_of_range_gives_valid_times(seconds: float) -> None:
    found = parse_info(b'{"ID":"x","Size":3}')
    upload = to_upload(found, 3, created_at=seconds, modified_at=seconds, now=7, settings=settings_of())
    assert upload.created_at in (0, 7)
    assert upload.completed_at in (0, 7)
