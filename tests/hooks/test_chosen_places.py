"""Paths that hooks choose for the bytes of uploads: below the upload directory, and never those of another upload."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.hook_endpoint import NO_OPINION, HookEndpoint, told
from tests.support.stored import stored
from tests.support.timing import wait_until
from tests.support.wire.messages import TUS, Answer, creation_headers, path_of
from tests.support.wire.requests import assert_content, head, patch, request
from tusd_py.backends.disk.claims import Claims, parse_place
from tusd_py.backends.disk.files import FileTree, Modes
from tusd_py.core.errors import PathTaken

DATA = b"all the bytes"
TOP = Path("/srv/uploads")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[HookEndpoint]:
    with HookEndpoint() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def site(endpoint: HookEndpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    options: dict[str, Any] = {
        "hooks_http": endpoint.url,
        "hooks_enabled_events": "pre-create,pre-finish",
        "hooks_http_retry": 1,
    }
    with serving(tmp_path_factory.mktemp("places"), **options) as server:
        yield server


def create_at(
    site: ServerProcess, endpoint: HookEndpoint, place: str, headers: dict[str, str] | None = None, **changes: Any
) -> Answer:
    endpoint.reply = told(ChangeFileInfo={"Storage": {"Path": place}, **changes})
    try:
        return request(site.port, "POST", "/files", {**creation_headers(len(DATA)), **(headers or {})})
    finally:
        endpoint.reply = NO_OPINION


def test_creation_over_the_quota_leaves_no_file_at_its_place(endpoint: HookEndpoint, tmp_path: Path) -> None:
    options: dict[str, Any] = {"hooks_http": endpoint.url, "hooks_enabled_events": "pre-create", "quota_bytes": 5}
    with serving(tmp_path, **options) as server:
        before = stored(server)
        for place in ("ann/a.txt", "b.txt"):
            refused = create_at(server, endpoint, place)
            assert (refused.status, refused.text.partition(":")[0]) == (413, "ERR_QUOTA_EXCEEDED")
        assert stored(server) == before


def upload_at(site: ServerProcess, endpoint: HookEndpoint, place: str) -> str:
    created = create_at(site, endpoint, place)
    assert created.status == 201, created
    path = path_of(created)
    assert patch(site.port, path, 0, DATA).status == 204
    return path


def delete(site: ServerProcess, path: str) -> None:
    assert request(site.port, "DELETE", path, TUS).status == 204


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a.txt", "a.txt"),
        ("ann/a", "ann/a"),
        ("/srv/uploads/ann/a b.txt", "ann/a b.txt"),
        ("2026/11/27/talk.webm", "2026/11/27/talk.webm"),
        ("ann/song.aac", "ann/song.aac"),
        ("\u00e4/\u4e2d.txt", "\u00e4/\u4e2d.txt"),
    ],
)
def test_a_place_below_the_directory_is_taken(text: str, place: str) -> None:
    assert parse_place(TOP, text) == place


@pytest.mark.parametrize(
    "text",
    [
        "", "/", ".", "..", "../a", "a/../b", "a/..", "a//b", "a/", "/a", "/etc/passwd", "/srv/uploads",
        "/srv/uploads/", "/srv/uploads2/a.txt", "/srv/uploads/../a", ".tusd-py/a.txt", "a/.hidden",
        ".a.txt.concatenation", "a\0b", "a\nb", "\ud800.txt", "x" * 201 + ".txt", "/".join(["x" * 100] * 11),
    ],
)  # fmt: skip
def test_a_place_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the path in the answer"):
        parse_place(TOP, text)


@pytest.mark.parametrize("text", ["abc", "0123456789abcdef", "abc.1f", "2026/11/27/abc", "/srv/uploads/abc"])
def test_a_name_that_the_server_gives_to_files_is_taken(text: str) -> None:
    with pytest.raises(PathTaken):
        parse_place(TOP, text)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO])
def test_claim_without_a_sync_of_its_folder_is_made_only_where_folders_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    claims = Claims(tmp_path, tmp_path / "claims", FileTree(tmp_path, Modes()))

    def refuse(descriptor: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", refuse)
    if error == errno.EINVAL:  # as some network file systems answer
        claims.make("a", "upload")
    else:
        with pytest.raises(OSError, match=os.strerror(error)):
            claims.make("a", "upload")

    assert claims.is_of("a", "upload") == (error == errno.EINVAL)


def claims_of(path: Path) -> Claims:
    return Claims(path, path / "claims", FileTree(path, Modes()))


@pytest.mark.parametrize(
    ("first", "second"), [("ann", "ann/x"), ("ann/x", "ann"), ("ann/x/y", "ann"), ("a/b", "a/b/c/d")]
)
def test_a_place_and_one_below_it_are_not_claimed_both_although_the_file_is_gone(
    tmp_path: Path, first: str, second: str
) -> None:
    claims = claims_of(tmp_path)
    claims.make(first, "one")
    os.unlink(tmp_path / first)
    for folder in (tmp_path / first).parents:
        if folder != tmp_path and tmp_path in folder.parents:
            folder.rmdir()

    with pytest.raises(PathTaken):
        claims.make(second, "two")

    assert not claims.is_of(second, "two")
    claims.remove(first, "one")
    claims.make(second, "two")
    claims.remove(second, "two")
    assert os.listdir(tmp_path / "claims") == []


def test_places_side_by_side_are_claimed(tmp_path: Path) -> None:
    claims = claims_of(tmp_path)
    for place in ("ann/x", "ann/y", "ann/z/x", "bob"):
        claims.make(place, "one")
    claims.remove("ann/x", "one")
    with pytest.raises(PathTaken):
        claims.make("ann", "two")


@pytest.mark.parametrize(("first", "second"), [("ann", "ann/x"), ("ann/x", "ann")])
def test_a_place_claimed_in_the_middle_of_a_claim_below_or_above_it_is_refused_or_refuses_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    """The other claim is made, and its file moved away, before each step of the claim in turn."""
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        claims, other, steps = claims_of(folder), claims_of(folder), itertools.count()
        made: list[str] = []

        def interleave(real: Callable[..., Any], *arguments: Any) -> Any:
            if next(steps) == moment:  # noqa: B023 - called within the iteration
                with suppress(PathTaken):
                    other.make(second, "two")  # noqa: B023
                    made.append("two")  # noqa: B023
                    os.unlink(folder / second)  # noqa: B023
                    if "/" in second:
                        os.rmdir((folder / second).parent)  # noqa: B023
            return real(*arguments)

        with monkeypatch.context() as patched:
            for name in ("link_text", "read_link", "opened_folder", "open"):
                real = getattr(FileTree, name)
                for tree in (claims._claims, claims._files):
                    patched.setattr(tree, name, partial(interleave, partial(real, tree)))
            with suppress(PathTaken):
                claims.make(first, "one")
                made.append("one")

        assert len(made) == 1
        if next(steps) <= moment:
            break
    assert moment > 3


def test_of_simultaneous_claims_of_a_place_and_one_below_it_at_most_one_is_made(tmp_path: Path) -> None:
    claims = claims_of(tmp_path)

    def claim(place: str) -> bool:
        try:
            claims.make(place, "one")
        except PathTaken:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        for number in range(100):
            made = list(threads.map(claim, (f"{number}", f"{number}/x")))
            assert sum(made) <= 1


def test_an_upload_has_its_bytes_where_the_hook_wants_them(site: ServerProcess, endpoint: HookEndpoint) -> None:
    path = upload_at(site, endpoint, "ann/talk.txt")
    storage = endpoint.of_type("pre-finish")[-1].payload["Event"]["Upload"]["Storage"]

    assert (site.upload_dir / "ann" / "talk.txt").read_bytes() == DATA
    assert storage == {"Type": "filestore", "Path": str(site.upload_dir / "ann" / "talk.txt")}
    site.restart()
    assert_content(site.port, path, DATA)
    delete(site, path)
    assert not (site.upload_dir / "ann" / "talk.txt").exists()
    assert head(site.port, path).status == 404


@pytest.mark.parametrize("begun", [False, True])
def test_a_place_of_another_upload_is_taken(site: ServerProcess, endpoint: HookEndpoint, begun: bool) -> None:
    place = f"shared/{begun}.txt"
    first = path_of(create_at(site, endpoint, place))
    if begun:
        assert patch(site.port, first, 0, DATA[:5]).status == 204

    second = create_at(site, endpoint, place)

    assert (second.status, second.text.partition(":")[0]) == (409, "ERR_PATH_TAKEN")
    assert patch(site.port, first, 5 if begun else 0, DATA[5 if begun else 0 :]).status == 204
    assert_content(site.port, first, DATA)


def test_a_file_that_was_moved_away_leaves_the_place_to_its_upload(site: ServerProcess, endpoint: HookEndpoint) -> None:
    path = upload_at(site, endpoint, "moved/a.txt")
    os.rename(site.upload_dir / "moved" / "a.txt", site.upload_dir / "moved" / "b.txt")

    assert create_at(site, endpoint, "moved/a.txt").status == 409
    delete(site, path)
    other = upload_at(site, endpoint, "moved/a.txt")
    assert_content(site.port, other, DATA)
    assert (site.upload_dir / "moved" / "b.txt").read_bytes() == DATA


def test_a_file_of_somebody_else_is_left_alone(site: ServerProcess, endpoint: HookEndpoint) -> None:
    (site.upload_dir / "precious.txt").write_bytes(b"precious")

    assert create_at(site, endpoint, "precious.txt").status == 409
    assert create_at(site, endpoint, "precious.txt/a.txt").status == 409
    assert (site.upload_dir / "precious.txt").read_bytes() == b"precious"
    (site.upload_dir / "precious.txt").unlink()
    upload_at(site, endpoint, "precious.txt")


@pytest.mark.parametrize("place", ["../outside.txt", "/tmp/outside.txt", ".tusd-py/uploads.sqlite3", "a/.b"])
def test_a_place_elsewhere_creates_nothing(site: ServerProcess, endpoint: HookEndpoint, place: str) -> None:
    assert create_at(site, endpoint, place).status == 503
    assert not (site.upload_dir.parent / "outside.txt").exists()


def test_no_place_is_reached_through_a_link(site: ServerProcess, endpoint: HookEndpoint, tmp_path: Path) -> None:
    (site.upload_dir / "link").symlink_to(tmp_path)
    (site.upload_dir / "file.link").symlink_to(tmp_path / "target.txt")

    assert create_at(site, endpoint, "link/a.txt").status == 409
    assert create_at(site, endpoint, "file.link").status == 409
    assert list(tmp_path.iterdir()) == []


def test_partial_uploads_have_no_place_of_their_own(site: ServerProcess, endpoint: HookEndpoint) -> None:
    assert create_at(site, endpoint, "partial/a.txt", {"Upload-Concat": "partial"}).status == 503
    assert not (site.upload_dir / "partial").exists()


def test_a_final_upload_has_its_bytes_where_the_hook_wants_them(site: ServerProcess, endpoint: HookEndpoint) -> None:
    parts = []
    for data in (b"one ", b"two"):
        created = request(site.port, "POST", "/files", {**creation_headers(len(data)), "Upload-Concat": "partial"})
        parts.append(path_of(created))
        assert patch(site.port, parts[-1], 0, data).status == 204
    endpoint.reply = told(ChangeFileInfo={"Storage": {"Path": "finals/whole.txt"}})
    final = request(site.port, "POST", "/files", {**TUS, "Upload-Concat": f"final;{parts[0]} {parts[1]}"})

    assert final.status == 201
    assert_content(site.port, path_of(final), b"one two")
    assert (site.upload_dir / "finals" / "whole.txt").read_bytes() == b"one two"
    endpoint.reply = NO_OPINION
    delete(site, path_of(final))
    assert list((site.upload_dir / "finals").iterdir()) == []


def test_the_place_of_an_upload_with_an_id_that_exists_is_given_up(site: ServerProcess, endpoint: HookEndpoint) -> None:
    endpoint.reply = told(ChangeFileInfo={"ID": "known"})
    assert request(site.port, "POST", "/files", creation_headers(len(DATA))).status == 201
    endpoint.reply = NO_OPINION

    assert create_at(site, endpoint, "given/up.txt", ID="known").status == 409
    upload_at(site, endpoint, "given/up.txt")
    assert patch(site.port, "/files/known", 0, DATA).status == 204


def test_an_ended_upload_that_is_remembered_does_not_remove_the_next_one(tmp_path: Path) -> None:
    with HookEndpoint() as endpoint:
        options: dict[str, Any] = {
            "hooks_http": endpoint.url,
            "hooks_enabled_events": "pre-create",
            "sweep_interval": "100ms",
        }
        with ServerProcess(tmp_path / "uploads", gone_for="500ms", **options) as site:
            first = upload_at(site, endpoint, "ann/a.txt")
            delete(site, first)
            second = upload_at(site, endpoint, "ann/a.txt")
            wait_until(lambda: head(site.port, first).status == 404, "the sweeper removes the record of the first")
            assert_content(site.port, second, DATA)


@pytest.mark.parametrize("with_body", [False, True])
def test_a_place_is_not_below_the_file_of_another_upload(
    site: ServerProcess, endpoint: HookEndpoint, with_body: bool
) -> None:
    upload_id = f"below-{with_body}"
    endpoint.reply = told(ChangeFileInfo={"ID": upload_id})
    body = DATA[:5] if with_body else b""
    created = request(site.port, "POST", "/files", creation_headers(len(DATA), body), body)
    endpoint.reply = NO_OPINION

    refused = create_at(site, endpoint, f"{upload_id}/a.txt")

    assert (refused.status, refused.text.partition(":")[0]) == (409, "ERR_PATH_TAKEN")
    assert patch(site.port, path_of(created), len(body), DATA[len(body) :]).status == 204
    assert_content(site.port, path_of(created), DATA)


def test_a_place_is_not_below_the_file_of_an_upload_with_a_place_of_its_own(
    site: ServerProcess, endpoint: HookEndpoint
) -> None:
    above = upload_at(site, endpoint, "above.txt")

    assert create_at(site, endpoint, "above.txt/b.txt").status == 409
    os.rename(site.upload_dir / "above.txt", site.upload_dir / "moved-away.txt")
    assert create_at(site, endpoint, "above.txt/b.txt").status == 409
    delete(site, above)
    upload_at(site, endpoint, "above.txt/b.txt")


def test_a_folder_of_chosen_places_is_no_id(site: ServerProcess, endpoint: HookEndpoint) -> None:
    path = upload_at(site, endpoint, "folder/a.txt")
    endpoint.reply = told(ChangeFileInfo={"ID": "folder"})

    refused = request(site.port, "POST", "/files", creation_headers(len(DATA)))
    endpoint.reply = NO_OPINION

    assert (refused.status, refused.text.partition(":")[0]) == (409, "ERR_UPLOAD_EXISTS")
    assert_content(site.port, path, DATA)


def test_an_upload_may_be_in_a_folder_with_its_own_id(site: ServerProcess, endpoint: HookEndpoint) -> None:
    created = create_at(site, endpoint, "own-id/a.txt", ID="own-id")

    assert created.status == 201
    assert patch(site.port, path_of(created), 0, DATA).status == 204
    assert_content(site.port, "/files/own-id", DATA)
