"""The recorder in a browser with a fake microphone: no byte is lost, whatever happens to server, network and page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.support import OFFSET_STREAM, TUS, downloaded, head, request, sha256
from tests.support.browser import Browser, Page
from tests.support.harness import ServerProcess

ITEM = "document.querySelector('#recording-items li')"
SECONDS = "document.querySelector('#clock').textContent.split(':').reduce((sum, part) => sum * 60 + Number(part), 0)"
AWAY = 10  # seconds of the recording
FULL = "IDBObjectStore.prototype.put = () => { throw new DOMException('no room', 'QuotaExceededError') }"
# Plays an upload to its end, in a sixteenth of its time.
PLAYED = """
new Promise((resolve, reject) => {{
  const audio = new Audio({url!r})
  audio.playbackRate = 16
  audio.onended = () => resolve(true)
  audio.onerror = () => reject(new Error(audio.error.message))
  audio.play().catch(reject)
}})
"""


def begin(page: Page, server: ServerProcess) -> None:
    page.goto(server.origin + "/record")
    page.until("!document.querySelector('#record').disabled")
    page.click(name="Record")
    page.until(f"{ITEM} && Number({ITEM}.dataset.sent) > 0")


def number(page: Page, name: str) -> int:
    return int(page.value(f"{ITEM}.dataset.{name}"))


def save(page: Page, path: Path) -> bytes:
    """Save the copy of the recording on this device."""
    proposed = page.download(path, "#recording-items li button:has-text('Save a copy')")
    assert proposed.endswith(".webm")
    return path.read_bytes()


def url_when_done(page: Page) -> str:
    page.until(f"{ITEM}?.dataset.state === 'done'")
    url: str = page.value(f"{ITEM}.querySelector('a').href")
    return url


@pytest.mark.long
def test_recording_survives_a_lost_server_and_a_reload(server: ServerProcess, browser: Browser, tmp_path: Path) -> None:
    with browser.page(acceptDownloads=True) as page:
        begin(page, server)
        server.kill()
        page.until(f"{ITEM}.dataset.state === 'away'")
        end = page.value(SECONDS) + AWAY
        page.until(f"{SECONDS} >= {end}")
        sent = number(page, "sent")
        saved = save(page, tmp_path / "while away.webm")
        assert len(saved) > sent
        server.start_again()
        page.until(f"Number({ITEM}.dataset.sent) > {len(saved)}")
        recorded = number(page, "size")
        page.reload()
        url = url_when_done(page)
        kept = save(page, tmp_path / "at the end.webm")
        assert len(kept) >= recorded
        assert kept[: len(saved)] == saved
        assert downloaded(url) == sha256(kept)
        assert page.value(PLAYED.format(url=url))
    assert head(url).headers["upload-length"] == str(len(kept))


def test_recording_that_is_stopped_while_the_server_is_away_is_sent_later(
    server: ServerProcess, browser: Browser, tmp_path: Path
) -> None:
    with browser.page(acceptDownloads=True) as page:
        begin(page, server)
        server.kill()
        page.until(f"{ITEM}.dataset.state === 'away'")
        page.click(name="Stop")
        page.until("!document.querySelector('#record').disabled")
        server.start_again()
        url = url_when_done(page)
        assert downloaded(url) == sha256(save(page, tmp_path / "copy.webm"))


@pytest.mark.parametrize(
    "fault",
    [
        "window.AudioContext = class { constructor() { throw new DOMException('none', 'NotSupportedError') } }",
        "AudioContext.prototype.createMediaStreamSource = () => { throw new DOMException('no', 'InvalidStateError') }",
    ],
    ids=["no context", "no source"],
)
def test_recording_without_a_level_can_be_stopped_and_is_sent(
    server: ServerProcess, browser: Browser, tmp_path: Path, fault: str
) -> None:
    with browser.page(acceptDownloads=True) as page:
        page.goto(server.origin + "/record")
        page.value(f"void ({fault})")
        page.until("!document.querySelector('#record').disabled")
        page.click(name="Record")
        page.until(f"{ITEM} && Number({ITEM}.dataset.sent) > 0")
        page.click(name="Stop")
        assert downloaded(url_when_done(page)) == sha256(save(page, tmp_path / "copy.webm"))


def test_recording_that_cannot_start_leaves_a_page_that_records(server: ServerProcess, browser: Browser) -> None:
    with browser.page() as page:
        page.goto(server.origin + "/record")
        page.value("void (window.start = MediaRecorder.prototype.start)")
        page.value("void (MediaRecorder.prototype.start = () => { throw new DOMException('no', 'InvalidStateError') })")
        page.until("!document.querySelector('#record').disabled")
        page.click(name="Record")
        page.until(f"{ITEM} && !document.querySelector('#record').disabled")
        assert page.value("document.querySelector('#stop').disabled")
        page.value("void (MediaRecorder.prototype.start = window.start)")
        page.click(name="Record")
        page.until(f"Number({ITEM}.dataset.sent) > 0")
        page.click(name="Stop")
        url_when_done(page)


def test_recorder_is_there_while_the_server_is_away(server: ServerProcess, browser: Browser, tmp_path: Path) -> None:
    with browser.page(acceptDownloads=True) as page:
        begin(page, server)
        page.until("navigator.serviceWorker.ready.then(() => true)")
        server.kill()
        page.until(f"{ITEM}.dataset.state === 'away'")
        page.reload()
        page.until(f"{ITEM}?.dataset.state === 'away' && !document.querySelector('#record').disabled")
        saved = save(page, tmp_path / "copy.webm")
        server.start_again()
        assert downloaded(url_when_done(page)) == sha256(saved)


def terminate(url: str) -> None:
    assert request("DELETE", url, TUS).status == 204


def complete(url: str) -> None:
    """Declare the offset to be the length, between two requests of the page."""
    while True:
        offset = head(url).headers["upload-offset"]
        fields = TUS | {"Content-Type": OFFSET_STREAM, "Upload-Offset": offset, "Upload-Length": offset}
        status = request("PATCH", url, fields).status
        if status == 204:
            return
        assert status == 409


@pytest.mark.parametrize("end_it", [terminate, complete])
def test_recording_whose_upload_was_ended_by_others_is_sent_once_more(
    server: ServerProcess, browser: Browser, tmp_path: Path, end_it: Callable[[str], None]
) -> None:
    with browser.page(acceptDownloads=True) as page:
        begin(page, server)
        first = page.value(f"{ITEM}.querySelector('a').href")
        end_it(first)
        page.until(f"![{first!r}, ''].includes({ITEM}.querySelector('a').href)")
        page.click(name="Stop")
        url = url_when_done(page)
        assert downloaded(url) == sha256(save(page, tmp_path / "copy.webm"))


def test_recording_that_the_disk_has_no_room_for_stays_in_memory_and_is_sent(
    server: ServerProcess, browser: Browser, tmp_path: Path
) -> None:
    with browser.page(acceptDownloads=True) as page:
        page.goto(server.origin + "/record")
        page.value(FULL)
        page.until("!document.querySelector('#record').disabled")
        page.click(name="Record")
        page.until(f"{ITEM}?.textContent.includes('in the memory of this page only')")
        page.click(name="Stop")
        url = url_when_done(page)
        assert downloaded(url) == sha256(save(page, tmp_path / "copy.webm"))


def test_recording_of_a_closed_tab_is_sent_by_another_one(server: ServerProcess, browser: Browser) -> None:
    with browser.page() as first:
        begin(first, server)
        with browser.page(beside=first) as second:
            second.goto(server.origin + "/record")
            second.until("!document.querySelector('#record').disabled")
            assert second.value(ITEM) is None
            url = first.value(f"{ITEM}.querySelector('a').href")
            server.kill()
            first.until(f"{ITEM}.dataset.state === 'away'")
            size = number(first, "size")
            first.leave()
            server.start_again()
            assert url_when_done(second) == url
    assert int(head(url).headers["upload-length"]) >= size


def test_sound_and_picture_are_recorded(server: ServerProcess, browser: Browser) -> None:
    with browser.page() as page:
        page.goto(server.origin + "/record")
        page.until("!document.querySelector('#record').disabled")
        page.click("input[value=video]")
        page.click(name="Record")
        page.until(f"Number({ITEM}?.dataset.sent) > 0")
        page.until("document.querySelector('#preview').videoWidth > 0")
        page.click(name="Stop")
        url = url_when_done(page)
    assert request("GET", url).headers["content-type"] == "video/webm"


def test_discarded_recording_is_gone_from_this_device(server: ServerProcess, browser: Browser) -> None:
    with browser.page() as page:
        begin(page, server)
        page.click(name="Stop")
        url = url_when_done(page)
        assert page.findings() == []
        page.click("#recording-items li button:has-text('Discard')")
        page.until("document.querySelector('#recordings').hidden")
        page.reload()
        page.until("!document.querySelector('#record').disabled")
        assert page.value(ITEM) is None
    assert request("GET", url).status == 200
