"""The administration page in a browser, beside pages that upload and record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.admin.calls import TOKEN, token_file
from tests.clients.support import MEBI, OFFSET_STREAM, TUS, create, downloaded, head, payload, request, sha256
from tests.pages.test_upload_page import SLOW, begin, file_of
from tests.support.browser import Browser, Page
from tests.support.harness import ServerProcess, serving
from tests.support.timing import wait_until

ROW = "document.querySelector('#rows tr')"
ROWS = "document.querySelectorAll('#rows tr').length"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServerProcess]:
    with serving(tmp_path, admin_token_file=token_file(tmp_path)) as server:
        yield server


def enter(page: Page, site: ServerProcess, token: str = TOKEN) -> None:
    page.goto(site.origin + "/admin")
    page.until("!document.querySelector('#token-form').hidden")
    page.fill("#token", token)
    page.press("Enter")
    page.until("!document.querySelector('#content').hidden")


def open_details(page: Page) -> None:
    page.click("#rows button.name")
    page.until("document.querySelector('#details').open")


def test_administrator_ends_an_upload_and_its_bar_ends(site: ServerProcess, browser: Browser, tmp_path: Path) -> None:
    with browser.page() as uploader, browser.page() as admin:
        uploader.goto(site.origin + "/")
        uploader.throttle(SLOW // 4)
        begin(uploader, file_of(tmp_path, payload(24 * MEBI)))
        enter(admin, site)
        first = admin.until(f"Number({ROW}?.dataset.offset)")
        admin.until(f"Number({ROW}.dataset.offset) > {first}")
        assert admin.findings() == []
        open_details(admin)
        assert admin.findings() == []
        admin.click(name="Terminate")
        admin.until(f"{ROWS} === 0")
        uploader.until("document.querySelector('#status').textContent.startsWith('interview.bin: ')")
        uploader.until("document.querySelector('.uppy-StatusBar.is-error')")


def test_wrong_token_is_told_and_the_right_one_is_kept_in_the_tab(site: ServerProcess, browser: Browser) -> None:
    with browser.page() as page:
        page.goto(site.origin + "/admin")
        page.until("!document.querySelector('#token-form').hidden")
        page.fill("#token", "wrong")
        page.press("Enter")
        page.until("document.querySelector('#status').textContent.includes('does not know this token')")
        page.fill("#token", TOKEN)
        page.press("Enter")
        page.until("!document.querySelector('#content').hidden")
        page.reload()
        page.until("!document.querySelector('#content').hidden")
        assert page.value("localStorage.length") == 0


def test_uploads_are_found_by_text_and_state(site: ServerProcess, browser: Browser) -> None:
    names = ("Ym9hdA==", "Y2Fy")  # boat, car
    for name in names:
        fields = TUS | {"Upload-Length": "5", "Upload-Metadata": f"filename {name}"}
        assert request("POST", site.url, fields).status == 201
    with browser.page() as page:
        enter(page, site)
        page.until(f"{ROWS} === 2")
        page.fill("#search", "boa")
        page.until(f"{ROWS} === 1 && {ROW}.textContent.includes('boat')")
        page.fill("#search", "")
        page.until(f"{ROWS} === 2")
        page.value(
            "(() => { const one = document.querySelector('#state'); one.value = 'complete';"
            " one.dispatchEvent(new Event('input')) })()"
        )
        page.until(f"{ROWS} === 0 && !document.querySelector('#empty').hidden")


def test_more_uploads_are_shown_on_demand(site: ServerProcess, browser: Browser) -> None:
    for _ in range(51):
        create(site.url, 5)
    with browser.page() as page:
        enter(page, site)
        page.until(f"{ROWS} === 50")
        page.click(name="Show more")
        page.until(f"{ROWS} === 51 && document.querySelector('#more').hidden")


def test_abandoned_recording_is_completed_at_its_offset(site: ServerProcess, browser: Browser) -> None:
    data = payload(1000)
    url = request("POST", site.url, TUS | {"Upload-Defer-Length": "1"}).headers["location"]
    fields = TUS | {"Content-Type": OFFSET_STREAM, "Upload-Offset": "0"}
    assert request("PATCH", url, fields, data).status == 204
    with browser.page() as page:
        enter(page, site)
        page.until(f"{ROW}?.dataset.offset === '1000'")
        open_details(page)
        page.click(name="Complete")
        page.until(f"{ROW}.dataset.status === 'complete'")
    assert head(url).headers["upload-length"] == "1000"
    assert downloaded(url) == sha256(data)


# Answers to searches for `slow` are held back until `release` is called; every text that a row ever had is noted.
HOLD_BACK = """
(() => {
  const ask = window.fetch
  const held = new Promise((resolve) => { window.release = resolve })
  window.shown = []
  window.fetch = async (url, options) => {
    if (String(url).includes('q=slow')) await held
    return ask(url, options)
  }
  const note = () => window.shown.push(document.querySelector('#rows').textContent)
  new MutationObserver(note).observe(document.querySelector('#rows'), { childList: true, subtree: true })
})()
"""


def test_late_answer_does_not_take_the_place_of_a_newer_one(site: ServerProcess, browser: Browser) -> None:
    for name in ("c2xvdw==", "ZmFzdA=="):  # slow, fast
        fields = TUS | {"Upload-Length": "5", "Upload-Metadata": f"filename {name}"}
        assert request("POST", site.url, fields).status == 201
    with browser.page() as page:
        enter(page, site)
        page.until(f"{ROWS} === 2")
        page.value(HOLD_BACK)
        page.fill("#search", "slow")
        page.fill("#search", "fast")
        page.until(f"{ROWS} === 1 && {ROW}.textContent.includes('fast')")
        page.value("window.shown.length = 0")
        asked = len(page.seen()["requests"])
        page.value("window.release()")
        page.until("performance.getEntriesByType('resource').some((one) => one.name.includes('q=slow'))")
        wait_until(lambda: sum("q=fast" in url for url in page.seen()["requests"][asked:]) >= 2)
        assert not any("slow" in text for text in page.value("window.shown"))
