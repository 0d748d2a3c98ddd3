"""`tusd-py token new`: a new API token, and the line of it for the file of `--api-tokens-file`."""

from __future__ import annotations

from collections.abc import Sequence

from tusd_py.auth.api_tokens import new_token


def run_token(name: str, scopes: Sequence[str]) -> None:
    """Print a new token, and in a second line its entry for the file.

    Raises:
        ValueError: the name or a scope cannot be used.
    """
    token, line = new_token(name, scopes)
    print(token)
    print(line)
