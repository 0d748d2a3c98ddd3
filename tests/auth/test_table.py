"""The rights of principals, cell by cell on the wire: verbs by principals by situations of an upload.

Every refusal comes with the body that the verb takes, and leaves files, records and the usage of all owners as they
were. An upload of another principal is answered as one that does not exist, byte for byte.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.auth.site import (
    ADMIN,
    OTHER,
    OWNER,
    READER,
    WRITER,
    ask,
    bearer,
    create,
    jwt_of,
    patch,
    token_files,
    without_date,
)
from tests.support.harness import ServerProcess, serving
from tests.support.stored import new_upload, stored, unchanged
from tests.support.wire.connection import Connection
from tests.support.wire.events import Listening
from tests.support.wire.messages import OFFSET_STREAM, TUS, Answer, Body, Headers, payload
from tests.support.wire.raw_websockets import UPGRADE, RawWebSocket

SMALL, LARGE = b"some bytes", payload(200 << 10)
WRONG, EXPIRED = "wrong", jwt_of("ann", exp=1)
UNKNOWN = "0123456789abcdef0123456789abcdef"
BYTES = {"Content-Type": OFFSET_STREAM, "Upload-Offset": "4"}


@dataclass(frozen=True)
class Verb:
    """A request to an upload.

    Attributes:
        needs: the scope without which it is forbidden.
        expired: the status with a token that is good but for its end: after 401 to HEAD, clients would begin again.
        below: the name of a resource below the upload.
    """

    method: str
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = None
    needs: str = "read or write"
    awaits_continue: bool = False
    expired: int = 401
    below: str = ""

    def path(self, upload: str) -> str:
        """Return the path of the request, with the query in the URL of the upload."""
        path, mark, query = upload.partition("?")
        return path + self.below + mark + query


VERBS = {
    "HEAD": Verb("HEAD", TUS, expired=423),
    "HEAD without tus": Verb("HEAD", needs="read"),
    "GET": Verb("GET", needs="read"),
    "GET range": Verb("GET", {"Range": "bytes=0-1"}, needs="read"),
    "GET if none match": Verb("GET", {"If-None-Match": "*"}, needs="read"),
    "PATCH small": Verb("PATCH", TUS | BYTES, SMALL, needs="write"),
    "PATCH large": Verb("PATCH", TUS | BYTES, LARGE, needs="write"),
    "PATCH chunked": Verb("PATCH", TUS | BYTES, [SMALL, LARGE], needs="write"),
    "PATCH empty": Verb("PATCH", TUS | BYTES, b"", needs="write"),
    "PATCH at 0": Verb("PATCH", TUS | BYTES | {"Upload-Offset": "0"}, SMALL, needs="write"),
    "PATCH of a wrong type": Verb("PATCH", TUS | {"Upload-Offset": "4"}, SMALL, needs="write"),
    "PATCH without tus": Verb("PATCH", BYTES, SMALL, needs="write"),
    "PATCH with a checksum": Verb("PATCH", TUS | BYTES | {"Upload-Checksum": "sha1 AAAA"}, SMALL, needs="write"),
    "PATCH with the length": Verb("PATCH", TUS | BYTES | {"Upload-Length": "1000"}, SMALL, needs="write"),
    "PATCH that waits": Verb("PATCH", TUS | BYTES, LARGE, needs="write", awaits_continue=True),
    "DELETE": Verb("DELETE", TUS, needs="delete"),
    "DELETE with a body": Verb("DELETE", TUS, LARGE, needs="delete"),
    "override PATCH": Verb("POST", TUS | BYTES | {"X-HTTP-Method-Override": "PATCH"}, SMALL, needs="write"),
    "override patch of GET": Verb("GET", TUS | BYTES | {"X-HTTP-Method-Override": "patch"}, SMALL, needs="write"),
    "override DELETE": Verb("POST", TUS | {"X-HTTP-Method-Override": "DELETE"}, b"", needs="delete"),
    "override HEAD": Verb("POST", TUS | {"X-HTTP-Method-Override": "HEAD"}, b"", expired=423),
    "override GET of HEAD": Verb("HEAD", TUS | {"X-HTTP-Method-Override": "GET"}, needs="read"),
    "GET events": Verb("GET", below="/events"),
    "GET events again": Verb("GET", {"Last-Event-ID": "17"}, below="/events"),
    "HEAD events": Verb("HEAD", TUS, below="/events"),
    "GET a WebSocket": Verb("GET", UPGRADE, below="/events"),
    "override GET events": Verb("POST", {"X-HTTP-Method-Override": "GET"}, b"", below="/events"),
}


def active(server: ServerProcess) -> str:
    return create(server, OWNER, len(SMALL) + len(LARGE) + 4, b"four")


def deferred(server: ServerProcess) -> str:
    return create(server, OWNER, None, b"four")


def complete(server: ServerProcess) -> str:
    return create(server, OWNER, 4, b"four")


def partial(server: ServerProcess) -> str:
    return create(server, OWNER, 9, b"four", {"Upload-Concat": "partial"})


def complete_partial(server: ServerProcess) -> str:
    return create(server, OWNER, 4, b"four", {"Upload-Concat": "partial"})


def final(server: ServerProcess) -> str:
    part = complete_partial(server)
    answer = ask(server, OWNER, "POST", "/files", {"Upload-Concat": f"final;{part}"})
    assert answer.status == 201, answer
    return answer["Location"].removeprefix(server.origin)


def gone(server: ServerProcess) -> str:
    path = active(server)
    assert ask(server, OWNER, "DELETE", path).status == 204
    return path


SITUATIONS: dict[str, Callable[[ServerProcess], str]] = {
    "active": active,
    "deferred": deferred,
    "complete": complete,
    "partial": partial,
    "complete partial": complete_partial,
    "final": final,
    "gone": gone,
}
STRANGERS = {  # tokens that are no tokens
    "none": (None, "Bearer"),
    "wrong": (WRONG, 'Bearer error="invalid_token"'),
    "empty": ("", 'Bearer error="invalid_token"'),
    "expired": (EXPIRED, 'Bearer error="invalid_token"'),
    "nobody": (jwt_of(""), 'Bearer error="invalid_token"'),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    with serving(folder, **token_files(folder), gone_for="1h", quota_bytes="1TiB") as server:
        yield server


def send(server: ServerProcess, token: str | None, verb: Verb, path: str) -> Answer:
    """Return the answer; of a stream of events, a body with the state that the first one tells."""
    headers = {**verb.headers, **bearer(token)}
    path = verb.path(path)
    if verb.headers is UPGRADE:
        return state_in_socket(server, path, headers)
    if verb.below and verb.method != "HEAD":
        return state_in_events(server, verb, path, headers)
    with Connection(server.port) as connection:
        if verb.awaits_continue:
            assert isinstance(verb.body, bytes)
            length = {"Content-Length": str(len(verb.body)), "Expect": "100-continue"}
            connection.send_head(verb.method, path, headers | length)
        else:
            with contextlib.suppress(ConnectionError):  # refused before the end of the body
                connection.send_request(verb.method, path, headers, verb.body)
        awaited_body = verb.body if verb.awaits_continue and isinstance(verb.body, bytes) else b""
        return connection.answer(method=verb.method, awaited_body=awaited_body)


def state_in_events(server: ServerProcess, verb: Verb, path: str, headers: Headers) -> Answer:
    with Listening(server.port, path, headers, method=verb.method, body=verb.body) as stream:
        if stream.status != 200:
            return stream.rest_of_answer()
        first = stream.next()
        assert first is not None
        return Answer(200, (), f"{first.kind} {first.data['status']} {first.offset}".encode())


def state_in_socket(server: ServerProcess, path: str, headers: Headers) -> Answer:
    with RawWebSocket(server.port, path, headers) as socket:
        if socket.status != 101:
            return socket.refusal()
        first = socket.next_message()
        return Answer(200, (), f"{first['type']} {first['status']} {first['offset']}".encode())


@pytest.fixture(scope="module")
def unknown(site: ServerProcess) -> Callable[[str | None, str], object]:
    """Return the answer about an upload that does not exist, asked for once."""
    answers: dict[tuple[str | None, str], object] = {}

    def answer(token: str | None, name: str) -> object:
        if (token, name) not in answers:
            answers[token, name] = without_date(send(site, token, VERBS[name], f"/files/{UNKNOWN}"))
        return answers[token, name]

    return answer


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", VERBS)
def test_upload_is_for_its_owner(
    site: ServerProcess, unknown: Callable[[str | None, str], object], name: str, situation: str
) -> None:
    verb, path = VERBS[name], SITUATIONS[situation](site)
    with unchanged(site):
        for token in (None, WRONG, EXPIRED):
            refused = send(site, token, verb, path)
            assert (refused.status, refused.interim) == (verb.expired if token == EXPIRED else 401, ())
            assert without_date(refused) == unknown(token, name)
        for token in (OTHER, jwt_of("bob"), jwt_of("bob", scope="uploads:read")):
            hidden = send(site, token, verb, path)
            assert (hidden.status, hidden.interim) == (404, ())
            assert without_date(hidden) == unknown(token, name)
        for token, scope in ((READER, "read"), (WRITER, "write")):
            if scope not in verb.needs:
                forbidden = send(site, token, verb, path)
                assert forbidden.status == 403
                assert forbidden["WWW-Authenticate"] == 'Bearer error="insufficient_scope"'
    for token in (OWNER, ADMIN):
        answer = send(site, token, verb, path if token == OWNER else SITUATIONS[situation](site))
        assert answer.status != 401
        assert answer.status != 403 or "ERR_MODIFY_FINAL" in answer.text
        assert situation == "gone" or "there is no such upload" not in answer.text


@pytest.mark.parametrize("kind", STRANGERS)
def test_token_that_is_none_is_refused_with_a_challenge(site: ServerProcess, kind: str) -> None:
    token, challenge = STRANGERS[kind]
    refused = send(site, token, VERBS["PATCH small"], active(site))
    assert (refused.status, refused["WWW-Authenticate"]) == (401, challenge)
    assert refused.text.startswith("ERR_UNAUTHORIZED: ")


def test_head_with_a_token_that_has_expired_is_told_to_try_again(site: ServerProcess) -> None:
    refused = send(site, EXPIRED, VERBS["HEAD"], active(site))
    challenge = 'Bearer error="invalid_token"'
    assert (refused.status, refused["WWW-Authenticate"], refused["Retry-After"]) == (423, challenge, "1")
    forged = EXPIRED[:-4] + ("AAAA" if EXPIRED[-4:] != "AAAA" else "BBBB")
    for token in (forged, jwt_of("", exp=1), "wrong", "", None):
        assert send(site, token, VERBS["HEAD"], active(site)).status == 401


@pytest.mark.parametrize("scope", ["uploads:readonly", "uploads:Write", ["uploads:"], "openid uploads:admins"])
def test_scope_that_means_nothing_here_gives_no_right(site: ServerProcess, scope: object) -> None:
    token, path = jwt_of("ann", scope=scope), active(site)
    with unchanged(site):
        assert send(site, token, CREATIONS["empty"], "/files").status == 403
        for name in ("HEAD", "PATCH small", "DELETE"):
            assert send(site, token, VERBS[name], path).status == 403


@pytest.mark.parametrize("scope", [None, "openid", "uploads:read uploads:administrator", ["uploads:admin openid"]])
def test_other_owner_with_a_jwt_sees_nothing(site: ServerProcess, scope: object) -> None:
    assert send(site, jwt_of("bob", scope=scope), VERBS["HEAD"], active(site)).status == 404


@pytest.mark.parametrize("token", [OWNER, jwt_of("ann"), ADMIN])
def test_only_owner_and_admin_learn_that_an_upload_is_gone(site: ServerProcess, token: str) -> None:
    path = gone(site)
    assert ask(site, token, "HEAD", path).status == 410
    assert ask(site, OTHER, "HEAD", path).status == 404


# Creations.

CREATIONS = {
    "empty": Verb("POST", TUS | {"Upload-Length": "10"}, b""),
    "with bytes": Verb("POST", TUS | {"Upload-Length": "10", "Content-Type": OFFSET_STREAM}, SMALL),
    "with many bytes": Verb("POST", TUS | {"Upload-Length": str(len(LARGE)), "Content-Type": OFFSET_STREAM}, LARGE),
    "chunked": Verb("POST", TUS | {"Upload-Length": "10", "Content-Type": OFFSET_STREAM}, [SMALL]),
    "deferred": Verb("POST", TUS | {"Upload-Defer-Length": "1", "Content-Type": OFFSET_STREAM}, SMALL),
    "of length zero": Verb("POST", TUS | {"Upload-Length": "0"}, b""),
    "partial": Verb("POST", TUS | {"Upload-Length": "10", "Upload-Concat": "partial"}, b""),
    "override": Verb("PUT", TUS | {"Upload-Length": "10", "X-HTTP-Method-Override": "POST"}, b""),
}


@pytest.mark.parametrize("name", CREATIONS)
def test_creation_needs_a_principal(site: ServerProcess, name: str) -> None:
    verb = CREATIONS[name]
    with unchanged(site):
        for token in (None, WRONG, EXPIRED):
            assert send(site, token, verb, "/files").status == 401
        for token in (READER, jwt_of("ann", scope="uploads:delete openid")):
            refused = send(site, token, verb, "/files")
            assert refused.status == 403
            assert refused.text == "ERR_FORBIDDEN: you have no right to create uploads\n"
    for token in (OWNER, WRITER, ADMIN, jwt_of("eve", scope="openid profile")):
        before = stored(site)
        assert send(site, token, verb, "/files").status == 201
        new_upload(site, before)


# Final uploads.


FINALS = {
    "final": ("POST", {}),
    "override": ("PATCH", {"X-HTTP-Method-Override": "POST"}),
    "with a body": ("POST", {"Content-Type": OFFSET_STREAM}),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", FINALS)
def test_final_upload_needs_a_principal(site: ServerProcess, name: str, situation: str) -> None:
    method, headers = FINALS[name]
    body = SMALL if name == "with a body" else b""
    path = SITUATIONS[situation](site)

    def concatenated(token: str | None, path: str) -> Answer:
        concat = {"Upload-Concat": f"final;{path}"}
        return ask(site, token, method, "/files", headers | concat | {"Content-Length": str(len(body))}, body)

    with unchanged(site):
        for token, status in ((None, 401), (WRONG, 401), (EXPIRED, 401), (READER, 403)):
            refused = concatenated(token, path)
            assert refused.status == status
            assert without_date(refused) == without_date(concatenated(token, f"/files/{UNKNOWN}"))
        if name == "with a body":
            for token in (OWNER, OTHER):
                assert concatenated(token, path).text.startswith("ERR_MODIFY_FINAL")


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("place", ["alone", "first", "last", "repeated"])
def test_final_upload_is_not_made_of_what_others_own(site: ServerProcess, situation: str, place: str) -> None:
    own = create(site, OTHER, 4, b"mine", {"Upload-Concat": "partial"})
    foreign = SITUATIONS[situation](site)
    unknown = f"/files/{UNKNOWN}"
    order = {"alone": "{0}", "first": "{0} {1}", "last": "{1} {0}", "repeated": "{1} {0} {1} {0}"}[place]
    with unchanged(site):
        refused = ask(site, OTHER, "POST", "/files", {"Upload-Concat": "final;" + order.format(foreign, own)})
        same = ask(site, OTHER, "POST", "/files", {"Upload-Concat": "final;" + order.format(unknown, own)})
    assert refused.status == 404, refused
    assert without_date(refused) == without_date(same)


def test_final_upload_is_given_again_to_its_owner_only(site: ServerProcess) -> None:
    part = complete_partial(site)
    headers = {"Upload-Concat": f"final;{part}"}
    first = ask(site, OWNER, "POST", "/files", headers)
    assert first.status == 201
    assert ask(site, OTHER, "POST", "/files", headers).status == 404
    assert ask(site, jwt_of("ann"), "POST", "/files", headers)["Location"] == first["Location"]
    assert ask(site, OWNER, "DELETE", part).status == 204
    assert ask(site, OTHER, "POST", "/files", headers).status == 404
    assert ask(site, OWNER, "POST", "/files", headers)["Location"] == first["Location"]


def test_admin_may_use_all_partial_uploads(site: ServerProcess) -> None:
    mine = create(site, OTHER, 4, b"mine", {"Upload-Concat": "partial"})
    answer = ask(site, ADMIN, "POST", "/files", {"Upload-Concat": f"final;{complete_partial(site)} {mine}"})
    assert answer.status == 201
    path = answer["Location"].removeprefix(site.origin)
    assert ask(site, ADMIN, "GET", path).body == b"fourmine"
    assert ask(site, OWNER, "GET", path).status == 404


# Everything else.


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/"])
def test_page_of_the_service_is_free(site: ServerProcess, path: str) -> None:
    for token in (None, "wrong"):
        assert ask(site, token, "GET", path).status == 200


@pytest.mark.parametrize("path", ["/files", "/files/", f"/files/{UNKNOWN}"])
def test_options_are_free(site: ServerProcess, path: str) -> None:
    for token in (None, "wrong", OWNER):
        assert ask(site, token, "OPTIONS", path)["Tus-Version"] == "1.0.0"


def test_page_of_another_origin_may_send_a_token_and_sees_the_challenge(site: ServerProcess) -> None:
    page = {"Origin": "https://page.example"}
    preflight = page | {
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization,tus-resumable",
    }
    answer = ask(site, None, "OPTIONS", "/files", preflight)
    assert answer.status == 200
    assert "authorization" in answer["Access-Control-Allow-Headers"].lower()
    refused = ask(site, None, "POST", "/files", page | {"Upload-Length": "1"})
    assert refused.status == 401
    assert refused["Access-Control-Allow-Origin"] == "*"
    assert "WWW-Authenticate" in refused["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("method", ["POST", "PATCH", "HEAD", "GET", "DELETE"])
def test_two_fields_with_credentials_are_refused(site: ServerProcess, method: str) -> None:
    path = "/files" if method == "POST" else active(site)
    headers: Headers = {**TUS, "Authorization": (f"Bearer {OWNER}", f"Bearer {OWNER}"), "Upload-Length": "5"}
    with unchanged(site), Connection(site.port) as connection:
        connection.send_request(method, path, headers, b"")
        assert connection.answer(method=method).status == 400


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (f"Bearer {OWNER}", 200),
        (f"bearer {OWNER}", 200),
        (f"BEARER  {OWNER} ", 200),
        (OWNER, 401),
        (f"Basic {OWNER}", 401),
        (f"Bearer{OWNER}", 401),
        (f"Bearer {OWNER}, Bearer {OWNER}", 401),
        (f"Bearer {OWNER} {OWNER}", 401),
        ("Bearer", 401),
        ("", 401),
        (f"Bearer {OTHER}", 404),
    ],
)
def test_token_follows_the_scheme(site: ServerProcess, value: str, status: int) -> None:
    assert ask(site, None, "HEAD", active(site), {"Authorization": value}).status == status


def test_token_is_not_taken_from_query_or_metadata(site: ServerProcess) -> None:
    path = active(site)
    assert ask(site, None, "HEAD", f"{path}?access_token={OWNER}").status == 401
    assert ask(site, None, "HEAD", path, {"Cookie": f"token={OWNER}"}).status == 401


def test_name_of_a_token_and_owner_of_a_jwt_are_one_owner(site: ServerProcess) -> None:
    path = create(site, jwt_of("ann"), 8, b"four")
    answer = patch(site, OWNER, path, 4, b"more")
    assert (answer.status, answer.offset) == (204, 8)
    assert ask(site, jwt_of("ann"), "GET", path).body == b"fourmore"


def test_size_of_a_claim_binds_the_upload(site: ServerProcess) -> None:
    token = jwt_of("ann", tus_max_size=8)
    assert ask(site, token, "POST", "/files", {"Upload-Length": "9"}).status == 413
    create(site, token, 8)
    with unchanged(site):
        headers = {"Upload-Defer-Length": "1", "Content-Type": OFFSET_STREAM}
        assert ask(site, token, "POST", "/files", headers, b"123456789").status == 413
    path = create(site, token, None, b"four")
    assert patch(site, jwt_of("ann"), path, 4, b"12345").status == 413
    assert patch(site, jwt_of("ann"), path, 4, b"1234").status == 204


@pytest.mark.parametrize("token", [OTHER, jwt_of("bob")], ids=["API token", "JWT"])
@pytest.mark.parametrize("name", ["PATCH small", "PATCH empty", "PATCH at 0", "DELETE", "HEAD"])
def test_stranger_does_not_disturb_a_running_patch(site: ServerProcess, token: str, name: str) -> None:
    path = create(site, OWNER, 8)
    headers = TUS | bearer(OWNER) | {"Content-Type": OFFSET_STREAM, "Upload-Offset": "0", "Content-Length": "8"}
    with Connection(site.port) as connection:
        connection.send_head("PATCH", path, headers)
        connection.send(b"four")
        connection.wait_until_read()
        for _ in range(2):  # the second time the token is known
            assert send(site, token, VERBS[name], path).status == 404
        connection.send(b"more")
        answer = connection.answer()
    assert (answer.status, answer.offset) == (204, 8)


def test_errors_of_an_append_are_told_to_the_owner_alone(site: ServerProcess) -> None:
    path, token = active(site), jwt_of("ann", scope="uploads:write")
    wrong_offset = ask(site, token, "PATCH", path, BYTES | {"Upload-Offset": "5"}, SMALL)
    assert (wrong_offset.status, wrong_offset.offset) == (409, 4)
    assert "Upload-Expires" in wrong_offset
    too_long = ask(site, token, "PATCH", path, BYTES | {"Upload-Length": "5"}, SMALL)
    assert too_long.status == 400
    assert ask(site, token, "PATCH", complete(site), BYTES, SMALL).status == 413


def test_body_goes_on_although_its_token_expires(site: ServerProcess) -> None:
    path = create(site, OWNER, 8)
    token = jwt_of("ann", exp=time.time() - 28)  # within the leeway for two seconds
    headers = TUS | bearer(token) | {"Content-Type": OFFSET_STREAM, "Upload-Offset": "0", "Content-Length": "8"}
    with Connection(site.port) as connection:
        connection.send_head("PATCH", path, headers)
        connection.send(b"four")
        connection.wait_until_read()
        while ask(site, token, "HEAD", path).status != 423:
            time.sleep(0.05)
        connection.send(b"more")
        answer = connection.answer()
    assert (answer.status, answer.offset) == (204, 8)
