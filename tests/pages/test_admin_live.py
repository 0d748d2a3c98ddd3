"""The administration page as it follows uploads by a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.admin.calls import TOKEN, ask, ids_of, token_file
from tests.admin.test_port import admin_port_of
from tests.pages.test_admin_page import ROW, ROWS, enter, open_details
from tests.support.browser import Browser, Page
from tests.support.harness import ServerProcess, serving
from tests.support.timing import wait_until
from tests.support.wire.events import Listening
from tests.support.wire.requests import create, patch, request, start_patch

LENGTH = 4000  # bytes
BEARER = {"Authorization": f"Bearer {TOKEN}"}
# From now on no list arrives: what the table shows comes by the stream.
KEEP_LISTS_BACK = """
(() => {
  const ask = window.fetch
  window.fetch = (url, options) =>
    String(url).includes('/admin/api/uploads?') ? new Promise(() => {}) : ask(url, options)
})()
"""
HIDE = """
(() => {
  Object.defineProperty(document, 'hidden', { value: true })
  document.dispatchEvent(new Event('visibilitychange'))
})()
"""
LINKS = "[...document.querySelectorAll('nav a')].filter((one) => !one.hidden).map((one) => one.textContent)"
HISTORY = "[...document.querySelectorAll('#details-history li')].map((one) => one.textContent)"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServerProcess]:
    with serving(tmp_path, admin_token_file=token_file(tmp_path)) as server:
        yield server


def listeners(server: ServerProcess) -> int:
    """Return the number of clients that follow uploads."""
    for line in request(server.port, "GET", "/metrics").body.decode().splitlines():
        if line.startswith('tusd_listeners{kind="sse"} '):
            return int(float(line.rpartition(" ")[2]))
    return 0


def shown(page: Page, offset: int) -> str:
    page.until(f"{ROW}?.dataset.offset === '{offset}'")
    text: str = page.value(f"{ROW}.textContent")
    return text


def streams(page: Page) -> list[str]:
    return [url for url in page.seen()["requests"] if "/events?" in url]


def test_progress_comes_by_the_stream(site: ServerProcess, browser: Browser) -> None:
    path = create(site.port, LENGTH)
    with browser.page() as page:
        enter(page, site)
        shown(page, 0)
        wait_until(lambda: listeners(site) == 1)
        page.value(KEEP_LISTS_BACK)
        with start_patch(site.port, path, 0, 2000) as connection:
            connection.send(b"x" * 1000)
            assert "receiving" in shown(page, 1000)
        page.until(f"{ROW}.textContent.includes('waiting for its client')")
        assert patch(site.port, path, 1000, b"x" * (LENGTH - 1000)).status == 204
        shown(page, LENGTH)
        assert page.value(f"!{ROW}.querySelector('progress').hidden")
        page.until(f"{ROW}.dataset.status === 'complete'")
        wait_until(lambda: listeners(site) == 0)


def test_hidden_page_follows_nothing(site: ServerProcess, browser: Browser) -> None:
    path = create(site.port, LENGTH)
    with browser.page() as page:
        enter(page, site)
        wait_until(lambda: listeners(site) == 1)
        page.value(HIDE)
        wait_until(lambda: listeners(site) == 0)
        assert patch(site.port, path, 0, b"x").status == 204
        shown(page, 1)
        assert listeners(site) == 0


def test_stream_is_opened_again_after_the_server_was_away(site: ServerProcess, browser: Browser) -> None:
    path = create(site.port, LENGTH)
    with browser.page() as page:
        enter(page, site)
        wait_until(lambda: listeners(site) == 1)
        site.kill()
        page.until("document.querySelector('#status').textContent.includes('cannot be reached')")
        site.revive()
        wait_until(lambda: listeners(site) == 1)
        assert patch(site.port, path, 0, b"x").status == 204
        shown(page, 1)
        page.until("document.querySelector('#status').textContent === ''")


def test_details_tell_the_history_and_what_happens_meanwhile(site: ServerProcess, browser: Browser) -> None:
    path = create(site.port, None)
    with browser.page() as page:
        enter(page, site)
        page.until(f"{ROWS} === 1")
        assert page.value(f"{ROW}.querySelector('progress').hidden")  # nobody knows how much is left
        open_details(page)
        page.until(f"{HISTORY}.length === 1 && {HISTORY}[0].includes('created, from 127.0.0.1')")
        assert patch(site.port, path, 0, b"x" * 1000).status == 204
        page.until("document.querySelector('#details-fields').textContent.includes('1000 (1000 bytes)')")
        assert page.findings() == []
        assert ask(site.port, "POST", f"uploads/{ids_of(path)}/complete").status == 200
        page.until(f"{HISTORY}.length === 3 && {HISTORY}[2].includes('completed by an administrator, at 1000 bytes')")
        page.until("!document.querySelector('#details-actions').textContent.includes('Complete')")
        assert ask(site.port, "DELETE", f"uploads/{ids_of(path)}").status == 204
        page.until("document.querySelector('#details-error').textContent.includes('has been removed')")
        assert page.value("document.querySelector('#details-actions').textContent") == "Close"


def test_upload_that_is_remembered_after_its_end_cannot_be_ended_again(tmp_path: Path, browser: Browser) -> None:
    with serving(tmp_path, admin_token_file=token_file(tmp_path), gone_for="1h") as site, browser.page() as page:
        path = create(site.port, LENGTH)
        assert ask(site.port, "DELETE", f"uploads/{ids_of(path)}").status == 204
        enter(page, site)
        page.until(f"{ROW}?.dataset.status === 'terminated'")
        open_details(page)
        page.until(f"{HISTORY}.length === 2 && {HISTORY}[1].includes('removed, by admin, from 127.0.0.1')")
        assert page.value("document.querySelector('#details-actions').textContent") == "Close"


def test_administrator_by_scope_follows_with_the_token(tmp_path: Path, browser: Browser) -> None:
    with authenticating(tmp_path) as site, browser.page() as page:
        path = create_as_administrator(site)
        enter(page, site)
        shown(page, 0)
        wait_until(lambda: listeners(site) == 1)
        page.value(KEEP_LISTS_BACK)
        assert patch(site.port, path, 0, b"x", BEARER).status == 204
        shown(page, 1)


def test_token_of_the_operator_follows_where_the_server_authenticates(tmp_path: Path, browser: Browser) -> None:
    other = "another-token-of-the-operator"
    (tmp_path / "other").write_text(other)
    with authenticating(tmp_path, admin_token_file=tmp_path / "other") as site, browser.page() as page:
        path = create_as_administrator(site)
        enter(page, site, other)
        shown(page, 0)
        wait_until(lambda: listeners(site) == 1)
        page.value(KEEP_LISTS_BACK)
        assert patch(site.port, path, 0, b"x", BEARER).status == 204
        shown(page, 1)
        assert len(streams(page)) == 1


def test_stream_that_finds_no_room_is_tried_again(tmp_path: Path, browser: Browser) -> None:
    with serving(tmp_path, admin_token_file=token_file(tmp_path), max_listeners=1) as site, browser.page() as page:
        path, other = create(site.port, LENGTH), create(site.port, LENGTH)
        with Listening(site.port, f"{other}/events"):
            enter(page, site)
            page.until(f"{ROWS} === 2")
            wait_until(lambda: len(streams(page)) == 1)
            assert patch(site.port, path, 0, b"x").status == 204
            page.until("[...document.querySelectorAll('#rows tr')].some((row) => row.dataset.offset === '1')")
        wait_until(lambda: listeners(site) == 1 and len(streams(page)) > 1)


def test_port_of_administrators_has_the_stream(tmp_path: Path, browser: Browser) -> None:
    options = {"admin_token_file": token_file(tmp_path), "admin_port": 0}
    with serving(tmp_path, **options) as site, browser.page() as page:
        path = create(site.port, LENGTH)
        page.goto(f"http://127.0.0.1:{admin_port_of(site)}/admin")
        page.until("!document.querySelector('#token-form').hidden")
        assert page.value(LINKS) == ["Administration"]  # the other pages are not on this port
        page.fill("#token", TOKEN)
        page.press("Enter")
        shown(page, 0)
        wait_until(lambda: listeners(site) == 1)
        page.value(KEEP_LISTS_BACK)
        assert patch(site.port, path, 0, b"x").status == 204
        shown(page, 1)
        assert len(streams(page)) == 1


def authenticating(folder: Path, **options: Any) -> Any:
    """Return a server that knows one API token, that of an administrator."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    (folder / "tokens").write_text(f"root:{digest}:uploads:admin\n")
    return serving(folder, api_tokens_file=folder / "tokens", **options)


def create_as_administrator(site: ServerProcess) -> str:
    return create(site.port, LENGTH, BEARER)
