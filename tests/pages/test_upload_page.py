"""The upload page in a browser: uploads survive a killed server, a reload, and other tabs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.auth.site import ask, jwt_of, token_files
from tests.clients.support import KIBI, MEBI, downloaded, payload, sha256
from tests.support.browser import Browser, Page
from tests.support.harness import ServerProcess, serving

INPUT = "input.uppy-Dashboard-input"
DONE = "document.querySelectorAll('#finished-items a').length === {count}"
URLS = "[...document.querySelectorAll('#finished-items a')].map((link) => link.href)"
PERCENT = (
    "Number((document.querySelector('.uppy-StatusBar-statusPrimary')?.textContent.match(/([0-9]+)%/) ?? [0, 0])[1])"
)
OTHER = "document.querySelector('#other-items progress')?.value"  # bytes of an upload of another tab
SLOW = 4 * MEBI  # bytes a second

# Whether the copies of so many files are kept for after a reload.
KEPT = """
new Promise((resolve) => {{
  const opening = indexedDB.open('uppy-blobs')
  opening.onsuccess = () => {{
    const count = opening.result.transaction('files').objectStore('files').count()
    count.onsuccess = () => {{
      opening.result.close()
      resolve(count.result === {count})
    }}
  }}
}})
"""


def file_of(folder: Path, data: bytes, name: str = "interview.bin") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def begin(page: Page, *paths: Path) -> None:
    page.until(f"document.querySelector('{INPUT}')")
    page.choose_files(INPUT, *paths)
    page.click(".uppy-StatusBar-actionBtn--upload")


def finish(page: Page, count: int = 1) -> list[str]:
    page.until(DONE.format(count=count))
    urls: list[str] = page.value(URLS)
    return urls


def creations(server: ServerProcess) -> int:
    return len([line for line in server.log if "method=POST" in line])


@pytest.mark.parametrize("parallel", [False, True])
def test_files_of_the_page_are_uploaded(
    server: ServerProcess, browser: Browser, tmp_path: Path, parallel: bool
) -> None:
    data = [payload(9 * MEBI + 1), payload(MEBI, seed=2)]
    with browser.page() as page:
        page.goto(server.origin + "/")
        if parallel:
            page.until("!document.querySelector('#parallel-label').hidden")
            page.click("#parallel")
        begin(page, *(file_of(tmp_path, one, f"{number}.bin") for number, one in enumerate(data)))
        urls = finish(page, 2)
        hosts = {url.split("/")[2] for url in page.seen()["requests"] if not url.startswith("blob:")}
    assert {downloaded(url) for url in urls} == {sha256(one) for one in data}
    assert hosts == {server.origin.removeprefix("http://")}
    assert creations(server) == (5 if parallel else 2)


@pytest.mark.long
def test_upload_goes_on_by_itself_after_the_server_was_killed(
    server: ServerProcess, browser: Browser, tmp_path: Path
) -> None:
    data = payload(24 * MEBI)
    with browser.page() as page:
        page.goto(server.origin + "/")
        page.throttle(SLOW)
        begin(page, file_of(tmp_path, data))
        page.until(f"{PERCENT} > 15")
        server.kill()
        page.until("document.querySelector('#status').textContent.startsWith('The server cannot be reached')")
        page.throttle(-1)
        server.start_again()
        (url,) = finish(page)
    assert downloaded(url) == sha256(data)
    assert creations(server) == 1


@pytest.mark.long
def test_upload_goes_on_by_itself_after_the_page_was_reloaded(
    server: ServerProcess, browser: Browser, tmp_path: Path
) -> None:
    data = payload(24 * MEBI)
    with browser.page() as page:
        page.goto(server.origin + "/")
        page.throttle(SLOW)
        begin(page, file_of(tmp_path, data))
        page.until(KEPT.format(count=1))
        page.until(f"{PERCENT} > 15")
        page.throttle(-1)
        page.reload()
        (url,) = finish(page)
    assert downloaded(url) == sha256(data)
    assert creations(server) == 1
    offsets = [int(line.split("offset_before=")[1].split()[0]) for line in server.log if "offset_before=" in line]
    assert max(offsets) > 0


@pytest.mark.long
def test_two_tabs_upload_beside_each_other(server: ServerProcess, browser: Browser, tmp_path: Path) -> None:
    data = [payload(8 * MEBI), payload(8 * MEBI, seed=2)]
    with browser.page() as first, browser.page(beside=first) as second:
        for page, one, name in zip((first, second), data, ("first.bin", "second.bin"), strict=True):
            page.goto(server.origin + "/")
            page.throttle(SLOW)
            begin(page, file_of(tmp_path, one, name))
        sent = second.until(OTHER)
        second.until(f"{OTHER} > {sent}")
        for page, one in zip((first, second), data, strict=True):
            (url,) = finish(page)
            assert downloaded(url) == sha256(one)
        second.until("document.querySelector('#others').hidden")
        # The second tab takes none of the files of the first one for its own.
        assert second.value("document.querySelectorAll('.uppy-Dashboard-Item').length") == 1
        assert second.findings() == []
    assert creations(server) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("button", [".uppy-DashboardContent-back", ".uppy-DashboardContent-addMore"])
def test_button_in_focus_can_be_read(
    server: ServerProcess, browser: Browser, tmp_path: Path, scheme: str, button: str
) -> None:
    with browser.page(colorScheme=scheme) as page:
        page.goto(server.origin + "/")
        page.until(f"document.querySelector('{INPUT}')")
        page.choose_files(INPUT, file_of(tmp_path, payload(KIBI)))
        page.until(f"document.querySelector('{button}')")
        page.value(f"document.querySelector('{button}').focus()")
        assert page.value(f"document.activeElement.matches('{button}')")
        assert page.findings() == []


def test_page_asks_for_a_token_and_goes_on_with_it(browser: Browser, tmp_path: Path) -> None:
    data = payload(MEBI)
    with serving(tmp_path, **token_files(tmp_path)) as server, browser.page() as page:
        page.goto(server.origin + "/")
        begin(page, file_of(tmp_path, data))
        page.until("!document.querySelector('#token-form').hidden")
        page.fill("#token", jwt_of("ann"))
        page.press("Enter")
        (url,) = finish(page)
        assert ask(server, jwt_of("ann"), "GET", url.removeprefix(server.origin)).body == data


def test_page_tells_why_the_server_refuses_a_file(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, allowed_types="image/*") as server, browser.page() as page:
        page.goto(server.origin + "/")
        begin(page, file_of(tmp_path, b"#!/bin/sh\n" + payload(KIBI), "script.png"))
        said = page.until("document.querySelector('#status').textContent")
    assert said.startswith("script.png: ")
    assert "tus:" not in said
    assert "ERR_" not in said


def test_copies_in_the_browser_are_bounded_for_all_tabs_together(server: ServerProcess, browser: Browser) -> None:
    with browser.page() as page:
        page.goto(server.origin + "/")
        page.until("document.querySelector('#kept-files').textContent.includes('at most 512 MiB')")
        (module,) = {url for url in page.seen()["requests"] if "/assets/kept-files." in url}
        bounds = page.value(
            f"import({module!r}).then(({{ boundsOfCopies }}) => [...Array(100).keys()].map(boundsOfCopies))"
        )
        with browser.page(beside=page) as second:
            second.goto(server.origin + "/")
            second.until("document.querySelector('#kept-files').textContent.includes('at most 256 MiB')")
    assert bounds[0] == {"maxFileSize": 512 * MEBI, "maxTotalSize": 1024 * MEBI}
    assert sum(bound["maxTotalSize"] + bound["maxFileSize"] for bound in bounds) <= 3072 * MEBI
