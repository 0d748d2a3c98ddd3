"""nginx as it is set up in a minute: `proxy_pass` to another path, which rewrites Location and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.front import wait_until_listening
from tests.support.harness import serving
from tests.support.redis_server import free_port
from tests.support.timing import scaled
from tests.support.wire.messages import TUS
from tests.support.wire.promised import ask, content_of, create, head, patch

CONFIG = """
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /app/uploads {{ proxy_pass {target}; {more} }}
    }}
}}
"""


@pytest.fixture(params=["", "proxy_set_header Host $http_host;"], ids=["plain", "with host"])
def endpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The creation URL in the eyes of a client."""
    program, folder, port = require("nginx"), tmp_path / "nginx", free_port()
    folder.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    with serving(tmp_path) as server:
        config.write_text(CONFIG.format(user=user, folder=folder, port=port, target=server.url, more=request.param))
        command = [program, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_listening(process, port, folder)
            yield f"http://127.0.0.1:{port}/app/uploads"
        finally:
            process.terminate()
            process.wait(scaled(10))


def test_a_parallel_upload_is_put_together_behind_a_proxy_that_rewrites_location(endpoint: str) -> None:
    parts = []
    for number in range(3):
        location = create(endpoint, 5, {"Upload-Concat": "partial"})
        # A client asks where it was told to; where the proxy did not rewrite that, where its page is configured to.
        url = f"{endpoint}/{location.rpartition('/')[2]}"
        assert patch(url, 0, b"part%d" % number).offset == 5
        parts.append(location)
    value = "final;" + " ".join(parts)
    answer = ask("POST", endpoint, TUS | {"Upload-Concat": value}, b"")
    assert answer.status == 201, answer
    final = f"{endpoint}/{answer['Location'].rpartition('/')[2]}"
    assert head(final)["Upload-Concat"] == value
    assert content_of(final) == b"part0part1part2"
