"""Quotas of owners on the wire: what counts, what releases, and what a refused request leaves as it was."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.auth.site import ask, bearer, create, jwt_of, patch, token_files
from tests.support.harness import ServerProcess, serving
from tests.support.stored import unchanged
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS, Answer, checksum, creation_headers, patch_headers, path_of
from tests.support.wire.requests import request

QUOTA, UPLOADS = 1000, 5


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("quotas")
    options = token_files(folder) | {"quota_bytes": QUOTA, "quota_uploads": UPLOADS, "concatenation_unfinished": True}
    with serving(folder, **options) as server:
        yield server


@pytest.fixture
def token(request: pytest.FixtureRequest) -> str:
    """A token of an owner that no other test has."""
    return jwt_of(request.node.name)


def post(server: ServerProcess, token: str | None, length: int | None, body: bytes = b"", **more: str) -> Answer:
    headers = creation_headers(length, body) | {name.replace("_", "-"): value for name, value in more.items()}
    return ask(server, token, "POST", "/files", headers, body)


def refused(answer: Answer) -> bool:
    return (answer.status, answer.body.partition(b":")[0]) == (413, b"ERR_QUOTA_EXCEEDED")


def usage(server: ServerProcess, owner: str) -> tuple[int, int]:
    """Return what the records count of an owner: bytes and unfinished uploads."""
    with sqlite3.connect(f"file:{server.upload_dir}/.tusd-py/uploads.sqlite3?mode=ro", uri=True) as records:
        row = records.execute("SELECT bytes, open FROM owner_usage WHERE owner = ?", (owner,)).fetchone()
    records.close()
    return row or (0, 0)


def room(server: ServerProcess, token: str | None, size: int) -> bool:
    """Return whether an owner has room for an upload of `size` bytes, and not for one byte more."""
    if not refused(post(server, token, size + 1)):
        return False
    answer = post(server, token, size)
    if answer.status == 201:
        assert ask(server, token, "DELETE", path_of(answer)).status == 204
    return answer.status == 201


# Creations.


@pytest.mark.parametrize("body", [b"", b"x" * 401], ids=["without body", "with body"])
@pytest.mark.parametrize("partial", [{}, {"Upload_Concat": "partial"}], ids=["plain", "partial"])
def test_creation_over_the_quota_leaves_everything_as_it_was(
    site: ServerProcess, token: str, body: bytes, partial: dict[str, str]
) -> None:
    create(site, token, 600)
    with unchanged(site):
        assert refused(post(site, token, 401, body, **partial))
    assert room(site, token, 400)


def test_creation_with_large_body_is_refused_before_it_is_sent(site: ServerProcess, token: str) -> None:
    create(site, token, 600)
    headers = TUS | bearer(token) | creation_headers(50_000_000, b"x") | {"Content-Length": "50000000"}
    with unchanged(site), Connection(site.port) as connection:
        connection.send_head("POST", "/files", headers | {"Expect": "100-continue"})
        assert refused(connection.answer())


def test_bytes_of_small_creations_count(site: ServerProcess, token: str) -> None:
    create(site, token, 600, b"x" * 600)
    create(site, token, 400, b"x" * 10)
    with unchanged(site):
        assert refused(post(site, token, 1, b"x"))
    assert post(site, token, 0).status == 201


def test_each_owner_has_a_quota(site: ServerProcess, token: str) -> None:
    create(site, token, QUOTA)
    create(site, jwt_of("another owner"), QUOTA)
    assert refused(post(site, token, 1))


def test_unfinished_uploads_are_limited(site: ServerProcess, token: str) -> None:
    paths = [create(site, token, 2, b"x") for _ in range(UPLOADS)]
    with unchanged(site):
        assert refused(post(site, token, 0))
        assert refused(post(site, token, 1, b"x"))
    assert patch(site, token, paths[0], 1, b"y").status == 204
    create(site, token, 2)
    assert refused(post(site, token, 0))


@pytest.mark.parametrize(("claim", "allowed"), [(10, 10), (0, 0), (5000, 5000)])
def test_quota_of_a_token_takes_the_place_of_that_of_the_server(
    site: ServerProcess, request: pytest.FixtureRequest, claim: int, allowed: int
) -> None:
    token = jwt_of(request.node.name, tus_quota_bytes=claim)
    assert room(site, token, allowed)


@pytest.mark.parametrize("claim", [-1, "5", 1.5, True, 1 << 63, [5]])
def test_token_with_a_malformed_quota_is_refused(site: ServerProcess, claim: object) -> None:
    assert post(site, jwt_of("ann", tus_quota_bytes=claim), 1).status == 401


def test_quota_of_a_token_binds_without_one_of_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, **token_files(tmp_path)) as server:
        create(server, jwt_of("ann"), 90, b"x")
        assert room(server, jwt_of("ann", tus_quota_bytes=100), 10)
        assert post(server, jwt_of("ann"), 1000).status == 201


def test_without_authentication_all_uploads_count_together(tmp_path: Path) -> None:
    with serving(tmp_path, quota_bytes=10) as server:
        assert post(server, None, 6).status == 201
        assert room(server, None, 4)


def test_refusals_are_counted_in_the_metrics(site: ServerProcess, token: str) -> None:
    assert refused(post(site, token, QUOTA + 1))
    lines = request(site.port, "GET", "/metrics").body.decode().splitlines()
    assert [line for line in lines if line.startswith("tusd_errors") and "ERR_QUOTA_EXCEEDED" in line and "413" in line]


# Releases.


def test_termination_releases_all(site: ServerProcess, token: str) -> None:
    paths = [create(site, token, length, b"x" * size) for length, size in ((300, 300), (300, 1), (None, 300))]
    assert refused(post(site, token, 101))
    for path in paths:
        assert ask(site, token, "DELETE", path).status == 204
    assert room(site, token, QUOTA)


def test_expiry_releases_all(tmp_path: Path) -> None:
    with serving(tmp_path, quota_bytes=QUOTA, expires_after="5s", sweep_interval="100ms") as server:
        for length in (600, None):
            assert post(server, None, length, b"x" * 400).status == 201
        assert usage(server, "") == (1000, 2)
        wait_until(lambda: usage(server, "") == (0, 0), "the uploads expire")
        assert room(server, None, QUOTA)


@pytest.mark.parametrize("quota_before", [True, False])
def test_usage_outlives_a_killed_server(tmp_path: Path, quota_before: bool) -> None:
    options = token_files(tmp_path)
    server = ServerProcess(tmp_path / "uploads", **options)
    if quota_before:
        server.options["quota_bytes"] = QUOTA
    with server:
        create(server, jwt_of("ann"), 300, b"x")
        create(server, jwt_of("ann"), None, b"x" * 300)
        server.options["quota_bytes"] = QUOTA
        server.restart()
        assert room(server, jwt_of("ann"), 400)


# Uploads of unknown length.


def test_upload_of_unknown_length_counts_as_it_grows(site: ServerProcess, token: str) -> None:
    path = create(site, token, None, b"x" * 100)
    assert room(site, token, 900)
    assert patch(site, token, path, 100, b"x" * 100).status == 204
    assert room(site, token, 800)


def test_body_beyond_the_quota_is_refused_before_it_is_read(site: ServerProcess, token: str) -> None:
    create(site, token, 600)
    path = create(site, token, None, b"x" * 100)
    with unchanged(site):
        assert refused(patch(site, token, path, 100, b"x" * 301))
        assert refused(post(site, token, None, b"x" * 301))
    assert patch(site, token, path, 100, b"x" * 300).status == 204
    with unchanged(site):
        assert refused(patch(site, token, path, 400, b"x"))
        assert refused(post(site, token, None))


def chunked_patch(site: ServerProcess, token: str, path: str, offset: int, size: int) -> Answer:
    headers = bearer(token) | patch_headers(offset) | {"Transfer-Encoding": "chunked"}
    with Connection(site.port) as connection:
        connection.send_head("PATCH", path, headers)
        connection.send_chunk(b"x" * size)
        connection.send_chunk(b"")
        return connection.answer()


def test_body_of_unknown_size_is_cut_at_the_quota(site: ServerProcess, token: str) -> None:
    create(site, token, 600)
    path = create(site, token, None, b"x" * 100)
    assert refused(chunked_patch(site, token, path, 100, 500))
    assert ask(site, token, "HEAD", path).offset == 400
    assert refused(chunked_patch(site, token, path, 400, 1))
    assert ask(site, token, "HEAD", path).offset == 400
    assert patch(site, token, path, 400, b"").status == 204
    fields = patch_headers(400, {"Upload-Length": "400"})
    assert ask(site, token, "PATCH", path, fields).status == 204
    assert ask(site, token, "GET", path).body == b"x" * 400


def test_declared_length_is_reserved_before_a_byte_comes(site: ServerProcess, token: str) -> None:
    path = create(site, token, None, b"x" * 100)
    headers = TUS | bearer(token) | patch_headers(100, {"Upload-Length": "1000"}) | {"Content-Length": "900"}
    with Connection(site.port) as connection:
        connection.send_head("PATCH", path, headers)
        connection.send(b"x")
        connection.wait_until_read()
        wait_until(lambda: refused(post(site, token, 1)), "the length is reserved")
        connection.send(b"x" * 899)
        assert connection.answer().offset == QUOTA


@pytest.mark.parametrize("body", [b"", b"x" * 10], ids=["no body", "body"])
@pytest.mark.parametrize("announced", [False, True], ids=["no checksum", "checksum"])
def test_declared_length_beyond_the_quota_is_refused(
    site: ServerProcess, token: str, body: bytes, announced: bool
) -> None:
    create(site, token, 600)
    path = create(site, token, None, b"x" * 100)
    for length, status in ((401, 413), (400, 204)):
        headers = {"Upload-Length": str(length)} | (checksum(body) if announced else {})
        answer = ask(site, token, "PATCH", path, patch_headers(100, headers), body)
        assert answer.status == status
        state = ask(site, token, "HEAD", path)
        assert ("upload-defer-length" in state.headers) == (status == 413)
        assert state.offset == 100 + (len(body) if status == 204 else 0)
    assert refused(post(site, token, 1))


def test_length_that_came_with_a_wrong_checksum_is_not_reserved(site: ServerProcess, token: str) -> None:
    path = create(site, token, None, b"x")
    headers = patch_headers(1, {"Upload-Length": "900"} | checksum(b"other"))
    assert ask(site, token, "PATCH", path, headers, b"bytes").status == 460
    assert room(site, token, 999)


def test_quota_of_the_creation_binds_later_requests(site: ServerProcess, request: pytest.FixtureRequest) -> None:
    owner = request.node.name
    path = create(site, jwt_of(owner, tus_quota_bytes=10), None, b"x" * 5)
    assert refused(patch(site, jwt_of(owner), path, 5, b"x" * 6))
    assert patch(site, jwt_of(owner), path, 5, b"x" * 5).status == 204


def test_room_that_others_take_meanwhile_is_not_used_twice(site: ServerProcess, token: str) -> None:
    path = create(site, token, None)
    headers = bearer(token) | patch_headers(0) | {"Transfer-Encoding": "chunked"}
    with Connection(site.port) as connection:
        connection.send_head("PATCH", path, headers)
        connection.send_chunk(b"a" * 300)
        wait_until(lambda: ask(site, token, "HEAD", path).offset == 300, "the first bytes are committed")
        create(site, token, 600)
        connection.send_chunk(b"b" * 300)
        connection.send_chunk(b"")
        assert refused(connection.answer())
    assert ask(site, token, "HEAD", path).offset == 300
    assert data_size(site, path) == 300
    assert patch(site, token, path, 300, b"c" * 100).status == 204
    assert ask(site, token, "PATCH", path, patch_headers(400, {"Upload-Length": "400"})).status == 204
    assert ask(site, token, "GET", path).body == b"a" * 300 + b"c" * 100


@pytest.mark.parametrize("announced", [False, True], ids=["no checksum", "checksum"])
def test_length_declared_with_all_bytes_is_refused_if_others_took_the_room(
    site: ServerProcess, token: str, announced: bool
) -> None:
    path, body = create(site, token, None, b"a" * 100), b"b" * 500
    declared = patch_headers(100, {"Upload-Length": "600"} | (checksum(body) if announced else {}))
    with Connection(site.port) as connection:
        connection.send_head("PATCH", path, bearer(token) | declared | {"Content-Length": "500"})
        connection.send(body[:250])
        connection.wait_until_read()
        if not announced:
            wait_until(lambda: "upload-length" in ask(site, token, "HEAD", path).headers, "the length is reserved")
        other = post(site, token, 600)
        connection.send(body[250:])
        answer = connection.answer()
    if announced:
        assert (other.status, refused(answer)) == (201, True)
        assert ask(site, token, "HEAD", path).offset == data_size(site, path) == 100
        assert room(site, token, 300)
    else:
        assert (refused(other), answer.offset) == (True, 600)


def data_size(site: ServerProcess, path: str) -> int:
    return (site.upload_dir / path.rpartition("/")[2]).stat().st_size


# Final uploads.


def concatenated(site: ServerProcess, token: str, *paths: str) -> Answer:
    return ask(site, token, "POST", "/files", {"Upload-Concat": "final;" + " ".join(paths), "Content-Length": "0"})


def partial(site: ServerProcess, token: str, size: int, length: int | None = None) -> str:
    return create(site, token, length or size, b"x" * size, {"Upload-Concat": "partial"})


def test_partial_uploads_stop_counting_when_their_final_one_exists(site: ServerProcess, token: str) -> None:
    parts = [partial(site, token, 500), partial(site, token, 400)]
    assert room(site, token, 100)
    answer = concatenated(site, token, *parts)
    assert answer.status == 201
    assert room(site, token, 100)
    assert ask(site, token, "DELETE", parts[0]).status == 204
    assert room(site, token, 100)
    assert ask(site, token, "DELETE", path_of(answer)).status == 204
    assert room(site, token, 600)
    assert ask(site, token, "DELETE", parts[1]).status == 204
    assert room(site, token, QUOTA)


def test_final_upload_larger_than_the_room_of_its_owner_is_refused(site: ServerProcess, token: str) -> None:
    part = partial(site, token, 300)
    with unchanged(site):
        assert refused(concatenated(site, token, *[part] * 4))
    assert concatenated(site, token, *[part] * 3).status == 201
    assert room(site, token, 100)


def test_final_upload_that_waits_counts_when_it_is_complete(site: ServerProcess, token: str) -> None:
    part = partial(site, token, 100, 300)
    final = path_of(concatenated(site, token, part, part))
    assert room(site, token, 700)
    assert patch(site, token, part, 100, b"x" * 200).status == 204
    wait_until(lambda: ask(site, token, "GET", final).status == 200, "the final upload is complete")
    assert room(site, token, 400)


def test_waiting_final_upload_over_the_quota_is_made_when_there_is_room(site: ServerProcess, token: str) -> None:
    part = create(site, token, None, b"x" * 100, {"Upload-Concat": "partial"})
    final = path_of(concatenated(site, token, part, part))
    other = create(site, token, 700)
    fields = patch_headers(100, {"Upload-Length": "300"})
    assert ask(site, token, "PATCH", part, fields, b"x" * 200).status == 204
    expiry = ask(site, token, "HEAD", part).headers["upload-expires"]
    assert ask(site, token, "HEAD", final).status == 423
    assert refused(concatenated(site, token, part, part))
    assert ask(site, token, "HEAD", part).headers["upload-expires"] == expiry
    assert ask(site, token, "DELETE", other).status == 204
    assert ask(site, token, "HEAD", final).offset == 600
    assert ask(site, token, "GET", final).body == b"x" * 600
    assert room(site, token, 400)
