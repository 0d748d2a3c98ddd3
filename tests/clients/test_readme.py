"""The snippets of the README as they are pasted: each goes on after a loss of the server and after a second start."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.clients.support import HERE, MEBI, downloaded, payload, require_package, run_node, sha256
from tests.conftest import require
from tests.support.harness import ROOT, ServerProcess
from tests.support.proxies import FaultyNetwork, Stream
from tests.support.timing import scaled

ENDPOINT = "http://127.0.0.1:8080/files"
FILE = "interview.webm"
OUTAGE = 2.0  # seconds; that the delays add up to more than half a minute is a test of its own
CLIENTS = ("node", "python")


class Gate(FaultyNetwork):
    """A connection over which so many bytes pass, and nothing more before `resume`."""

    def __init__(self, target: int, size: int) -> None:
        super().__init__(target)
        self._left = size
        self._reached = threading.Event()

    def wait(self) -> None:
        assert self._reached.wait(scaled(60))

    async def forward(self, data: bytes, source: Stream, target: Stream) -> None:
        self._left -= len(data)
        if self._left <= 0 and not self._reached.is_set():
            self._flowing.clear()
            self._reached.set()
        await super().forward(data, source, target)


def snippet(language: str, word: str) -> str:
    """Return the first block of a language with this word in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found: str = next(block for block in blocks if word in block)
    assert ENDPOINT in found
    return found


def snippet_for(client: str) -> str:
    if client == "python":
        return snippet("python", "tusclient")
    return snippet("js", "node:fs" if client == "node" else "document.")


@pytest.fixture
def gate(server: ServerProcess) -> Iterator[Gate]:
    with Gate(server.port, 12 * MEBI) as proxy:
        yield proxy


class Script:
    """A snippet in a folder of its own, with the file that it uploads."""

    def __init__(self, folder: Path, client: str, port: int) -> None:
        self.folder = folder
        self.data = payload(24 * MEBI)
        folder.mkdir()
        (folder / FILE).write_bytes(self.data)
        code = snippet_for(client).replace(ENDPOINT, f"http://127.0.0.1:{port}/files")
        if client == "python":
            (folder / "snippet.py").write_text(code)
            self.command = [sys.executable, "snippet.py"]
        else:
            require_package("tus-js-client")
            (folder / "node_modules").symlink_to(HERE / "node_modules")
            (folder / "snippet.mjs").write_text(code)
            self.command = [require("node"), "snippet.mjs"]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def end(self, process: subprocess.Popen[str]) -> str:
        """Return the URL that it prints at last."""
        try:
            printed, _ = process.communicate(timeout=scaled(90))
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        assert process.returncode == 0, printed
        return printed.split()[-1]


def assert_uploaded_once(server: ServerProcess, port: int, url: str, data: bytes) -> None:
    """Assert that all bytes are stored, in one upload that was continued."""
    assert downloaded(url.replace(f":{port}/", f":{server.port}/")) == sha256(data)
    assert len([line for line in server.log if "method=POST" in line]) == 1
    offsets = [int(line.split("offset_before=")[1].split()[0]) for line in server.log if "offset_before=" in line]
    assert max(offsets) > 0


def lose_the_server(server: ServerProcess, gate: Gate) -> None:
    """Break the connection, end the server once it has stored what arrived, and start it after a while."""
    gate.refuse()
    deadline = time.monotonic() + scaled(30)
    while not any("method=PATCH" in line and "ERR_CLIENT_DISCONNECTED" in line for line in server.log):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.restart()
    time.sleep(OUTAGE)
    gate.resume()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_script_survives_a_time_without_the_server(
    tmp_path: Path, server: ServerProcess, gate: Gate, client: str
) -> None:
    script = Script(tmp_path / "script", client, gate.port)
    process = script.start()
    gate.wait()
    lose_the_server(server, gate)
    assert_uploaded_once(server, gate.port, script.end(process), script.data)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_script_that_is_started_again_goes_on(tmp_path: Path, server: ServerProcess, gate: Gate, client: str) -> None:
    script = Script(tmp_path / "script", client, gate.port)
    process = script.start()
    gate.wait()
    process.kill()
    process.communicate()
    gate.resume()
    assert_uploaded_once(server, gate.port, script.end(script.start()), script.data)


@pytest.mark.long
@pytest.mark.parametrize("reload", [True, False])
def test_a_page_survives_a_reload_and_a_time_without_the_server(
    tmp_path: Path, server: ServerProcess, gate: Gate, reload: bool
) -> None:
    data = payload(24 * MEBI)
    (tmp_path / FILE).write_bytes(data)
    go = tmp_path / "go"

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] == "picked":
            gate.wait()
            if not reload:
                lose_the_server(server, gate)
        else:
            gate.resume()
        go.touch()

    scenario = {
        "chromium": require("chromium"),
        "path": str(tmp_path / FILE),
        "snippet": snippet_for("browser").replace(ENDPOINT, f"http://127.0.0.1:{gate.port}/files"),
        "reload": reload,
        "go": str(go),
    }
    outcome = run_node("readme.mjs", "playwright-core", scenario, on_event)["outcome"]
    assert outcome.startswith("done: "), outcome
    assert_uploaded_once(server, gate.port, outcome.removeprefix("done: "), data)


@pytest.mark.parametrize("client", [*CLIENTS, "browser"])
def test_the_delays_between_retries_outlast_half_a_minute(client: str) -> None:
    code = snippet_for(client)
    if client == "python":
        seconds = int(re.findall(r"retries=(\d+)", code)[0]) * int(re.findall(r"retry_delay=(\d+)", code)[0])
    else:
        seconds = sum(int(delay) for delay in re.findall(r"retryDelays: \[([0-9, ]+)\]", code)[0].split(",")) // 1000
    assert seconds > 35
