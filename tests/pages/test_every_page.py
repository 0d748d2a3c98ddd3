"""Every page: accessible, usable by keyboard and on a phone, and nothing from another origin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.admin.calls import token_file
from tests.support.browser import PHONE, Browser, Page
from tests.support.harness import ServerProcess, serving
from tusd_py.pages.routes import ADMIN_PAGES, PAGES

ALL = [*PAGES, *ADMIN_PAGES]
READY = {
    "/": "document.querySelector('.uppy-Dashboard-browse') && !document.querySelector('#parallel-label').hidden",
    "/record": "!document.querySelector('#record').disabled",
    "/admin": "!document.querySelector('#token-form').hidden",
}
# The controls that can be used now, of which a group of radio buttons is one, each by something that tells it apart.
CONTROLS = """
[...document.querySelectorAll('a[href], button, input, select, summary')]
  .filter((one) => one.checkVisibility() && !one.disabled && one.tabIndex >= 0)
  .filter((one) => one.closest('[inert], [aria-hidden=true]') === null)
  .filter((one) => one.type !== 'radio' || one.checked)
  .map((one, number) => {
    one.dataset.number = String(number)
    return one.dataset.number
  })
"""
FOCUSED = "document.activeElement?.dataset.number ?? null"
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("pages")
    with serving(folder, admin_token_file=token_file(folder)) as server:
        yield server


def opened(page: Page, site: ServerProcess, path: str) -> Page:
    page.goto(site.origin + path)
    page.until(READY[path])
    return page


@pytest.mark.parametrize("options", [{}, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ALL)
def test_page_is_accessible_and_fits(
    site: ServerProcess, browser: Browser, path: str, scheme: str, options: dict[str, Any]
) -> None:
    with browser.page(colorScheme=scheme, **options) as page:
        opened(page, site, path)
        assert page.findings() == []
        assert page.value(TOO_WIDE) <= 0
        assert {url.split("/")[2] for url in page.seen()["requests"]} == {f"127.0.0.1:{site.port}"}


@pytest.mark.parametrize("path", ALL)
def test_every_control_is_reached_by_the_keyboard(site: ServerProcess, browser: Browser, path: str) -> None:
    with browser.page() as page:
        opened(page, site, path)
        controls = set(page.value(CONTROLS))
        reached = set()
        for _ in range(2 * len(controls)):
            page.press("Tab")
            reached.add(page.value(FOCUSED))
        assert controls <= reached
        assert len(controls) >= 3
