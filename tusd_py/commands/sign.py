"""`tusd-py sign create | download`: URLs for those who have no account."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tusd_py.auth.url_signer import UrlSigner
from tusd_py.settings import FIELDS, InvalidSettings, Settings, flag_name, load

SIGN = "sign URLs for those who have no account"
CREATE = "print a URL that creates one upload"
DOWNLOAD = "print a URL that downloads one upload"
SETTINGS = ("signing_key_file", "public_url", "base_path")  # that a signed URL depends on


def add_sign(parser: argparse.ArgumentParser) -> None:
    """Add the two commands and their options; a setting that is not given is missing in the result."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    create = actions.add_parser("create", help=CREATE, description=CREATE)
    create.add_argument("--owner", default="", metavar="NAME", help="the owner of the upload; nobody if not given")
    create.add_argument("--max-size", dest="limit", metavar="SIZE", help="the largest size, such as 5GiB")
    create.add_argument("--types", default="", metavar="TYPE,...", help="the types it may have, such as image/*")
    create.add_argument(
        "--metadata", action="append", default=[], metavar="KEY=VALUE", help="metadata that the upload has in any case"
    )
    download = actions.add_parser("download", help=DOWNLOAD, description=DOWNLOAD)
    download.add_argument("id", metavar="ID", help="the id of the upload")
    for action in (create, download):
        action.add_argument("--expires", required=True, metavar="TIME", help="the time that it is good for, such as 1h")
        action.add_argument("--config", type=Path, default=None, metavar="FILE", help="TOML file with settings")
        for name in SETTINGS:
            text = FIELDS[name].description
            action.add_argument(flag_name(name), dest=name, default=argparse.SUPPRESS, metavar="VALUE", help=text)


def run_sign(options: dict[str, Any]) -> None:
    """Print a URL.

    Raises:
        InvalidSettings: a setting is missing or not accepted.
        ValueError: an option cannot be used.
    """
    given = {name: options[name] for name in SETTINGS if name in options}
    signer = _signer(load(given, options["config"]).settings)
    if options["action"] == "download":
        print(signer.download(options["id"], expires=options["expires"]))
        return
    print(
        signer.creation(
            expires=options["expires"],
            owner=options["owner"],
            max_size=options["limit"],
            types=[name for name in options["types"].split(",") if name.strip()],
            metadata=_pairs(options["metadata"]),
        )
    )


def _signer(settings: Settings) -> UrlSigner:
    for name in ("signing_key_file", "public_url"):
        if getattr(settings, name) is None:
            raise InvalidSettings(f"{flag_name(name)} is missing")
    assert settings.signing_key_file is not None
    assert settings.public_url is not None
    return UrlSigner(settings.signing_key_file, settings.public_url + settings.base_path)


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"metadata is KEY=VALUE, not {text[:40]!r}")
        if key in pairs:
            raise ValueError(f"the metadata key {key[:40]!r} is there twice")
        pairs[key] = value
    return pairs
