"""A wrong mount, folder, bucket or prefix: the server does not start, or answers "later", and changes no record."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.parts import prefix_of
from tests.failure.test_disk import mounted
from tests.support.harness import ROOT, ServerProcess
from tests.support.redis_server import RedisServer, shared_redis_url
from tests.support.s3_server import CREDENTIALS, s3_server
from tests.support.services import running_service
from tests.support.wire.requests import request
from tusd_py.uploads.sweeping import OrphanCleaner
from tusd_py.uploads.validation import NewUpload

DATA = bytes(range(256)) * 4
TUS = {"Tus-Resumable": "1.0.0"}
NO_SOCKETS = shutil.ignore_patterns("feed")  # of a server that runs


@pytest.fixture
def redis_options(tmp_path: Path) -> dict[str, Any]:
    return {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}


def s3_options(tmp_path: Path) -> dict[str, Any]:
    server = s3_server()
    options: dict[str, Any] = {"s3_bucket": server.bucket, "s3_endpoint": server.endpoint, "s3_dialect": server.dialect}
    return options | {"s3_addressing": "path", "s3_prefix": prefix_of(tmp_path).strip("/:") + "/"}


def create(server: ServerProcess, length: int = len(DATA)) -> str:
    answer = request(server.port, "POST", "/files", {**TUS, "Upload-Length": str(length)})
    assert answer.status == 201
    return "/files/" + answer.headers["location"].rpartition("/")[2]


def patch(server: ServerProcess, path: str, start: int, end: int) -> int:
    headers = {**TUS, "Upload-Offset": str(start), "Content-Type": "application/offset+octet-stream"}
    return request(server.port, "PATCH", path, headers, DATA[start:end]).status


def offset(server: ServerProcess, path: str) -> int:
    answer = request(server.port, "HEAD", path, TUS)
    assert answer.status == 200, answer.status
    return answer.offset


def begun(server: ServerProcess, size: int = 100) -> str:
    """Create an upload whose first bytes are acknowledged; return its path."""
    path = create(server)
    assert patch(server, path, 0, size) == 204
    return path


def finishes(server: ServerProcess, path: str, start: int = 100) -> bool:
    """Return whether the upload can be continued to its end and holds what was sent."""
    assert patch(server, path, start, len(DATA)) == 204
    return request(server.port, "GET", path).body == DATA


def run(upload_dir: Path, command: str, options: dict[str, Any], env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command of the command line; return its exit code and output."""
    arguments = ServerProcess(upload_dir, **options).arguments()[1:]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tusd_py", command, *arguments],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def refuses_to_start(upload_dir: Path, options: dict[str, Any], *hints: str) -> bool:
    """Return whether the server ends at its start with one sentence that says what to check and how to overrule."""
    code, text = run(upload_dir, "serve", options, CREDENTIALS)
    assert "Traceback" not in text
    assert all(hint in text for hint in (*hints, "adopt-storage")), text
    assert len(text.strip().splitlines()) == 1, text
    return code == 1


@contextlib.contextmanager
def mount_away(uploads: Path) -> Iterator[None]:
    """An empty mount point in place of the upload directory."""
    away = uploads.with_name("away")
    os.rename(uploads, away)
    uploads.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(uploads)
        os.rename(away, uploads)


# At the start.


def test_a_host_that_starts_on_an_empty_mount_point_is_refused_and_nothing_is_lost(
    tmp_path: Path, redis_options: dict[str, Any]
) -> None:
    uploads = tmp_path / "uploads"
    with ServerProcess(uploads, **redis_options) as server:
        path = begun(server)
        with mount_away(uploads):
            assert refuses_to_start(uploads, redis_options, "--upload-dir", str(uploads))
        assert offset(server, path) == 100
        assert finishes(server, path)


def test_a_second_host_without_its_mount_is_refused_before_there_is_an_upload(
    tmp_path: Path, redis_options: dict[str, Any]
) -> None:
    with ServerProcess(tmp_path / "uploads", **redis_options):
        assert refuses_to_start(tmp_path / "empty", redis_options, "--upload-dir")


