"""Mistakes in the settings of S3, which a server reports in one line when it starts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import COMMAND, ROOT, ServerProcess
from tests.support.s3_server import CREDENTIALS, free_ports, s3_server
from tests.support.s3_uploads import Place
from tests.support.timing import scaled


@pytest.mark.parametrize(
    ("changes", "environment", "sentence", "code"),
    [
        ({"s3_bucket": "not-there"}, {}, "not-there", 1),
        ({}, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "credentials", 1),
        ({}, {"AWS_ACCESS_KEY_ID": "unknown"}, "credentials", 1),
        ({}, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credentials", 1),
        ({"s3_endpoint": None}, {}, "cannot be reached", 1),
        ({"s3_key_template": "{prefix}everything"}, {}, "{id}", 2),  # a setting that is not accepted
    ],
    ids=["bucket", "secret", "key", "no credentials", "endpoint", "object key"],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_mistakes_are_one_clear_line(
    tmp_path: Path, workers: int, changes: dict[str, Any], environment: dict[str, str], sentence: str, code: int
) -> None:
    if "s3_endpoint" in changes:
        changes = {"s3_endpoint": f"http://127.0.0.1:{free_ports(1)[0]}"}
    options = Place(s3_server()).options() | {"workers": workers} | changes
    environment = CREDENTIALS | environment
    del options["env"]
    server = ServerProcess(tmp_path / "records", **options)
    ended = subprocess.run(
        [*COMMAND, *server.arguments()],
        cwd=ROOT,
        env={name: value for name, value in (os.environ | environment).items() if value},
        capture_output=True,
        text=True,
        timeout=scaled(60),
    )
    assert ended.returncode == code, ended
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tusd-py: ")
    assert sentence in line
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in line
    assert ended.stdout == ""
