"""The application of docs/hooks.md, as it stands there: one row for each finished upload, whatever is killed when."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.harness import ROOT, ServerProcess
from tests.support.redis_server import free_port
from tests.support.timing import TIMEOUT, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import Answer, creation_headers, metadata
from tests.support.wire.requests import head, patch, request
from tusd_py.composition import RECORDS
from tusd_py.core.storage_identity import PRIVATE_FOLDER

PAGE = (ROOT / "docs" / "hooks.md").read_text()
[EXAMPLE] = re.findall(r"^## Example application\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
UPLOADS = 8
# Replaces the step that adds a row by one that kills its own process, the first time that it is called.
CRASHING = """
import os, signal, sqlite3
from pathlib import Path
import application
from application import app

add_row = application.after_completion

def crash(*values):
    if {after_commit}:
        add_row(*values)
    if not Path("crashed").exists():
        Path("crashed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    add_row(*values)

application.after_completion = crash
"""


class Application:
    """The application in a process of its own, ended by its pid."""

    def __init__(self, folder: Path, module: str = "application") -> None:
        self.folder = folder
        self.port = free_port()
        self.module = module
        (folder / "application.py").write_text(EXAMPLE)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks"

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", f"{self.module}:app", "--port", str(self.port)]
        environment = {**os.environ, "WEBHOOK_SECRET": SECRET, "PYTHONPATH": str(self.folder)}
        with (self.folder / "application.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        wait_until(lambda: self.is_up() or self.has_ended(), "the application listens", seconds=60)

    def is_up(self) -> bool:
        try:
            return request(self.port, "GET", "/openapi.json").status == 200
        except OSError:
            return False

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def login(self, name: str, password: str) -> str:
        answer = self.ask_to_login(name, password)
        assert answer.status == 200, answer
        return str(json.loads(answer.body)["token"])

    def ask_to_login(self, name: str, password: str) -> Answer:
        body = json.dumps({"name": name, "password": password}).encode()
        return self.ask("POST", "/login", {"Content-Type": "application/json"}, body)

    def uploads_of(self, token: str) -> list[dict[str, object]]:
        answer = self.ask("GET", "/uploads", {"Authorization": f"Bearer {token}"})
        assert answer.status == 200, answer
        found: list[dict[str, object]] = json.loads(answer.body)
        return found

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        with Connection(self.port) as connection:
            connection.send_request(method, path, {"Connection": "close", **headers}, body)
            return connection.answer()

    def rows(self) -> list[tuple[str, str, int]]:
        with closing(sqlite3.connect(self.folder / "application.db", timeout=TIMEOUT)) as database:
            return database.execute("SELECT upload_id, user, size FROM uploads").fetchall()


@contextmanager
def running(folder: Path, module: str = "application") -> Iterator[tuple[Application, ServerProcess]]:
    application = Application(folder, module)
    (folder / "secret").write_text(f"{SECRET}\n")
    options: dict[str, Any] = {
        "hooks_http": application.url,
        "hooks_http_secret_file": folder / "secret",
        "hooks_enabled_events": "pre-create,post-finish",
        "hooks_http_backoff": "10ms",
    }
    application.start()
    try:
        with ServerProcess(folder / "uploads", **options) as server:
            yield application, server
    finally:
        application.kill()


def upload(server: ServerProcess, token: str, name: str, data: bytes) -> str:
    """Upload as a client does: again while the server tells it to; return the id."""
    headers = {**creation_headers(len(data)), "Authorization": f"Bearer {token}"}
    headers["Upload-Metadata"] = metadata(filename=name)
    created: list[Answer] = []

    def is_created() -> bool:
        created.append(request(server.port, "POST", "/files", headers))
        assert created[-1].status in (201, 503), created[-1]
        return created[-1].status == 201

    wait_until(is_created, "the upload is created")
    path = urlsplit(created[-1]["Location"]).path
    assert patch(server.port, path, 0, data).status == 204
    assert head(server.port, path).offset == len(data)
    return path.rpartition("/")[2]


def test_users_log_in_upload_and_see_their_uploads(tmp_path: Path) -> None:
    with running(tmp_path) as (application, server):
        ann, bob = application.login("ann", "apple"), application.login("bob", "banana")
        wrong = application.ask_to_login("ann", "banana")
        refused = request(server.port, "POST", "/files", {**creation_headers(4), "Authorization": "Bearer guessed"})
        unsigned = application.ask("POST", "/hooks", {}, b'{"Type":"post-finish"}')
        first, second = upload(server, ann, "a.txt", b"four"), upload(server, ann, "b.txt", b"seven b")
        wait_until(lambda: len(application.uploads_of(ann)) == 2, "the application hears of both")
        uploads = sorted(application.uploads_of(ann), key=lambda one: str(one["filename"]))
        of_bob = application.uploads_of(bob)

    assert wrong.status == 401
    assert (refused.status, refused.text) == (401, "log in first")
    assert unsigned.status == 401
    assert uploads == [
        {"id": first, "filename": "a.txt", "size": 4},
        {"id": second, "filename": "b.txt", "size": 7},
    ]
    assert of_bob == []


def test_a_parallel_upload_is_one_row(tmp_path: Path) -> None:
    with running(tmp_path) as (application, server):
        token = application.login("ann", "apple")
        fields = {"Tus-Resumable": "1.0.0", "Authorization": f"Bearer {token}"}
        parts = []
        for data in (b"one ", b"two"):
            created = request(
                server.port, "POST", "/files", {**fields, "Upload-Length": str(len(data)), "Upload-Concat": "partial"}
            )
            parts.append(urlsplit(created["Location"]).path)
            assert patch(server.port, parts[-1], 0, data).status == 204
        whole = request(server.port, "POST", "/files", {**fields, "Upload-Concat": f"final;{parts[0]} {parts[1]}"})
        wait_until(lambda: len(application.rows()) > 0, "the application hears of it")
        outbox_is_empty(server)
        rows = application.rows()

    assert whole.status == 201
    assert rows == [(urlsplit(whole["Location"]).path.rpartition("/")[2], "ann", 7)]


@pytest.mark.parametrize("after_commit", [False, True])
def test_a_kill_at_the_row_of_an_upload_leaves_one_row(tmp_path: Path, after_commit: bool) -> None:
    (tmp_path / "crashing.py").write_text(CRASHING.format(after_commit=after_commit))
    with running(tmp_path, "crashing") as (application, server):
        token = application.login("ann", "apple")
        upload_id = upload(server, token, "a.txt", b"four")
        wait_until(application.has_ended, "the application dies")
        rows = application.rows()
        application.kill()
        application.start()
        other = upload(server, token, "b.txt", b"seven b")
        wait_until(lambda: len(application.rows()) == 2, "the application hears of both")
        outbox_is_empty(server)

    assert rows == ([(upload_id, "ann", 4)] if after_commit else [])
    assert sorted(application.rows()) == sorted([(upload_id, "ann", 4), (other, "ann", 7)])


@pytest.mark.long
def test_kills_of_the_application_and_the_server_leave_one_row_for_each_upload(tmp_path: Path) -> None:
    seed = os.environ.get("HOOK_SEED", "hooks")
    chosen, pauses = random.Random(seed), random.Random(seed)  # one for each thread
    with running(tmp_path) as (application, server):
        tokens = {"ann": application.login("ann", "apple"), "bob": application.login("bob", "banana")}
        done = threading.Event()
        kills = [0]

        def kill_again_and_again() -> None:
            while kills[0] == 0 or not done.wait(pauses.uniform(0.0, 0.5)):
                application.kill()  # the first time at once: all uploads may need less than a pause
                application.start()
                kills[0] += 1

        killing = threading.Thread(target=kill_again_and_again)
        killing.start()
        try:
            expected = []
            for number in range(UPLOADS):
                user = chosen.choice(["ann", "bob"])
                size = chosen.randrange(1, 5000)
                expected.append((upload(server, tokens[user], "x", bytes(size)), user, size))
                if number % 4 == 3:
                    server.restart()
        finally:
            done.set()
            killing.join()
        assert not application.has_ended()
        wait_until(lambda: len(application.rows()) >= UPLOADS, "the application hears of all")
        outbox_is_empty(server)

    assert kills[0] > 0
    assert sorted(application.rows()) == sorted(expected)


def outbox_is_empty(server: ServerProcess) -> None:
    """Wait until every event was taken."""

    def count() -> int:
        with closing(sqlite3.connect(server.upload_dir / PRIVATE_FOLDER / RECORDS, timeout=TIMEOUT)) as records:
            counts = [f"(SELECT count(*) FROM {table})" for table in ("deliveries", "new_deliveries")]
            return int(records.execute(f"SELECT {' + '.join(counts)}").fetchone()[0])

    wait_until(lambda: count() == 0, "the outbox is empty", seconds=60)
