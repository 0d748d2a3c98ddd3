"""Streams of all uploads of a principal: two principals see nothing of each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.auth.signing import capability, signing_files
from tests.auth.site import ADMIN, OTHER, OWNER, READER, WRITER, ask, bearer, create, jwt_of, patch
from tests.support.harness import ServerProcess, serving
from tests.support.wire.events import Listening
from tests.support.wire.messages import identity
from tests.support.wire.websockets import WebSocket


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    with serving(folder, **signing_files(folder), cors_origins="https://page.example", auth_cookie="token") as server:
        yield server


def following(site: ServerProcess, token: str | None, query: str = "", **headers: str) -> Listening:
    return Listening(site.port, f"/files/events{query}", {**bearer(token), **headers})


def test_stream_of_a_principal_is_about_its_own_uploads(site: ServerProcess) -> None:
    before = create(site, OWNER, 8, b"four")
    foreign = create(site, OTHER, 8, b"four")
    with following(site, OWNER) as anns, following(site, OTHER) as bobs, following(site, ADMIN) as admins:
        anns.until("snapshot", lambda event: event.data["id"] == identity(before))
        bobs.until("snapshot", lambda event: event.data["id"] == identity(foreign))
        admins.until("snapshot", lambda event: event.data["id"] in (identity(before), identity(foreign)))
        assert patch(site, OTHER, foreign, 4, b"more").status == 204
        assert patch(site, OWNER, before, 4, b"more").status == 204
        of_ann = anns.until("finished")
        of_bob = bobs.until("finished")
        of_admin = admins.until("finished") + admins.until("finished")
    assert {event.data["id"] for event in of_ann} == {identity(before)}
    assert identity(before) not in {event.data["id"] for event in of_bob}
    assert {identity(before), identity(foreign)} <= {event.data["id"] for event in of_admin}


def test_new_upload_of_a_principal_is_told(site: ServerProcess) -> None:
    with following(site, jwt_of("eve")) as stream:
        assert stream.status == 200
        path = create(site, jwt_of("eve"), 4)
        created = stream.until("created")[-1]
        assert created.data["id"] == identity(path)
        assert patch(site, jwt_of("eve"), path, 0, b"four").status == 204
        assert {event.data["id"] for event in stream.until("finished")} == {identity(path)}


def test_named_uploads_of_others_are_left_out(site: ServerProcess) -> None:
    foreign, own = create(site, OTHER, 8), create(site, OWNER, 4, b"four")
    for hidden in (identity(foreign), "unknown"):
        with following(site, OWNER, f"?upload={hidden}&upload={identity(own)}") as stream:
            assert [event.data["id"] for event in stream] == [identity(own)]


@pytest.mark.parametrize("query", ["", "?upload=unknown"])
@pytest.mark.parametrize("token", [None, "wrong", jwt_of("ann", exp=1)])
def test_stream_needs_a_token(site: ServerProcess, token: str | None, query: str) -> None:
    assert ask(site, token, "GET", f"/files/events{query}").status == 401


def test_capability_is_no_token_for_several_uploads(site: ServerProcess) -> None:
    path = create(site, OWNER, 8)
    query = capability(site, path).partition("?")[2]
    assert ask(site, None, "GET", f"/files/events?upload={identity(path)}&{query}").status == 401


@pytest.mark.parametrize("token", [READER, WRITER])
def test_right_to_head_is_the_right_to_listen(site: ServerProcess, token: str) -> None:
    path = create(site, OWNER, 4, b"four")
    with following(site, token, f"?upload={identity(path)}") as stream:
        assert [event.kind for event in stream] == ["snapshot"]


def test_principal_without_the_right_to_head_sees_nothing(site: ServerProcess) -> None:
    path = create(site, OWNER, 8, b"four")
    with following(site, jwt_of("ann", scope="uploads:delete"), f"?upload={identity(path)}") as stream:
        assert list(stream) == []


@pytest.mark.parametrize(
    ("origin", "status"), [("https://page.example", 200), ("https://other.example", 401), ("null", 401)]
)
def test_cookie_is_taken_from_pages_of_allowed_origins(site: ServerProcess, origin: str, status: int) -> None:
    path = create(site, OWNER, 4, b"four")
    headers = {"Cookie": f"token={OWNER}", "Origin": origin}
    for below in (f"{path}/events", f"/files/events?upload={identity(path)}"):
        with Listening(site.port, below, headers) as stream:
            assert stream.status == status


# WebSockets.


def socket_to(site: ServerProcess, path: str, token: str | None, **headers: str) -> WebSocket:
    return WebSocket(site.port, path, {**bearer(token), **headers})


def test_socket_of_a_principal_is_about_its_own_uploads(site: ServerProcess) -> None:
    own, foreign = create(site, OWNER, 8, b"four"), create(site, OTHER, 8, b"four")
    with socket_to(site, "/files/events", OWNER) as anns, socket_to(site, "/files/events", OTHER) as bobs:
        anns.until("snapshot", lambda message: message["id"] == identity(own))
        bobs.until("snapshot", lambda message: message["id"] == identity(foreign))
        for socket in (anns, bobs):
            socket.send({"type": "get_status"})
        assert identity(foreign) not in {
            message["id"] for message in anns.until("snapshot", lambda message: message["id"] == identity(own))
        }
        assert identity(own) not in {
            message["id"] for message in bobs.until("snapshot", lambda message: message["id"] == identity(foreign))
        }
        assert patch(site, OTHER, foreign, 4, b"more").status == 204
        assert patch(site, OWNER, own, 4, b"more").status == 204
        for socket, mine, others in ((anns, own, foreign), (bobs, foreign, own)):
            told = socket.until("finished")
            while told[-1]["id"] != identity(mine):
                told += socket.until("finished")
            assert identity(others) not in {message["id"] for message in told}


def test_named_uploads_of_others_are_left_out_of_a_socket(site: ServerProcess) -> None:
    foreign, own = create(site, OTHER, 8), create(site, OWNER, 4, b"four")
    with socket_to(site, f"/files/events?upload={identity(foreign)}&upload={identity(own)}", OWNER) as socket:
        assert [message["id"] for message in socket] == [identity(own)]
        assert socket.code == 1000


@pytest.mark.parametrize("token", [None, "wrong", jwt_of("ann", exp=1)])
def test_socket_needs_a_token(site: ServerProcess, token: str | None) -> None:
    for path in ("/files/events", "/files/events?upload=unknown", f"{create(site, OWNER, 8)}/events"):
        refused = socket_to(site, path, token)
        assert (refused.status, refused.text.partition(":")[0]) == (401, "ERR_UNAUTHORIZED")
        assert refused.fields["WWW-Authenticate"].startswith("Bearer")


def test_capability_opens_a_socket_to_its_upload(site: ServerProcess) -> None:
    path = create(site, OWNER, 4, b"four")
    own, _, query = capability(site, path).partition("?")
    with socket_to(site, f"{own}/events?{query}", None) as socket:
        assert socket.rest() == ["snapshot"]
    other = create(site, OWNER, 4, b"four")
    assert socket_to(site, f"{other}/events?{query}", None).status == 401


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://page.example", 101), ("https://other.example", 403), ("null", 403), (None, 101)],
)
def test_socket_with_a_cookie_is_for_pages_of_allowed_origins(
    site: ServerProcess, origin: str | None, status: int
) -> None:
    path = create(site, OWNER, 4, b"four")
    headers = {"Cookie": f"token={OWNER}"} | ({} if origin is None else {"Origin": origin})
    for below in (f"{path}/events", f"/files/events?upload={identity(path)}"):
        with WebSocket(site.port, below, headers) as socket:
            assert socket.status == status


def test_socket_with_a_good_token_is_for_pages_of_allowed_origins_too(site: ServerProcess) -> None:
    """A page cannot read an answer to a token that it has from elsewhere either."""
    path, _, query = capability(site, create(site, OWNER, 4, b"four")).partition("?")
    refused = WebSocket(site.port, f"{path}/events?{query}", {"Origin": "https://other.example"})
    assert (refused.status, refused.text.partition(":")[0]) == (403, "ERR_ORIGIN_NOT_ALLOWED")


def test_socket_ends_with_its_token(site: ServerProcess) -> None:
    path = create(site, OWNER, 8, b"four")
    token = jwt_of("ann", exp=time.time() + 2)
    with socket_to(site, f"{path}/events", token) as socket:
        assert socket.rest() == ["snapshot"]
        assert (socket.code, socket.reason) == (1012, "retry: 1000")


def test_both_kinds_of_streams_share_the_places_of_a_principal(tmp_path: Path) -> None:
    with serving(tmp_path, **signing_files(tmp_path), max_listeners=32) as site, ExitStack() as stack:
        for _ in range(4):
            assert stack.enter_context(following(site, OWNER)).status == 200
            assert stack.enter_context(socket_to(site, "/files/events", OWNER)).was_accepted
        assert socket_to(site, "/files/events", OWNER).status == 503
        assert ask(site, OWNER, "GET", "/files/events").status == 503
        assert stack.enter_context(socket_to(site, "/files/events", OTHER)).was_accepted


def test_stream_ends_with_its_token(site: ServerProcess) -> None:
    path = create(site, OWNER, 8, b"four")
    token = jwt_of("ann", exp=time.time() + 2)
    with Listening(site.port, f"{path}/events", bearer(token)) as stream:
        assert [event.kind for event in stream] == ["snapshot"]
        assert stream.retry == 1000


def test_one_principal_has_a_part_of_the_places(tmp_path: Path) -> None:
    with serving(tmp_path, **signing_files(tmp_path), max_listeners=32) as site, ExitStack() as stack:
        for _ in range(8):
            assert stack.enter_context(following(site, OWNER)).status == 200
        refused = ask(site, OWNER, "GET", "/files/events")
        assert refused.status == 503
        assert refused.text.startswith("ERR_TOO_MANY_LISTENERS")
        path, _, query = capability(site, create(site, OWNER, 8)).partition("?")
        for token, url in ((OTHER, "/files/events"), (None, f"{path}/events?{query}")):
            with Listening(site.port, url, bearer(token)) as stream:
                assert stream.status == 200
