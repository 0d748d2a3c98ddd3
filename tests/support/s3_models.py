"""The service model of S3, parsed once in a process: botocore reads it for every client, which is slow."""

from __future__ import annotations

from contextlib import closing
from functools import cache
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.loaders import JSONFileLoader  # type: ignore[import-untyped]

_load = JSONFileLoader().load_file


@cache
def _parsed(path: str) -> Any:
    return _load(path)


def share_models() -> None:
    """Make all sessions use the same models, as the clients of one session do."""
    JSONFileLoader.load_file = lambda loader, path: _parsed(path)


def read_models() -> None:
    """Read the models now, for this process and its forks."""
    share_models()
    with closing(boto3.session.Session().client("s3", "us-east-1", aws_access_key_id="-", aws_secret_access_key="-")):
        pass
