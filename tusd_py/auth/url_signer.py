"""URLs that applications give to those who have no account: for one creation, or for downloads of one upload."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tusd_py.auth.secret_files import SecretFile
from tusd_py.auth.signatures import new_grant, sign_creation, sign_download
from tusd_py.auth.signing_keys import SigningKeys, parse_signing_keys
from tusd_py.core.option_types import MAX_DURATION, parse_duration, parse_size
from tusd_py.core.upload import is_upload_id


class UrlSigner:
    """Signs URLs with the first key of the file of the setting `signing_key_file`, in any process.

    Example::

        signer = UrlSigner("/etc/tusd-py/signing-keys", "https://example.org/files")
        url = signer.creation(expires="1h", owner="ann", max_size="5GiB", types=["video/*"])
        link = signer.download(upload.id, expires="10m")

    The file is read for each URL; while it cannot be, the earlier keys sign. Methods may be called from any thread.
    """

    def __init__(self, key_file: Path | str, creation_url: str) -> None:
        """Read the keys. Blocks.

        Args:
            key_file: the file with the keys, one a line.
            creation_url: the creation URL as clients reach it.

        Raises:
            ValueError: the file cannot be used, or the URL has a query; the text is one sentence and holds no key.
        """
        if "?" in creation_url or "#" in creation_url:
            raise ValueError("the creation URL has neither a query nor a fragment")
        self._key_file = Path(key_file)
        self._keys = SecretFile(self._key_file, parse_signing_keys).value
        self._creation_url = creation_url.rstrip("/")

    def creation(
        self,
        *,
        expires: float | str,
        owner: str = "",
        max_size: int | str | None = None,
        types: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Return a URL that creates one upload without a token. Blocks.

        Args:
            expires: seconds until it ends, or a text such as `"1h"`.
            owner: the owner of the upload; empty for none.
            max_size: bytes that the upload may have, or a text such as `"5GiB"`; None for as many as the server allows.
            types: media types that the upload may have, such as `image/*`; empty for any.
            metadata: pairs that are added to those of the client, and win.

        Raises:
            ValueError: an argument cannot be used; the text is one sentence.
        """
        names = (types,) if isinstance(types, str) else types
        grant = new_grant(
            _end(expires),
            owner=owner,
            max_size=None if max_size is None else _size(max_size),
            types=[name.strip().lower() for name in names],
            metadata=metadata,
        )
        return f"{self._creation_url}?t={sign_creation(self._read_keys(), grant)}"

    def download(self, upload_id: str, *, expires: float | str) -> str:
        """Return a URL that downloads one upload without a token, once it is finished. Blocks.

        Args:
            upload_id: the id of the upload.
            expires: seconds until the URL ends, or a text such as `"10m"`.

        Raises:
            ValueError: an argument cannot be used; the text is one sentence.
        """
        if not is_upload_id(upload_id):
            raise ValueError("the id of an upload has letters, digits, - and _")
        return f"{self._creation_url}/{upload_id}?d={sign_download(self._read_keys(), upload_id, _end(expires))}"

    def _read_keys(self) -> SigningKeys:
        with contextlib.suppress(ValueError):
            self._keys = SecretFile(self._key_file, parse_signing_keys).value
        return self._keys


def _size(text: int | str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise ValueError(f"the largest size is {error}") from None
    assert isinstance(size, int)
    return size


def _end(expires: float | str) -> int:
    """Return the time in seconds since the epoch at which a URL ends that is good from now on."""
    try:
        seconds = parse_duration(expires)
    except ValueError as error:
        raise ValueError(f"the time to the expiry of a URL is {error}") from None
    if not isinstance(seconds, int | float) or not 0 < seconds <= MAX_DURATION:
        raise ValueError("the time to the expiry of a URL has to be positive, such as 30s, 15m, 24h or 7d")
    return int(time.time() + seconds) + 1
