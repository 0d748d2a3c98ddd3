"""`tusd-py migrate`: the records of a server from one state store to another."""

from __future__ import annotations

import asyncio
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.command_line import assert_refused_in_one_line, execute
from tests.support.harness import serving
from tests.support.redis_server import shared_redis_url
from tests.support.services import running_service
from tests.support.wire.messages import creation_headers, identity, payload
from tests.support.wire.promised import ask, content_of, create, head, offset_of, patch
from tusd_py.core.upload import Upload

CONTENT = payload(200_000)
MIDDLE, LATER = 70_001, 150_000
FINISHED_METADATA = "filename d29ybGQ=,is_confidential"


@dataclass(frozen=True)
class Site:
    """An upload directory in a folder, and a prefix in Redis."""

    folder: Path

    @property
    def redis(self) -> dict[str, str]:
        return {"redis_url": shared_redis_url(), "redis_prefix": f"{self.folder.name}:"}

    def migrate(self, source: str, target: str, *more: str) -> subprocess.CompletedProcess[str]:
        redis = [f"--{name.replace('_', '-')}={value}" for name, value in self.redis.items()]
        return execute(
            "migrate", "--from", source, "--to", target, "--upload-dir", str(self.folder / "uploads"), *redis, *more
        )

    def assert_migrated(self, source: str, target: str, new: int, old: int = 0) -> None:
        result = self.migrate(source, target)
        assert (result.returncode, result.stderr) == (0, "")
        how = "with the same" if target == "redis" else "without"
        assert result.stdout == f"{new} copied, {old} there already\nnow start the server {how} --redis-url\n"

    def forget(self) -> None:
        for path in (self.folder / "uploads" / ".tusd-py").glob("uploads.sqlite3*"):
            path.unlink()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_migration_counts_for_quotas_and_refuses_nothing(site: Site) -> None:
    with serving(site.folder, quota_bytes=500_000, quota_uploads=2) as server:
        create(server.url, 400_000)
        create(server.url, None, body=CONTENT[:100_000])
        assert refused_by_quota(server.url, None)
    site.assert_migrated("sqlite", "redis", 2)
    with serving(site.folder, **site.redis, quota_bytes=500_001, quota_uploads=3) as server:
        assert refused_by_quota(server.url, 2)
        create(server.url, 1)
    site.forget()
    site.assert_migrated("redis", "sqlite", 3)
    with serving(site.folder, quota_bytes=500_002, quota_uploads=4) as server:
        assert refused_by_quota(server.url, 2)
        create(server.url, 1)
        assert refused_by_quota(server.url, 0)


def refused_by_quota(url: str, length: int | None) -> bool:
    answer = ask("POST", url, creation_headers(length), b"")
    return answer.status == 413 and b"ERR_QUOTA_EXCEEDED" in answer.body


def test_uploads_continue_after_migration_to_redis_and_back(site: Site) -> None:
    with serving(site.folder) as server:
        whole = identity(create(server.url, len(CONTENT), {"Upload-Metadata": FINISHED_METADATA}, CONTENT))
        half = identity(create(server.url, len(CONTENT), body=CONTENT[:MIDDLE]))
        new = identity(create(server.url, None))
    site.assert_migrated("sqlite", "redis", 3)
    with serving(site.folder, **site.redis) as server:
        assert content_of(f"{server.url}/{whole}") == CONTENT
        assert head(f"{server.url}/{whole}")["Upload-Metadata"] == FINISHED_METADATA
        assert offset_of(f"{server.url}/{half}") == MIDDLE
        assert patch(f"{server.url}/{half}", MIDDLE, CONTENT[MIDDLE:LATER]).offset == LATER
        assert head(f"{server.url}/{new}")["Upload-Defer-Length"] == "1"
    result = site.migrate("redis", "sqlite")
    assert result.returncode == 1
    assert result.stdout == "0 copied, 2 there already\n"
    assert result.stderr == f"tusd-py: upload {half} is there already, and differs\ntusd-py: 1 not copied\n"
    site.forget()
    site.assert_migrated("redis", "sqlite", 3)
    site.assert_migrated("redis", "sqlite", 0, 3)
    with serving(site.folder) as server:
        assert content_of(f"{server.url}/{whole}") == CONTENT
        assert offset_of(f"{server.url}/{half}") == LATER
        assert patch(f"{server.url}/{half}", LATER, CONTENT[LATER:]).offset == len(CONTENT)
        assert content_of(f"{server.url}/{half}") == CONTENT
        assert patch(f"{server.url}/{new}", 0, b"abc", {"Upload-Length": "3"}).offset == 3


