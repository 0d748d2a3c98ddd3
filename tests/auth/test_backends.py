"""The rights of principals with records in Redis and with bytes in S3: some cells of the table in `test_table.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.auth.site import ADMIN, OTHER, OWNER, ask, create, patch, token_files, without_date
from tests.auth.test_table import EXPIRED, SITUATIONS, UNKNOWN, VERBS, active, complete_partial, send
from tests.support import harness, s3_uploads
from tests.support.harness import ServerProcess
from tests.support.redis_server import shared_redis_url
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import Place
from tests.support.wire.messages import Answer


@pytest.fixture(scope="module", params=["Redis", "S3", "S3 and Redis"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    options = token_files(folder) | {"gone_for": "1h"}
    if "Redis" in request.param:
        options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{folder.name}-{folder.parent.name}:"}
    if "S3" in request.param:
        with s3_uploads.serving(folder, Place(s3_server()), **options) as server:
            yield server
    else:
        with harness.serving(folder, **options) as server:
            yield server


def state(site: ServerProcess, path: str) -> tuple[int, int | None]:
    """Return what the owner sees of an upload."""
    answer = ask(site, OWNER, "HEAD", path)
    return answer.status, answer.offset if answer.status == 200 else None


@pytest.mark.parametrize("situation", ["active", "complete", "final", "gone"])
@pytest.mark.parametrize("name", ["HEAD", "GET", "PATCH small", "PATCH large", "DELETE"])
def test_upload_is_for_its_owner(site: ServerProcess, name: str, situation: str) -> None:
    verb, path = VERBS[name], SITUATIONS[situation](site)
    before = state(site, path)
    for token, status in ((None, 401), (EXPIRED, verb.expired), (OTHER, 404)):
        refused = send(site, token, verb, path)
        assert refused.status == status
        assert without_date(refused) == without_date(send(site, token, verb, f"/files/{UNKNOWN}"))
    assert state(site, path) == before
    answer = send(site, ADMIN, verb, path)
    assert answer.status != 401
    assert "there is no such upload" not in answer.text


def test_refused_bytes_are_not_stored(site: ServerProcess) -> None:
    path = active(site)
    for token in (None, EXPIRED, OTHER):
        send(site, token, VERBS["PATCH large"], path)
    assert patch(site, OWNER, path, 4, b"own bytes").offset == 13
    assert ask(site, OTHER, "DELETE", path).status == 404
    assert ask(site, OWNER, "DELETE", path).status == 204


def test_final_upload_is_not_made_of_what_others_own(site: ServerProcess) -> None:
    own = create(site, OTHER, 4, b"mine", {"Upload-Concat": "partial"})

    def final_of(foreign: str) -> Answer:
        return ask(site, OTHER, "POST", "/files", {"Upload-Concat": f"final;{own} {foreign}"})

    refused = final_of(complete_partial(site))
    assert refused.status == 404
    assert without_date(refused) == without_date(final_of(f"/files/{UNKNOWN}"))
