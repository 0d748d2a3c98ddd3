"""Signatures of HTTP requests to the application, by Standard Webhooks. Pure functions."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

PREFIX = "whsec_"
MIN_SECRET, MAX_SECRET = 24, 64  # bytes, as Standard Webhooks demands


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Return the secrets of a file with one `whsec_...` a line; empty lines do not count.

    Raises:
        ValueError: there is none, or one is malformed; the text names the line and no secret.
    """
    secrets = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            secret = base64.b64decode(line.strip().removeprefix(PREFIX), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if not line.strip().startswith(PREFIX) or not MIN_SECRET <= len(secret) <= MAX_SECRET:
            raise ValueError(f"line {number} is not {PREFIX} and {MIN_SECRET} to {MAX_SECRET} bytes in Base64")
        secrets.append(secret)
    if not secrets:
        raise ValueError(f"there is no secret in it, a line with {PREFIX} and Base64")
    return tuple(secrets)


def read_secrets(path: Path) -> tuple[bytes, ...]:
    """Return the secrets of a file. Blocks.

    Raises:
        ValueError: it cannot be read or has no valid secrets; the text is one sentence with the path.
    """
    try:
        return parse_secrets(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # of the text, or no UTF-8
        raise ValueError(f"{path}: {error}") from error


def signature_headers(message_id: str, timestamp: int, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """Return the header fields of a request: id, time, and one signature for each secret.

    Args:
        message_id: the id of the message, the same at every attempt.
        timestamp: time of this attempt, in seconds since the epoch.
        body: the body as it is sent.
        secrets: the keys; without any there is no signature.
    """
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if secrets:
        signed = f"{message_id}.{timestamp}.".encode() + body
        headers["webhook-signature"] = " ".join(f"v1,{_signature(signed, secret)}" for secret in secrets)
    return headers


def _signature(signed: bytes, secret: bytes) -> str:
    return base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