def test_migration_to_sqlite_merges_segments_into_one_file(site: Site) -> None:
    async def make() -> Upload:
        """Two writers: the second one does not trust the first to have ended."""
        async with running_service({"upload_dir": site.folder / "uploads", **site.redis}) as service:
            upload = Upload(id="split", created_at=time.time(), length=len(CONTENT))
            await service.state.create(upload)
            for token, end, unreleased_predecessors in ((7, MIDDLE, False), (9, LATER, True)):
                writer = service.storage.writer(upload, token, unreleased_predecessors=unreleased_predecessors)
                await writer.flush([CONTENT[upload.offset : end]], sync=True)
                after = replace(upload.at(end), storage_state=writer.snapshot().storage_state)
                upload = await service.state.update(upload, after, token)
                await writer.close()
            return upload

    upload = asyncio.run(make())
    assert upload.storage_state
    assert len(list((site.folder / "uploads").glob("split*"))) == 2
    site.assert_migrated("redis", "sqlite", 1)
    assert len(list((site.folder / "uploads").glob("split*"))) == 2  # a server that stays with Redis needs both
    site.assert_migrated("redis", "sqlite", 0, 1)
    with serving(site.folder) as server:
        assert offset_of(f"{server.url}/split") == LATER
        assert patch(f"{server.url}/split", LATER, CONTENT[LATER:]).offset == len(CONTENT)
        assert content_of(f"{server.url}/split") == CONTENT


def test_migrated_complete_uploads_are_served_after_loss_of_redis(site: Site) -> None:
    with serving(site.folder) as server:
        whole = identity(create(server.url, 3, body=b"abc"))
    site.assert_migrated("sqlite", "redis", 1)
    with serving(site.folder, redis_url=shared_redis_url(), redis_prefix=f"{site.folder.name}-empty:") as server:
        assert content_of(f"{server.url}/{whole}") == b"abc"


@pytest.mark.parametrize(("source", "target"), [("sqlite", "redis"), ("redis", "sqlite")])
def test_migrate_dry_run_prints_uploads_and_changes_nothing(site: Site, source: str, target: str) -> None:
    uploads = site.folder / "uploads"
    with serving(site.folder, **({} if source == "sqlite" else site.redis)) as server:
        half = identity(create(server.url, 9, body=b"abc"))
    before = {path: path.read_bytes() for path in uploads.rglob("*") if path.is_file()}
    for _ in range(2):
        result = site.migrate(source, target, "--dry-run")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"{half} active 3 bytes\n1 to copy, 0 there already\n"
    after = {path: path.read_bytes() for path in uploads.rglob("*") if path.is_file()}
    assert {path.name for path in after} - {path.name for path in before} <= {
        "uploads.sqlite3-wal",
        "uploads.sqlite3-shm",
    }
    site.assert_migrated(source, target, 1)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_migrate_from_and_to_the_same_store_is_refused(tmp_path: Path, kind: str) -> None:
    result = execute("migrate", "--from", kind, "--to", kind, "--upload-dir", str(tmp_path / "uploads"))
    assert_refused_in_one_line(result, 2, "--from", "--to", kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("source", "target"), [("sqlite", "redis"), ("redis", "sqlite")])
def test_migrate_without_redis_url_is_refused(tmp_path: Path, source: str, target: str) -> None:
    result = execute("migrate", "--from", source, "--to", target, "--upload-dir", str(tmp_path / "uploads"))
    assert_refused_in_one_line(result, 2, "--redis-url is missing")
    assert not list(tmp_path.iterdir())


def test_migrate_to_an_unreachable_redis_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path):
        pass
    url = "redis://user:secret@127.0.0.1:1/0"
    uploads = str(tmp_path / "uploads")
    result = execute("migrate", "--from", "sqlite", "--to", "redis", "--upload-dir", uploads, "--redis-url", url)
    assert_refused_in_one_line(result, 1, "Redis at redis://user:***@127.0.0.1:1/0 cannot be used")
    assert "secret" not in result.stderr


def test_migrate_from_a_directory_without_records_is_refused(site: Site) -> None:
    assert_refused_in_one_line(site.migrate("sqlite", "redis"), 1, "there are no records in", "uploads.sqlite3")
    assert not (site.folder / "uploads").exists()


def test_migrate_with_an_unusable_upload_directory_is_refused(site: Site) -> None:
    (site.folder / "uploads").touch()
    assert_refused_in_one_line(site.migrate("redis", "sqlite"), 1, str(site.folder / "uploads"), "File exists")


def test_migrate_with_a_broken_records_file_is_refused(site: Site) -> None:
    private = site.folder / "uploads" / ".tusd-py"
    private.mkdir(parents=True)
    (private / "uploads.sqlite3").write_text("something else " * 1000)
    for source, target in (("sqlite", "redis"), ("redis", "sqlite")):
        assert_refused_in_one_line(site.migrate(source, target), 1, str(site.folder / "uploads"), "not a database")
