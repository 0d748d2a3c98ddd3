"""TLS of requests to the application: its own authorities, and a certificate of this server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in the format PEM.

    Attributes:
        ca: authorities to trust in place of those of the system.
        certificate: certificate of this server with its chain, for endpoints that want one.
        key: key of the certificate; None if it is in the same file.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def make_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of connections with TLS. Blocks.

    Raises:
        ValueError: a file cannot be used; the text is one sentence.
    """
    if files.key is not None and files.certificate is None:
        raise ValueError(f"the key in {files.key} needs a certificate")
    try:
        context = ssl.create_default_context(cafile=files.ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"the certificates of authorities in {files.ca} cannot be used: {_reason(error)}") from error
    if files.certificate is not None:
        try:
            # With a password, OpenSSL does not ask for one on the terminal.
            context.load_cert_chain(files.certificate, files.key, password="")
        except (OSError, ssl.SSLError, ValueError) as error:
            names = " and ".join(str(path) for path in (files.certificate, files.key) if path is not None)
            raise ValueError(f"the certificate in {names} cannot be used: {_reason(error)}") from error
    return context


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(reason).lower().replace("_", " ")