def test_a_directory_of_another_server_is_refused(tmp_path: Path, redis_options: dict[str, Any]) -> None:
    with ServerProcess(tmp_path / "uploads", **redis_options) as server:
        path = begun(server)
    with ServerProcess(tmp_path / "other", redis_url=shared_redis_url(), redis_prefix=f"{tmp_path.name}-other:"):
        pass
    assert refuses_to_start(tmp_path / "other", redis_options, "--upload-dir")
    with ServerProcess(tmp_path / "uploads", **redis_options) as server:
        assert finishes(server, path)


@pytest.mark.parametrize("changed", ["prefix", "bucket"])
@pytest.mark.parametrize("records", ["sqlite", "redis"])
def test_another_prefix_or_bucket_is_refused(
    tmp_path: Path, redis_options: dict[str, Any], records: str, changed: str
) -> None:
    options = s3_options(tmp_path) | (redis_options if records == "redis" else {})
    with ServerProcess(tmp_path / "uploads", env=CREDENTIALS, **options) as server:
        path = begun(server)
    other = options | ({"s3_prefix": "elsewhere/"} if changed == "prefix" else {"s3_bucket": other_bucket(tmp_path)})
    assert refuses_to_start(tmp_path / "uploads", other, "--s3-bucket", "--s3-prefix")
    with ServerProcess(tmp_path / "uploads", env=CREDENTIALS, **options) as server:
        assert offset(server, path) == 100
        assert finishes(server, path)


def other_bucket(tmp_path: Path) -> str:
    import boto3  # type: ignore[import-untyped]

    server = s3_server()
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="other-bucket")
    client.close()
    return "other-bucket"


def test_an_operator_can_overrule(tmp_path: Path, redis_options: dict[str, Any]) -> None:
    with ServerProcess(tmp_path / "uploads", **redis_options) as server:
        begun(server)
    assert refuses_to_start(tmp_path / "new", redis_options)
    code, text = run(tmp_path / "new", "adopt-storage", redis_options)
    assert (code, text.partition(" ")[0]) == (0, "1")
    with ServerProcess(tmp_path / "new", **redis_options) as server:
        assert finishes(server, begun(server))


@pytest.mark.parametrize("storage", ["S3", "shared disk"])
def test_file_named_by_other_records_is_no_orphan(tmp_path: Path, redis_options: dict[str, Any], storage: str) -> None:
    """A server that is started with other records than before, on the right storage, removes nothing of theirs."""
    uploads = tmp_path / "uploads"
    options = redis_options | (s3_options(tmp_path) if storage == "S3" else {})
    other = options | {"redis_prefix": f"{tmp_path.name}-other:"}
    with ServerProcess(uploads, env=CREDENTIALS, **options) as server:
        path = begun(server)
        if storage == "shared disk":
            suspect_holder(options, path)
            assert patch(server, path, 100, 200) == 204
        sent = 200 if storage == "shared disk" else 100
        assert asyncio.run(orphans_of(uploads, other)) == 0
        code, text = run(uploads, "adopt-storage", other, CREDENTIALS)
        assert code == 0, text
        assert asyncio.run(orphans_of(uploads, other, dry_run=True)) == 1
        assert finishes(server, path, sent)
        assert asyncio.run(orphans_of(uploads, options)) == 0


async def orphans_of(uploads: Path, options: dict[str, Any], *, dry_run: bool = False) -> int:
    """Return the number of orphans, of any age, that a cleanup with these options finds."""
    async with running_service({"upload_dir": uploads, **options}) as service:
        own = await service.create(NewUpload(10))
        found = await OrphanCleaner(service).clean(older_than=-60, dry_run=dry_run)
        await service.terminate(own.id)
        return len(found)


def suspect_holder(options: dict[str, Any], path: str) -> None:
    """Mark the last holder of the lock as vanished, so that the next writer begins a file of its own."""
    redis = RedisServer(port=int(options["redis_url"].rpartition(":")[2].partition("/")[0]))
    record = f"{options['redis_prefix']}{{{path.rpartition('/')[2]}}}:record"
    redis.command("HDEL", record, "released")


# Records of a version that knew no identities.


