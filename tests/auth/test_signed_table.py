"""The rights of those who have a URL, cell by cell on the wire: verbs by signatures by situations of an upload.

Every refusal comes with the body that the verb takes, leaves files, records and the usage of all owners as they were,
and is the same, byte for byte, for an upload that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.auth.signing import FOREIGN, HOUR, capability, creation, link, signing_files
from tests.auth.site import ADMIN, OTHER, OWNER, ask, bearer, create, without_date
from tests.auth.test_table import CREATIONS, SITUATIONS, UNKNOWN, VERBS, active, complete, complete_partial, send
from tests.support.harness import ServerProcess, serving
from tests.support.stored import new_upload, stored, unchanged
from tests.support.wire.messages import Headers
from tests.support.wire.requests import request
from tusd_py.auth.signing_keys import parse_signing_keys

BY_CAPABILITY = [name for name, verb in VERBS.items() if verb.needs != "read"]
BY_LINK = [name for name, verb in VERBS.items() if verb.needs == "read"]
FOREIGN_KEYS = parse_signing_keys(FOREIGN.encode())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    with serving(folder, **signing_files(folder), gone_for="1h", quota_bytes="1TiB") as server:
        yield server


@pytest.fixture(scope="module")
def unknown(site: ServerProcess) -> Callable[[str], object]:
    """Return the answer to nobody about an upload that does not exist, asked for once."""
    answers: dict[str, object] = {}

    def answer(name: str) -> object:
        if name not in answers:
            answers[name] = without_date(send(site, None, VERBS[name], f"/files/{UNKNOWN}"))
        return answers[name]

    return answer


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", VERBS)
def test_signature_that_is_none_is_no_token(
    site: ServerProcess, unknown: Callable[[str], object], name: str, situation: str
) -> None:
    path = SITUATIONS[situation](site)
    other = capability(site, active(site)).partition("?")[2]
    good = capability(site, path)
    refused = [
        capability(site, path, expires_in=-1),
        capability(site, path, keys=FOREIGN_KEYS),
        f"{path}?{other}",
        good.replace("?k=", "?d="),
        good.replace("?k=", "?t="),
        f"{good}&{good.partition('?')[2]}",
        f"{path}?{creation().partition('?')[2]}",
        link(path, expires_in=-1),
        link(path, keys=FOREIGN_KEYS),
        f"{path}?k=",
    ]
    refused.append(link(path) if name in BY_CAPABILITY else good)
    with unchanged(site):
        for url in refused:
            answer = send(site, None, VERBS[name], url)
            assert answer.status == 401, url
            assert without_date(answer) == unknown(name), url


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", BY_CAPABILITY)
def test_capability_does_what_the_owner_may_do(site: ServerProcess, name: str, situation: str) -> None:
    owner = send(site, OWNER, VERBS[name], SITUATIONS[situation](site))
    for token in (None, "wrong", OTHER):
        holder = send(site, token, VERBS[name], capability(site, SITUATIONS[situation](site)))
        assert (holder.status, holder.text) == (owner.status, owner.text)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", BY_LINK)
def test_link_downloads_what_the_owner_may_download(site: ServerProcess, name: str, situation: str) -> None:
    path = SITUATIONS[situation](site)
    owner = send(site, OWNER, VERBS[name], path)
    for token in (None, "wrong", OTHER):
        holder = send(site, token, VERBS[name], link(path))
        assert (holder.status, holder.body) == (owner.status, owner.body)
        assert holder["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("name", VERBS)
def test_signature_that_is_none_does_not_hinder_a_token(site: ServerProcess, name: str) -> None:
    owner = send(site, OWNER, VERBS[name], active(site))
    for query in ("k=1.2.3.4.5", "d=1.2.3", "t=1", "k=&d=&t="):
        answer = send(site, OWNER, VERBS[name], f"{active(site)}?{query}")
        assert (answer.status, answer.text) == (owner.status, owner.text)


def test_good_capability_decides_before_two_fields_of_authorization(site: ServerProcess) -> None:
    path = capability(site, active(site))
    fields: Headers = {"Tus-Resumable": "1.0.0", "Authorization": ("Bearer a", "Bearer b")}
    assert request(site.port, "HEAD", path, fields).status == 200
    assert request(site.port, "HEAD", path.partition("?")[0], fields).status == 400


@pytest.mark.parametrize("name", ["DELETE", "DELETE with a body", "override DELETE"])
def test_capability_without_the_right_to_terminate_does_not(site: ServerProcess, name: str) -> None:
    path = capability(site, active(site), may_terminate=False)
    with unchanged(site):
        refused = send(site, None, VERBS[name], path)
    assert refused.status == 403
    assert ask(site, None, "HEAD", path).offset == 4


@pytest.mark.parametrize("place", ["alone", "beside a token"])
def test_capability_is_no_right_to_concatenate(site: ServerProcess, place: str) -> None:
    path = capability(site, complete_partial(site))
    token = None if place == "alone" else OTHER
    with unchanged(site):
        for url in ("/files", f"/files?{path.partition('?')[2]}"):
            refused = ask(site, token, "POST", url, {"Upload-Concat": f"final;{path}"})
            assert refused.status == (401 if token is None else 404)


def test_owner_concatenates_by_urls_with_capabilities_which_are_not_kept(site: ServerProcess) -> None:
    paths = [capability(site, complete_partial(site)) for _ in range(2)]
    answer = ask(site, OWNER, "POST", "/files", {"Upload-Concat": f"final;{site.origin}{paths[0]} {paths[1]}"})
    assert answer.status == 201
    path = answer["Location"].removeprefix(site.origin)
    first, second = (url.partition("?")[0] for url in paths)
    assert ask(site, OWNER, "HEAD", path)["Upload-Concat"] == f"final;{site.origin}{first} {second}"
    assert ask(site, OWNER, "GET", path).body == b"fourfour"


# Creations.


@pytest.mark.parametrize("name", CREATIONS)
def test_grant_creates_one_upload(site: ServerProcess, name: str) -> None:
    verb, url = CREATIONS[name], creation(owner="ann")
    before = stored(site)
    for token in ("wrong", None):
        answer = send(site, token, verb, url)
        if token is not None:
            assert answer.status == 201
            path = new_upload(site, before).removeprefix(site.origin)
            continue
        assert answer.status == 401
        assert answer.text == "ERR_UNAUTHORIZED: this URL has created its upload\n"
    assert len(stored(site).records) == len(before.records) + 1
    assert ask(site, OWNER, "HEAD", path).status == 200
    assert ask(site, OTHER, "HEAD", path).status == 404
    assert ask(site, None, "HEAD", path).status == 401


@pytest.mark.parametrize("name", CREATIONS)
def test_grant_that_is_none_creates_nothing(site: ServerProcess, name: str) -> None:
    verb, good = CREATIONS[name], creation()
    path = complete(site)
    refused = [
        creation(expires_in=-1),
        creation(keys=FOREIGN_KEYS),
        good[:-1],
        good + "&" + good.partition("?")[2],
        good.replace("?t=", "?k="),
        f"/files?{capability(site, path).partition('?')[2]}",
        f"/files?{link(path).partition('?')[2]}",
    ]
    nobody = without_date(send(site, None, verb, "/files"))
    with unchanged(site):
        for url in refused:
            answer = send(site, None, verb, url)
            assert answer.status == 401
            assert without_date(answer) == nobody
    assert send(site, OWNER, verb, refused[0]).status == 201


def test_grant_is_for_nothing_but_a_creation(site: ServerProcess) -> None:
    query = creation(owner="ann").partition("?")[2]
    path = active(site)
    with unchanged(site):
        for verb in VERBS.values():
            assert send(site, None, verb, f"{path}?{query}").status == 401
    assert ask(site, None, "POST", f"/files?{query}", {"Upload-Length": "4"}).status == 201


@pytest.mark.parametrize("parts", ["own", "unknown"])
def test_grant_makes_no_final_upload_of_what_its_owner_has(site: ServerProcess, parts: str) -> None:
    part = complete_partial(site) if parts == "own" else f"/files/{UNKNOWN}"
    url = creation(owner="ann")
    with unchanged(site):
        refused = ask(site, None, "POST", url, {"Upload-Concat": f"final;{part}"})
    assert (refused.status, refused.text) == (
        403,
        "ERR_FORBIDDEN: this URL is for an upload of its own, not for a final one\n",
    )
    assert ask(site, None, "POST", url, {"Upload-Length": "4"}).status == 201


def test_upload_of_nobody_is_for_admins_and_those_with_its_capability(site: ServerProcess) -> None:
    answer = ask(site, None, "POST", creation(), {"Upload-Length": "4"})
    path = answer["Location"].removeprefix(site.origin)
    assert [ask(site, token, "HEAD", path).status for token in (None, OWNER, ADMIN)] == [401, 404, 200]
    assert ask(site, None, "HEAD", capability(site, path)).status == 200


def test_capability_and_grant_do_not_change_with_a_final_slash(site: ServerProcess) -> None:
    path, _, query = capability(site, active(site)).partition("?")
    assert ask(site, None, "HEAD", f"{path}/?{query}").status == 200
    _, _, query = creation().partition("?")
    assert ask(site, None, "POST", f"/files/?{query}", {"Upload-Length": "4"}).status == 201


def test_preflight_of_a_signed_url_is_free(site: ServerProcess) -> None:
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "PATCH"}
    answer = request(site.port, "OPTIONS", capability(site, active(site), expires_in=-HOUR), headers)
    assert answer.status in (200, 204)


@pytest.mark.parametrize("token", [OTHER, ADMIN])
def test_token_beside_a_capability_takes_nothing_over(site: ServerProcess, token: str) -> None:
    path = create(site, OWNER, 8, b"four")
    before = stored(site)
    url = capability(site, path)
    answer = ask(site, token, "PATCH", url, {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "4"})
    assert answer.status == 204
    assert set(stored(site).records) == set(before.records)
    assert request(site.port, "GET", path, bearer(OWNER)).status == 404  # not finished, and still of its owner
