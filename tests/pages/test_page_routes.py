"""The routes of the pages: their header fields, their files, and where they are on."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from importlib.resources import files

import pytest
from starlette.testclient import TestClient

from tests.admin.calls import token_file
from tests.support.harness import ROOT, ServerProcess, serving
from tests.support.wire.messages import Answer
from tests.support.wire.requests import request
from tusd_py import create_app
from tusd_py.pages.assets import Asset, accepted_codings, load_assets, vendored_files
from tusd_py.pages.policy import content_security_policy
from tusd_py.pages.routes import ADMIN_PAGES, PAGES, WORKERS
from tusd_py.settings import InvalidSettings, Settings, from_arguments

REFERENCE = re.compile(r"""["'](assets/[^"']+|\./[^"']+\.js)["']""")
VENDOR = ROOT / "tusd_py" / "pages" / "vendor"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("pages")
    with serving(folder, max_size="5MiB", admin_token_file=token_file(folder)) as server:
        yield server


def get(site: ServerProcess, path: str, **headers: str) -> Answer:
    return request(site.port, "GET", path, {name.replace("_", "-"): value for name, value in headers.items()})


def assets_of(site: ServerProcess, page: str) -> set[str]:
    """Return the paths of all files that a page loads."""
    found: set[str] = set()
    waiting = [page]
    while waiting:
        for name in REFERENCE.findall(get(site, waiting.pop()).text):
            path = "/assets/" + name.rpartition("/")[2]
            if path not in found and "config" not in path:
                found.add(path)
                waiting += [path] if path.endswith(".js") and ".min." not in path else []
    return found


@pytest.mark.parametrize("path", [*PAGES, *ADMIN_PAGES, "/healthz", "/readyz", "/metrics"])
def test_method_that_a_page_lacks_is_refused_as_errors_are(site: ServerProcess, path: str) -> None:
    answer = request(site.port, "POST", path)
    assert (answer.status, answer["Allow"]) == (405, "GET, HEAD")
    assert answer.body == b"ERR_METHOD_NOT_ALLOWED: the methods here are GET, HEAD\n"
    assert answer.all("X-Content-Type-Options") == ["nosniff"]
    problem = request(site.port, "POST", path, {"Accept": "application/json"})
    assert problem["Content-Type"] == "application/problem+json"
    assert json.loads(problem.body)["code"] == "ERR_METHOD_NOT_ALLOWED"


def test_asset_that_does_not_exist_is_not_cached(site: ServerProcess) -> None:
    answer = get(site, "/assets/page.000000000000.css")
    assert (answer.status, answer.body) == (404, b"ERR_NOT_FOUND: there is nothing here\n")
    assert answer.all("Cache-Control") == ["no-store"]


@pytest.mark.parametrize("path", [*PAGES, *ADMIN_PAGES])
def test_page_may_load_from_its_own_origin_only(site: ServerProcess, path: str) -> None:
    answer = get(site, path)
    assert (answer.status, answer["Content-Type"]) == (200, "text/html; charset=utf-8")
    (policy,) = answer.all("Content-Security-Policy")
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.all("X-Content-Type-Options") == ["nosniff"]
    assert answer["Cache-Control"] == "no-cache"
    assert not re.search(r"<script(?![^>]*src=)|<style|style=|\son\w+=|https?://", answer.text)


@pytest.mark.parametrize("path", [*PAGES, *ADMIN_PAGES])
def test_file_of_page_is_named_by_its_content_and_never_changes(site: ServerProcess, path: str) -> None:
    paths = assets_of(site, path)
    assert len(paths) >= 4
    for asset in paths:
        answer = get(site, asset)
        assert answer.status == 200, asset
        assert answer["Cache-Control"] == "public, max-age=31536000, immutable"
        assert hashlib.sha256(answer.body).hexdigest().startswith(asset.split(".")[-2])


