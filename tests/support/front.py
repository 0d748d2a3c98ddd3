"""nginx, HAProxy and Caddy in front of a server, with the configuration that is shipped in deploy/."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.conftest import require
from tests.support.harness import ROOT
from tests.support.redis_server import free_port
from tests.support.timing import scaled

DEPLOY = ROOT / "deploy"
SHIPPED_SERVER = "127.0.0.1:8080"
# Surroundings of the shipped part: paths of its own, and a cache for everything that does not switch it off.
NGINX = """
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache keys_zone=all:1m;
    proxy_cache all;
    proxy_cache_valid any 1h;
{shipped}
}}
"""
CADDY = """
{{
    admin off
    auto_https off
}}
{shipped}
"""


def shipped(name: str, listener: tuple[str, str], server_port: int) -> str:
    """Return a file of deploy/ with another listener and another port of the server behind it."""
    text = (DEPLOY / name).read_text()
    for old, new in (listener, (SHIPPED_SERVER, f"127.0.0.1:{server_port}")):
        assert old in text, f"{old} is not in deploy/{name}"
        text = text.replace(old, new)
    return text


def _nginx(folder: Path, port: int, server_port: int) -> list[str]:
    user = "user root;" if os.geteuid() == 0 else ""  # so that nginx can use a folder of ours
    part = shipped("nginx.conf", ("listen 80;", f"listen 127.0.0.1:{port};"), server_port)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(user=user, folder=folder, shipped=part))
    return ["-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]


def _haproxy(folder: Path, port: int, server_port: int) -> list[str]:
    config = folder / "haproxy.cfg"
    config.write_text(shipped("haproxy.cfg", ("bind :80\n", f"bind 127.0.0.1:{port}\n"), server_port))
    return ["-db", "-f", str(config)]


def _caddy(folder: Path, port: int, server_port: int) -> list[str]:
    part = shipped("Caddyfile", ("uploads.example.org {", f"http://127.0.0.1:{port} {{"), server_port)
    config = folder / "Caddyfile"
    config.write_text(CADDY.format(shipped=part))
    return ["run", "--config", str(config), "--adapter", "caddyfile"]


PROXIES: dict[str, Callable[[Path, int, int], list[str]]] = {"nginx": _nginx, "haproxy": _haproxy, "caddy": _caddy}


def unchanged(text: str) -> str:
    return text


def impatient(text: str) -> str:
    return text.replace("retries 30", "retries 1").replace("lb_try_duration 30s", "lb_try_duration 1s")


@contextlib.contextmanager
def in_front(
    kind: str, folder: Path, server_port: int, *, patient: bool = True, edit: Callable[[str], str] = unchanged
) -> Iterator[int]:
    """The port of a proxy that runs as long as the context; skips the test where the program is missing.

    One that is not patient gives a server up soon, instead of waiting for it for half a minute. `edit` changes the
    text of the configuration.
    """
    program = require(kind)
    folder.mkdir(parents=True)
    port = free_port()
    command = [program, *PROXIES[kind](folder, port, server_port)]
    for config in folder.iterdir():
        text = edit(config.read_text())
        config.write_text(text if patient else impatient(text))
    environment = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until_listening(process, port, folder)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(scaled(10))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_listening(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + scaled(20)
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the proxy did not start:\n{(folder / 'log').read_text(errors='replace')}")
        time.sleep(0.02)
