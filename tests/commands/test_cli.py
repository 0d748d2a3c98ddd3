from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import assert_refused_in_one_line, execute
from tests.support.harness import ROOT, ServerProcess
from tests.support.redis_server import RedisNodes, RedisServer
from tests.support.services import running_service
from tests.support.timing import scaled
from tusd_py import Upload, __version__
from tusd_py.backends.local_locks.locker import servers_excluded
from tusd_py.cli import main
from tusd_py.commands import options
from tusd_py.commands.parser import COMMANDS
from tusd_py.core.upload import Status
from tusd_py.settings import FIELDS

# Version, help and mistakes.


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"tusd-py {__version__}\n"


def test_the_installed_command() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("tusd-py"), "version"],
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=True,
    )
    assert result.stdout == f"tusd-py {__version__}\n"
    assert result.stderr == ""


def test_version_as_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tusd-py {__version__}\n"


def test_help_shows_choices_and_defaults_with_units(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "aws, minio, r2, scaleway, ceph, plain (default: aws)" in text
    assert "debug, info, warning, error (default: info)" in text
    for default in ("8MiB", "32MiB", "24MiB", "24h", "60s", "1KiB"):
        assert f"(default: {default})" in text
    assert "86400" not in text
    assert "8388608" not in text


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["serve", "--prot", "1"], "did you mean --port?"),
        (["serve", "--max_size", "4"], "did you mean --max-size?"),
        (["serve", "--upload-dirs=x"], "did you mean --upload-dir?"),
        (["sweep", "--dryrun"], "did you mean --dry-run?"),
        (["srve"], "did you mean serve?"),
    ],
)
def test_a_misspelt_flag_or_command_names_what_was_meant(
    capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert hint in printed
    assert printed.count("\n") == 2, printed


def test_a_flag_without_its_value_is_not_told_to_be_misspelt(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--upload-dir"])
    assert "did you mean" not in capsys.readouterr().err


def test_a_file_in_place_of_the_upload_directory_is_said_to_be_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["serve", "--upload-dir", str(file)]) == 1
    assert capsys.readouterr().err == f"tusd-py: the upload directory {file} cannot be used: Not a directory\n"


@pytest.mark.parametrize(
    "command",
    [
        *(name for name in COMMANDS if name not in ("events", "uploads")),
        *map("events {}".format, options.EVENTS),
        *map("uploads {}".format, options.UPLOADS),
    ],
)
def test_help_shows_usage_and_units(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    own = r"--from STORE --to STORE |DIR |\[--(copy|dry-run|json|state STATE|owner NAME)\] "
    own += r"|\(ID\.\.\. \| --all\) |ID(\.\.\.)? "
    usage = re.sub(own, "", text.partition("\n")[0])
    assert usage == f"usage: tusd-py {command} [--SETTING VALUE]..."
    assert "TUSD_PY_MAX_SIZE" in text
    assert "GiB" in text


@pytest.mark.parametrize("command", ["serve", "sweep", "migrate", "import-tusd", "config"])
def test_help_names_every_setting(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name, field in FIELDS.items():
        assert f"--{name.replace('_', '-')}" in text
        assert (field.description or "").split()[0] in text
    assert ("--dry-run" in text) is (command in ("sweep", "migrate", "import-tusd"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["serve", "--no-such-option"],
        ["serve", "--port"],
        ["serve", "--upload", "x"],
        ["--port"],
        ["serve", "--dry-run"],
        ["version", "--port", "1"],
        ["migrate"],
        ["migrate", "--from", "sqlite"],
        ["migrate", "--from", "sqlite", "--to", "mysql"],
        ["import-tusd"],
        ["import-tusd", "a", "b"],
    ],
)
def test_commands_and_options_that_do_not_exist(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error: " in printed.err


def test_config_touches_nothing(tmp_path: Path) -> None:
    result = execute("config", "--upload-dir", "uploads", "--port", "1234", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr == ""
    assert re.search(r"^port = 1234  # --port$", result.stdout, re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_output_that_nobody_reads_to_its_end_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "tusd_py", "config"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


# Serving where that is not possible.


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_in_use(tmp_path: Path, busy_port: int, workers: str) -> None:
    result = execute("serve", "--upload-dir", str(tmp_path), "--port", str(busy_port), "--workers", workers)
    assert_refused_in_one_line(result, 1, "--port", str(busy_port), "in use")


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "a..b"])
def test_serve_refuses_a_host_that_this_machine_does_not_have(tmp_path: Path, host: str) -> None:
    result = execute("serve", "--upload-dir", str(tmp_path), "--port", "0", "--host", host)
    assert_refused_in_one_line(result, 1, "--host", host)


@pytest.mark.parametrize("command", ["serve", "sweep"])
@pytest.mark.parametrize(
    ("in_the_way", "reason"),
    [
        ("uploads", "Not a directory"),
        ("uploads/.tusd-py", "File exists"),
        ("uploads/.tusd-py/uploads.sqlite3", "not a database"),
    ],
)
def test_an_upload_directory_that_cannot_be_used(tmp_path: Path, command: str, in_the_way: str, reason: str) -> None:
    path = tmp_path / in_the_way
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("something else " * 1000)
    uploads = tmp_path / "uploads"
    result = execute(command, "--upload-dir", str(uploads), *(["--port", "0"] if command == "serve" else []))
    assert_refused_in_one_line(result, 1, str(uploads), reason)


# Serving.


def test_where_it_listens_and_how_it_ends(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", base_path="/deep/uploads") as server:
        assert server.url == f"{server.origin}/deep/uploads"
        assert not [line for line in server.log if "ERROR" in line]
        assert server.terminate() in (0, -signal.SIGTERM)
    assert "Traceback" not in "".join(server.log)


def test_interrupting_ends_it_too(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    assert "Traceback" not in "".join(server.log)


# Sweeping.

NOW = time.time()
EXPIRED = Upload(id="expired", created_at=NOW - 100, length=10, offset=4, expires_at=NOW - 50)
FRESH = Upload(id="fresh", created_at=NOW - 100, length=10, offset=5, expires_at=NOW + 3600)
COMPLETE = Upload(id="complete", created_at=NOW - 100, length=6, offset=6, status=Status.COMPLETE, completed_at=NOW)
FINISHING = replace(COMPLETE, id="finishing", status=Status.FINISHING, completed_at=None)
UPLOADS = [EXPIRED, FRESH, COMPLETE, FINISHING]


@contextmanager
def uploads_in(directory: Path) -> Iterator[None]:
    """Uploads of every kind, with their bytes."""

    async def make() -> None:
        async with running_service({"upload_dir": directory}) as service:
            for upload in UPLOADS:
                await service.state.create(upload)
                writer = service.storage.writer(upload.at(0), 1)
                await writer.flush([b"x" * upload.offset], sync=False)
                await writer.close()

    asyncio.run(make())
    yield


async def records(directory: Path) -> dict[str, Status]:
    async with running_service({"upload_dir": directory}) as service:
        found = [await service.state.get(upload.id) for upload in UPLOADS]
    return {upload.id: upload.status for upload in found if upload is not None}


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.is_file()}


def test_sweeping(tmp_path: Path) -> None:
    directory = tmp_path / "uploads"
    with uploads_in(directory):
        before = asyncio.run(records(directory))
        result = execute("sweep", "--dry-run", "--upload-dir", str(directory))
        assert (result.returncode, result.stdout, result.stderr) == (0, "expired 4 bytes\n", "")
        assert asyncio.run(records(directory)) == before
        assert files(directory) == {"expired", "fresh", "complete", "finishing"}

        result = execute("sweep", "--upload-dir", str(directory))
        assert result.returncode == 0
        assert result.stdout == "removed 1, completed 1\n"
        assert asyncio.run(records(directory)) == {
            "fresh": Status.ACTIVE,
            "complete": Status.COMPLETE,
            "finishing": Status.COMPLETE,
        }
        assert files(directory) == {"fresh", "complete", "finishing"}

        result = execute("sweep", "--upload-dir", str(directory))
        assert result.stdout == "removed 0, completed 0\n"


def test_sweeping_beside_a_running_server(tmp_path: Path) -> None:
    directory = tmp_path / "uploads"
    with uploads_in(directory), ServerProcess(directory, sweep_interval=0):
        result = execute("sweep", "--upload-dir", str(directory))
        assert result.returncode == 0
        assert result.stdout == "removed 1, completed 1\n"
    assert files(directory) == {"fresh", "complete", "finishing"}


def test_a_sweep_that_could_not_remove_an_upload_names_it_and_fails(tmp_path: Path) -> None:
    directory = tmp_path / "uploads"
    with uploads_in(directory):
        (directory / "expired").unlink()
        (directory / "expired" / "in the way").mkdir(parents=True)
        result = execute("sweep", "--upload-dir", str(directory))
    assert (result.returncode, result.stdout) == (1, "removed 0, completed 1\n")
    assert result.stderr.startswith("tusd-py: upload expired could not be removed or completed: ")
    assert "not a regular file" in result.stderr
    assert result.stderr.count("\n") == 1
    (directory / "expired" / "in the way").rmdir()
    (directory / "expired").rmdir()
    result = execute("sweep", "--upload-dir", str(directory))
    assert (result.returncode, result.stdout, result.stderr) == (0, "removed 1, completed 0\n", "")


# Migrating beside a server.


def redis_of(kind: str, folder: Path) -> RedisServer | RedisNodes:
    return RedisNodes(folder / "redis") if kind == "cluster" else RedisServer()


@pytest.mark.parametrize("kind", ["server", "cluster"])
@pytest.mark.parametrize("runs_on", ["sqlite", "redis"])
@pytest.mark.parametrize("direction", [("sqlite", "redis"), ("redis", "sqlite")])
def test_migrating_beside_a_running_server_is_refused(
    tmp_path: Path, kind: str, runs_on: str, direction: tuple[str, str]
) -> None:
    directory = tmp_path / "uploads"
    source, target = direction
    with uploads_in(directory), redis_of(kind, tmp_path) as redis:
        arguments = ["migrate", "--from", source, "--to", target, "--upload-dir", str(directory)]
        arguments += ["--redis-url", redis.url]
        options: dict[str, Any] = {"redis_url": redis.url} if runs_on == "redis" else {}
        with ServerProcess(directory, sweep_interval=0, **options):
            result = execute(*arguments)
            assert_refused_in_one_line(result, 1, redis.url if runs_on == "redis" else str(directory), "stop")
            assert execute(*arguments, "--dry-run").returncode == 0
        result = execute(*arguments)
        assert result.returncode == 0, result.stderr


def test_a_server_does_not_start_while_its_records_are_copied(tmp_path: Path) -> None:
    directory = tmp_path / "uploads"
    with uploads_in(directory):
        with servers_excluded(directory / ".tusd-py" / "locks"):
            result = execute("serve", "--port", "0", "--upload-dir", str(directory))
            assert_refused_in_one_line(result, 1, str(directory), "tusd-py migrate")
        with ServerProcess(directory) as server:
            assert server.origin


def test_sweeping_with_the_wrong_records(tmp_path: Path) -> None:
    """Files that these records do not name are no orphans: the records name nothing at all."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    orphan = uploads / "upload.77"
    orphan.write_bytes(b"content")
    os.utime(orphan, (0, 0))
    with RedisServer() as redis:
        arguments = ["sweep", "--upload-dir", str(uploads), "--redis-url", redis.url]
        result = execute(*arguments)
        assert (result.returncode, result.stdout) == (0, "removed 0, completed 0\n")
        assert orphan.exists()
        redis.command("HSET", "tus:{another}:record", "id", "another", "created_at", "1", "status", "active")
        result = execute(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"removed 0, completed 0\nremoved the orphaned file {orphan}\n"
    assert not orphan.exists()


@pytest.mark.parametrize(
    "url", ["redis+cluster://{place}", "redis://{place}/0?colour=red", "redis+cluster://127.0.0.1:1"]
)
def test_a_redis_that_cannot_be_used(tmp_path: Path, url: str) -> None:
    with RedisServer() as redis:
        url = url.format(place=redis.url.split("/")[2])
        result = execute("serve", "--port", "0", "--upload-dir", str(tmp_path / "uploads"), "--redis-url", url)
    assert_refused_in_one_line(result, 1, f"Redis at {url} cannot be used: ")


@pytest.mark.parametrize("directory", ["new", "misspelt"])
@pytest.mark.parametrize("arguments", [["--dry-run"], []])
def test_sweeping_where_there_are_no_records(tmp_path: Path, directory: str, arguments: list[str]) -> None:
    """A directory that was misspelt is not made."""
    (tmp_path / "new").mkdir()
    result = execute("sweep", "--upload-dir", str(tmp_path / directory), *arguments)
    assert_refused_in_one_line(result, 1, str(tmp_path / directory), "no records")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]


def test_unknown_environment_variable_is_reported_with_a_suggestion() -> None:
    result = execute("config", TUSD_PY_MAX_SISE="5")
    assert result.returncode == 0
    assert result.stderr == (
        "tusd-py: unknown environment variable TUSD_PY_MAX_SISE: no such setting; did you mean TUSD_PY_MAX_SIZE?\n"
    )


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--s3-endpoint", "http://127.0.0.1:1"], "--s3-bucket"),
        (["--s3-part-size", "16MiB"], "--s3-bucket"),
        (["--redis-prefix", "other:"], "--redis-url"),
    ],
)
def test_settings_that_are_nothing_without_another(arguments: list[str], needed: str) -> None:
    assert_refused_in_one_line(execute("config", *arguments), 2, arguments[0], needed)
