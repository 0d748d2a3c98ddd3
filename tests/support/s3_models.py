"""The service models of botocore, found and parsed once in a process: it does so for every session, which is slow."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.loaders import Loader  # type: ignore[import-untyped]

_new = Loader.__init__
_found: dict[Any, Any] = {}


def _new_sharing(loader: Any, *arguments: Any, **options: Any) -> None:
    _new(loader, *arguments, **options)
    loader._cache = _found


def share_models() -> None:
    """Make all sessions use the same models, as the clients of one session do."""
    Loader.__init__ = _new_sharing


def read_models() -> None:
    """Read the models now, for this process and its forks."""
    share_models()
    with closing(boto3.session.Session().client("s3", "us-east-1", aws_access_key_id="-", aws_secret_access_key="-")):
        pass
