"""An S3 server that can do little, with the dialect `plain`."""

from __future__ import annotations

from pathlib import Path

from tests.support.s3_server import rclone
from tests.support.s3_uploads import PART, Place, create_partial, send_patches, serving
from tests.support.wire.messages import MEBI, checksum, path_of, payload
from tests.support.wire.requests import assert_content, create, offset_of, patch, request


def test_a_server_that_can_do_little(tmp_path: Path) -> None:
    place = Place(rclone())
    with serving(tmp_path, place, s3_dialect="plain") as server:
        for length in (0, 1000, PART, 2 * PART + 99):
            data = payload(length)
            path = create(server.port, length)
            send_patches(server, path, data, 3 * MEBI)
            place.assert_object(path, data)
            assert_content(server.port, path, data)
        data = payload(2 * PART + 99)
        path = create(server.port, len(data), body=data[: PART + 1000])
        server.restart()
        assert offset_of(server.port, path) == PART + 1000
        assert patch(server.port, path, PART + 1000, data[PART + 1000 :]).offset == len(data)
        place.assert_object(path, data)
        assert request(server.port, "DELETE", path).status == 204
        assert place.key_of(path) not in place.keys
        parts = [payload(size, size) for size in (PART + 1, 100, 3 * MEBI)]
        paths = [create_partial(server, one) for one in parts]
        answer = request(server.port, "POST", "/files", {"Upload-Concat": "final;" + " ".join(paths)})
        assert answer.status == 201
        place.assert_object(path_of(answer), b"".join(parts))


def test_a_server_that_can_do_little_keeps_nothing_of_a_patch_with_a_wrong_checksum(tmp_path: Path) -> None:
    data = payload(2 * PART + 99)
    place = Place(rclone())
    with serving(tmp_path, place, s3_dialect="plain") as server:
        path = create(server.port, len(data), body=data[: PART + 1000])
        assert patch(server.port, path, PART + 1000, data[PART + 1000 :], checksum(b"other")).status == 460
        assert offset_of(server.port, path) == PART + 1000
        answer = patch(server.port, path, PART + 1000, data[PART + 1000 :])
        assert (answer.status, answer.headers.get("upload-offset")) == (204, str(len(data)))
        place.assert_object(path, data)
