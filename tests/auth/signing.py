"""The keys of a server, and signatures of uploads, creations and downloads that are good with it or not."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

from tests.auth.site import token_files
from tests.support.harness import ServerProcess
from tests.support.wire.messages import identity
from tusd_py.auth.signatures import (
    Capability,
    CreationGrant,
    new_grant,
    sign_capability,
    sign_creation,
    sign_download,
)
from tusd_py.auth.signing_keys import SigningKeys, parse_signing_keys

FIRST, SECOND, FOREIGN = (f"{number:064x}" for number in (1, 2, 3))
KEYS = parse_signing_keys(FIRST.encode())
HOUR = 3600


def signing_files(folder: Path, **options: Any) -> dict[str, Any]:
    """Write the files with tokens and keys; return the settings that name them."""
    (folder / "keys").write_text(f"{FIRST}\n")
    return token_files(folder) | {"signing_key_file": folder / "keys"} | options


def capability(
    server: ServerProcess,
    path: str,
    *,
    expires_in: float = HOUR,
    keys: SigningKeys = KEYS,
    may_terminate: bool = True,
) -> str:
    """Return the path of an upload with a capability, as a server makes it that has these keys."""
    text = sign_capability(
        keys, identity(path), Capability(int(time.time() + expires_in), created_at(server, path), may_terminate)
    )
    return f"{path}?k={text}"


def created_at(server: ServerProcess, path: str) -> int:
    """Return the time of the creation of an upload in microseconds; 0 for one that does not exist."""
    database = f"file:{server.upload_dir / '.tusd-py' / 'uploads.sqlite3'}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True)) as connection:
        row = connection.execute("SELECT created_at FROM uploads WHERE id = ?", (identity(path),)).fetchone()
    return 0 if row is None else int(row[0] * 1e6)


def link(path: str, *, expires_in: float = HOUR, keys: SigningKeys = KEYS) -> str:
    """Return the path of an upload with a signature for downloads."""
    return f"{path}?d={sign_download(keys, identity(path), int(time.time() + expires_in))}"


def creation(*, expires_in: float = HOUR, keys: SigningKeys = KEYS, **limits: Any) -> str:
    """Return the path of the creation URL with a grant of one creation."""
    return f"/files?t={sign_creation(keys, grant(expires_in, **limits))}"


def grant(expires_in: float = HOUR, **limits: Any) -> CreationGrant:
    return new_grant(int(time.time() + expires_in), **limits)