def forget_identity(redis_options: dict[str, Any], uploads: Path) -> None:
    redis = RedisServer(port=int(redis_options["redis_url"].rpartition(":")[2].partition("/")[0]))
    redis.command("DEL", f"{redis_options['redis_prefix']}metadata")
    (uploads / ".tusd-py" / "identity").unlink()


def test_records_without_identity_adopt_a_storage_that_has_their_bytes(
    tmp_path: Path, redis_options: dict[str, Any]
) -> None:
    uploads = tmp_path / "uploads"
    with ServerProcess(uploads, **redis_options) as server:
        path = begun(server)
    forget_identity(redis_options, uploads)
    with mount_away(uploads):
        assert refuses_to_start(uploads, redis_options, "--upload-dir")
    with ServerProcess(uploads, **redis_options) as server:
        assert finishes(server, path)
        with mount_away(uploads):
            assert refuses_to_start(uploads, redis_options)


# While it runs.


def answers_later(server: ServerProcess, path: str, start: int = 100, hint: str = "--upload-dir") -> None:
    head = request(server.port, "HEAD", path, TUS)
    assert head.status == 423
    assert head.headers["retry-after"]
    headers = {**TUS, "Upload-Offset": str(start), "Content-Type": "application/offset+octet-stream"}
    answer = request(server.port, "PATCH", path, headers, DATA[start:])
    assert answer.status == 503
    assert answer.headers["retry-after"]
    assert str(server.upload_dir) not in answer.body.decode()
    ready = request(server.port, "GET", "/readyz")
    assert ready.status == 503
    assert hint in ready.body.decode()


@pytest.mark.parametrize("records", ["sqlite", "redis"])
@pytest.mark.parametrize("left", ["an empty directory", "a directory of another server"])
def test_a_mount_that_goes_away_stops_everything_and_changes_nothing(
    tmp_path: Path, redis_options: dict[str, Any], records: str, left: str
) -> None:
    uploads = tmp_path / "uploads"
    options = redis_options if records == "redis" else {}
    with ServerProcess(uploads, **options) as server:
        path, deleted, fresh = begun(server), begun(server), create(server)
        with mount_away(uploads):
            if left == "a directory of another server":
                (uploads / ".tusd-py").mkdir()
                (uploads / ".tusd-py" / "identity").write_text("0" * 32 + "\n")
            answers_later(server, path)
            assert patch(server, fresh, 0, 100) == 503
            assert request(server.port, "DELETE", deleted, TUS).status == 503
            assert [file for file in uploads.rglob("*") if file.is_file() and file.name != "identity"] == []
        assert request(server.port, "GET", "/readyz").status == 200
        assert offset(server, path) == 100
        assert finishes(server, path)
        assert request(server.port, "DELETE", deleted, TUS).status in (204, 404)
    errors = [line for line in server.log if "nothing is concluded" in line]
    assert len(errors) == 1, errors


def test_a_file_system_that_is_mounted_again_under_a_server_is_used_only_after_a_restart(tmp_path: Path) -> None:
    """A disk that drops off takes bytes along that were not synced, and the locks of a server stay on the old files."""
    uploads = tmp_path / "uploads"
    with mounted(uploads, "16m"), ServerProcess(uploads) as server:
        path = begun(server)
        shutil.copytree(uploads, tmp_path / "copy", ignore=NO_SOCKETS)
        with mounted(uploads, "16m"):
            shutil.copytree(tmp_path / "copy", uploads, dirs_exist_ok=True)
            answers_later(server, path, hint="restart the server")
            server.restart()
            assert request(server.port, "GET", "/readyz").status == 200
            assert offset(server, path) == 100
            assert finishes(server, path)
            server.terminate()
    assert sum("was mounted again" in line for line in server.log) == 1


def test_a_new_inode_of_the_directory_is_no_new_storage(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    with ServerProcess(uploads) as server:
        path = begun(server)
        shutil.copytree(uploads, tmp_path / "copy", ignore=NO_SOCKETS)
        os.rename(uploads, tmp_path / "before")
        os.rename(tmp_path / "copy", uploads)
        assert request(server.port, "GET", "/readyz").status == 200
        assert patch(server, path, 100, 200) == 204
        assert offset(server, path) == 200
