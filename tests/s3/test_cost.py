"""The number of calls of S3 that uploads need."""

from __future__ import annotations

from tests.support.harness import ServerProcess
from tests.support.s3_uploads import Place, calls_of
from tests.support.wire.messages import KIBI, payload
from tests.support.wire.requests import create, patch

LOOKING = {"head_object", "list_parts", "get_object", "list_objects_v2"}
CLEARING = {"delete_object", "delete_objects"}


def test_a_small_patch_costs_one_put_at_most(own: tuple[ServerProcess, Place]) -> None:
    server, place = own
    data = payload(64 * KIBI)
    path = create(server.port, len(data) + 1)
    before = calls_of(server)
    start = before.copy()
    for offset in range(0, len(data), KIBI):
        assert patch(server.port, path, offset, data[offset : offset + KIBI]).status == 204
        after = calls_of(server)
        changing = {name: after[name] - before[name] for name in after if name not in LOOKING | CLEARING}
        assert sum(changing.values()) == changing.get("put_object", 0) <= 1, changing
        before = after
    total = before - start
    assert total["put_object"] == 64
    assert sum(total[name] for name in CLEARING) <= 64 / 8, total
    assert sum(total[name] for name in LOOKING) <= 64, total
    assert patch(server.port, path, len(data), b"x").status == 204
    place.assert_alone(path, data + b"x")


def test_calls_grow_with_the_number_of_patches_only(own: tuple[ServerProcess, Place]) -> None:
    """200 PATCHes of 100 KiB: one PutObject each, four parts of 5 MiB, and a few requests to begin, clear and end."""
    server, place = own
    size, count = 100 * KIBI, 200
    data = payload(size * count)
    path = create(server.port, len(data))
    start = calls_of(server)
    half = start
    for number in range(count):
        if number == count // 2:
            half = calls_of(server)
        offset = number * size
        assert patch(server.port, path, offset, data[offset : offset + size]).status == 204
    total = calls_of(server) - start
    first = sum((half - start).values())
    print(dict(total))
    assert total["create_multipart_upload"] == total["complete_multipart_upload"] == 1
    assert total["upload_part"] == 4
    assert total["put_object"] <= count
    assert sum(total[name] for name in CLEARING) <= count / 8
    assert sum(total[name] for name in LOOKING) <= 10  # what was sent before is still in memory
    assert sum(total.values()) <= count * 1.2
    assert sum(total.values()) <= 2 * first + 10
    place.assert_alone(path, data)
    assert place.keys == [place.key_of(path)]