@pytest.mark.parametrize(("accepted", "coding"), [("gzip, deflate", "gzip"), ("br;q=0, identity", None), ("", None)])
def test_file_is_sent_in_a_coding_that_the_client_takes(site: ServerProcess, accepted: str, coding: str | None) -> None:
    (path,) = [path for path in assets_of(site, "/") if "/uppy.min." in path and path.endswith(".js")]
    answer = get(site, path, Accept_Encoding=accepted)
    assert answer.all("Content-Encoding") == ([coding] if coding else [])
    body = gzip.decompress(answer.body) if coding else answer.body
    assert body == (VENDOR / "uppy.min.js").read_bytes()
    assert answer["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize("path", ["/", "a file"])
def test_file_that_the_browser_has_is_not_sent_again(site: ServerProcess, path: str) -> None:
    path = path if path == "/" else min(assets_of(site, "/"))
    tag = get(site, path)["ETag"]
    again = get(site, path, If_None_Match=f'"other", {tag}')
    assert (again.status, again.body) == (304, b"")


def test_unknown_file_is_not_found(site: ServerProcess) -> None:
    for path in ("/assets/", "/assets/upload.js", "/assets/..%2fassets.py", "/assets/VENDOR.json"):
        assert get(site, path).status == 404


def test_page_takes_no_other_method(site: ServerProcess) -> None:
    answer = request(site.port, "POST", "/", {"Content-Length": "0"})
    assert (answer.status, answer["Allow"]) == (405, "GET, HEAD")
    assert request(site.port, "HEAD", "/").status == 200


def test_pages_know_the_settings_that_they_need(site: ServerProcess) -> None:
    answer = get(site, "/assets/config.json")
    assert answer["Cache-Control"] == "no-store"
    config = json.loads(answer.body)
    assert (config["endpoint"], config["max_size"], config["concatenation"]) == ("files", 5 << 20, True)


def test_policy_names_the_public_url() -> None:
    assert "connect-src 'self';" in content_security_policy(None)
    assert "connect-src 'self' https://a.example:8443;" in content_security_policy("https://a.example:8443/up")


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "::1"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "uploads.example.org"}, False),
        ({"host": "0.0.0.0", "pages": True}, True),
        ({"pages": False}, False),
        ({"base_path": "/assets"}, False),
        ({"base_path": "/record/new"}, False),
    ],
)
def test_pages_are_served_where_only_this_machine_can_connect(given: dict[str, object], served: bool) -> None:
    assert from_arguments(given).serves_pages is served


def test_pages_in_the_way_of_uploads_are_refused() -> None:
    with pytest.raises(InvalidSettings, match="pages needs another base_path than /assets/x"):
        from_arguments({"base_path": "/assets/x", "pages": True})


def test_pages_that_are_off_leave_their_paths_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("off"), no_pages=True) as server:
        assert get(server, "/")["Content-Type"] == "text/plain; charset=utf-8"
        assert get(server, "/assets/config.json").status == 404


def test_administration_page_is_there_with_the_administration_api_only(
    site: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert json.loads(get(site, "/assets/config.json").body)["admin"] is True
    with serving(tmp_path_factory.mktemp("none")) as server:
        assert json.loads(get(server, "/assets/config.json").body)["admin"] is False
        assert get(server, "/admin").status == 404


def test_pages_below_a_mount_name_their_files_relative_to_themselves() -> None:
    assets = load_assets()
    for name in (*PAGES.values(), *ADMIN_PAGES.values()):
        page = assets.pages[name]
        assert not re.search(rb"""(?:href|src)=["']/""", page.plain)
    with TestClient(create_app(Settings(pages=True)), root_path="/below") as client:
        assert client.get("/assets/config.json").json()["endpoint"] == "files"


def test_files_of_other_projects_are_those_of_the_manifest() -> None:
    stated = vendored_files()
    found = {path.name for path in VENDOR.iterdir() if path.suffix in (".js", ".css")}
    assert found == set(stated)
    for name, digest in stated.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
        assert gzip.decompress((VENDOR / f"{name}.gz").read_bytes()) == (VENDOR / name).read_bytes()


def test_manifest_has_the_versions_of_the_lock_file_and_a_licence_of_each_package() -> None:
    manifest = json.loads((VENDOR / "VENDOR.json").read_text())
    lock = json.loads((ROOT / "tests" / "clients" / "package-lock.json").read_text())["packages"]
    for package in manifest["packages"]:
        locked = lock[f"node_modules/{package['name']}"]
        assert (package["version"], package["integrity"]) == (locked["version"], locked["integrity"])
        assert (VENDOR / f"{package['name']}.LICENSE").read_text().strip()


def test_every_file_of_the_folder_is_sent_or_a_page() -> None:
    assets = load_assets()
    named = {name.rsplit(".", 2)[0] + "." + name.rsplit(".", 1)[1] for name in assets.files}
    static = {file.name for file in files("tusd_py.pages").joinpath("static").iterdir()}
    assert named | set(assets.pages) == static | set(vendored_files())
    assert {*PAGES.values(), *ADMIN_PAGES.values(), *WORKERS.values()} == set(assets.pages)


@pytest.mark.parametrize("path", WORKERS)
def test_worker_is_a_script_that_is_asked_for_anew(site: ServerProcess, path: str) -> None:
    answer = get(site, path)
    assert (answer.status, answer["Content-Type"]) == (200, "text/javascript; charset=utf-8")
    assert answer["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    ("header", "codings"),
    [("", {""}), ("gzip, br", {"gzip", "br"}), ("GZIP;q=1.0, br;q=0", {"gzip"}), ("br; q=0.000", set())],
)
def test_codings_of_a_client(header: str, codings: set[str]) -> None:
    assert accepted_codings(header) == codings


def test_coding_without_gain_is_not_used() -> None:
    asset = Asset("text/plain", "0", b"plain", {"br": b"b", "gzip": b"g"})
    assert asset.body("gzip") == ("gzip", b"g")
    assert asset.body("br, gzip") == ("br", b"b")
    assert asset.body("deflate") == ("", b"plain")
