"""Concatenation in S3: partial uploads of any size make one object."""

from __future__ import annotations

import pytest

from tests.support.harness import ServerProcess
from tests.support.s3_uploads import PART, Place, create_partial
from tests.support.wire.messages import MEBI, metadata, path_of, payload
from tests.support.wire.requests import assert_content, create, head, patch, request


@pytest.mark.parametrize(
    "sizes",
    [
        (0,),
        (0, 0),
        (7,),
        (1, 2, 3),
        (PART,),
        (PART + 1, PART + 2),
        (6 * MEBI, 100, 5 * MEBI, 3 * MEBI, 0, 7 * MEBI),
        (100, 6 * MEBI, 100),
        (3 * MEBI, 3 * MEBI, 3 * MEBI),
        (12 * MEBI, 1),
    ],
)
def test_partials_of_any_size_make_one_object(server: ServerProcess, place: Place, sizes: tuple[int, ...]) -> None:
    parts = [payload(size, seed) for seed, size in enumerate(sizes)]
    paths = [create_partial(server, data) for data in parts]
    headers = {"Upload-Concat": "final;" + " ".join(paths), "Upload-Metadata": metadata(filename="joined.bin")}
    answer = request(server.port, "POST", "/files", headers)
    assert answer.status == 201, answer
    final = path_of(answer)
    state = head(server.port, final)
    assert (state.offset, state.headers["upload-length"]) == (sum(sizes), str(sum(sizes)))
    place.assert_alone(final, b"".join(parts))
    assert place.describe(place.key_of(final))["ContentDisposition"] == 'attachment; filename="joined.bin"'
    assert_content(server.port, final, b"".join(parts))
    again = request(server.port, "POST", "/files", headers)
    assert (again.status, path_of(again)) == (201, final)
    assert patch(server.port, final, sum(sizes), b"more").status == 403
    for path, data in zip(paths, parts, strict=True):
        place.assert_alone(path, data)


def test_the_same_partial_twice_and_in_another_order(server: ServerProcess, place: Place) -> None:
    small, large = payload(1000), payload(PART + 5, 2)
    paths = [create_partial(server, data) for data in (small, large)]
    for order in ((0, 1, 0), (1, 1), (1, 0)):
        header = "final;" + " ".join(paths[number] for number in order)
        answer = request(server.port, "POST", "/files", {"Upload-Concat": header})
        assert answer.status == 201
        place.assert_alone(path_of(answer), b"".join((small, large)[number] for number in order))


def test_an_unfinished_partial_cannot_be_put_together(server: ServerProcess) -> None:
    path = create(server.port, PART + 1, {"Upload-Concat": "partial"}, payload(PART))
    assert request(server.port, "POST", "/files", {"Upload-Concat": f"final;{path}"}).status == 400
