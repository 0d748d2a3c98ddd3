"""A headless Chromium, driven by node: pages that a test opens, clicks and looks at."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clients.support import HERE, require_package
from tests.conftest import require
from tests.support.timing import scaled

SCRIPT = HERE / "browser.mjs"
PATIENCE = 60.0  # seconds of an ordinary machine until a condition counts as never true
PHONE = {"viewport": {"width": 390, "height": 844}, "isMobile": True, "hasTouch": True}


class Browser:
    """One Chromium for many pages; use as a context manager."""

    def __init__(self) -> None:
        self._chromium = require("chromium")
        self._node = require("node")
        require_package("playwright-core")
        self._answers: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Browser:
        self._process = subprocess.Popen(
            [self._node, str(SCRIPT), self._chromium], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(scaled(30))
        except subprocess.TimeoutExpired:
            self._process.terminate()  # playwright ends its browser then
            self._process.wait(scaled(30))
        self._reader.join(scaled(30))
        self._process.stdout.close()

    def ask(self, command: str, **details: Any) -> Any:
        """Do a command of browser.mjs; return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **details}) + "\n")
        self._process.stdin.flush()
        line = self._answers.get(timeout=2 * scaled(PATIENCE))
        assert line, "the browser has ended"
        answer = json.loads(line)
        assert "error" not in answer, f"{command} {details}: {answer['error']}"
        return answer["value"]

    @contextmanager
    def page(self, beside: Page | None = None, **options: object) -> Iterator[Page]:
        """Open a page in a context of its own with these options of playwright, or in the context of another page.

        No page may cause an error in its scripts or violate its policy.
        """
        number = self.ask("open", beside=None if beside is None else beside.number, options=options)
        page = Page(self, number)
        try:
            yield page
            seen = page.seen()
            assert seen["errors"] == []
            assert seen["violations"] == []
        finally:
            self.ask("close", page=number)


class Page:
    """A page of the browser. A place is a selector, or a role and an accessible name."""

    def __init__(self, browser: Browser, number: int) -> None:
        self.number = number
        self._browser = browser

    def _ask(self, command: str, **details: Any) -> Any:
        return self._browser.ask(command, page=self.number, **details)

    def goto(self, url: str) -> None:
        assert self._ask("goto", url=url) == 200

    def leave(self) -> None:
        """Go away from the page, as one does who closes its tab."""
        self._ask("goto", url="about:blank")

    def reload(self) -> None:
        self._ask("reload")

    def choose_files(self, selector: str, *paths: Path) -> None:
        self._ask("files", selector=selector, paths=[str(path) for path in paths])

    def click(self, selector: str | None = None, *, role: str = "button", name: str = "") -> None:
        self._ask("click", selector=selector, role=role, name=name)

    def fill(self, selector: str, value: str) -> None:
        self._ask("fill", selector=selector, value=value)

    def press(self, key: str) -> None:
        self._ask("press", key=key)

    def value(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript in the page."""
        return self._ask("value", expression=expression)

    def until(self, expression: str) -> Any:
        """Wait until an expression is true; return its value."""
        return self._ask("until", expression=expression, timeout=scaled(PATIENCE) * 1000)

    def throttle(self, bytes_per_second: int) -> None:
        """Let the page send so many bytes a second; -1 for any number."""
        self._ask("throttle", bytes_per_second=bytes_per_second)

    def download(self, path: Path, selector: str | None = None, *, role: str = "button", name: str = "") -> str:
        """Click where a file is saved; return the name that the page proposes."""
        proposed: str = self._ask("download", path=str(path), selector=selector, role=role, name=name)
        return proposed

    def findings(self) -> list[Mapping[str, Any]]:
        """Return what axe finds wrong with the page, if it is serious or critical."""
        require_package("axe-core")
        return [finding for finding in self._ask("axe") if finding["impact"] in ("serious", "critical")]

    def screenshot(self, path: Path) -> None:
        self._ask("screenshot", path=str(path))

    def seen(self) -> Mapping[str, list[str]]:
        """Return the URLs of all requests, the violations of the policy, and the errors of scripts."""
        seen: Mapping[str, list[str]] = self._ask("seen")
        return seen
