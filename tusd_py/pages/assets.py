"""The files of the pages, each named by its content and compressed once."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable

# Files that are asked for by names without a digest.
PAGES = ("upload.html", "record.html", "admin.html", "record-worker.js")
FOLDER = "assets"  # in front of the names of files in pages
HASH_DIGITS = 12
# The name of a file in quotes: `./NAME` in a module, `assets/NAME` in a page.
REFERENCE = re.compile(rf"""(?<=["'])(\./|{FOLDER}/)([\w.-]+\.(?:js|css|svg))(?=["'])""")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent: its bytes plain and, by the name of the coding, compressed."""

    media_type: str
    digest: str  # the first digits of SHA-256, in hexadecimal
    plain: bytes
    compressed: Mapping[str, bytes]  # `br` before `gzip`

    def body(self, accepted: str) -> tuple[str, bytes]:
        """Return the coding and the bytes for a request with this Accept-Encoding; an empty coding is none."""
        wanted = accepted_codings(accepted)
        for coding, data in self.compressed.items():
            if coding in wanted:
                return coding, data
        return "", self.plain


@dataclass(frozen=True, slots=True)
class Assets:
    """The pages by their names in the package, and the files by their names with the digest."""

    pages: Mapping[str, Asset]
    files: Mapping[str, Asset]


def accepted_codings(header: str) -> set[str]:
    """Return the codings that an Accept-Encoding field names and does not refuse by `q=0`."""
    wanted = set()
    for item in header.lower().split(","):
        coding, _, parameters = item.partition(";")
        if not re.fullmatch(r"\s*q\s*=\s*0(?:\.0*)?\s*", parameters):
            wanted.add(coding.strip())
    return wanted


def load_assets() -> Assets:
    """Read, name and compress every file of the pages. Blocks for some milliseconds.

    Raises:
        ValueError: a file names another one that does not exist, or that names it in turn.
    """
    package = files("tusd_py.pages")
    preparation = _Preparation(package)
    pages = {name: preparation.own(name) for name in PAGES}
    for file in package.joinpath("static").iterdir():
        if file.name not in pages:
            preparation.named(file.name)
    return Assets(pages, {preparation.names[name]: asset for name, asset in preparation.assets.items()})


@dataclass(slots=True)
class _Preparation:
    """The files that have their names already."""

    package: Traversable
    assets: dict[str, Asset] = field(default_factory=dict)  # by the name in the package
    names: dict[str, str] = field(default_factory=dict)  # with the digest, by the name in the package
    unfinished: list[str] = field(default_factory=list)  # files that name each other, from the first to the last

    def named(self, name: str) -> str:
        """Return the name of a file with the digest of its content, after that of all files that it names."""
        if name not in self.assets:
            vendored = self.package.joinpath("vendor", name)
            asset = self._vendored(name) if vendored.is_file() else self.own(name)
            stem, dot, suffix = name.rpartition(".")
            self.assets[name], self.names[name] = asset, f"{stem}.{asset.digest}{dot}{suffix}"
        return self.names[name]

    def own(self, name: str) -> Asset:
        """Return a file of ours, in which every name of another one has its digest."""
        if name in self.unfinished:
            raise ValueError(f"the files {', '.join(self.unfinished)} name each other")
        file = self.package.joinpath("static", name)
        if not file.is_file():
            raise ValueError(
                f"{self.unfinished[-1] if self.unfinished else 'a page'} names {name}, which does not exist"
            )
        self.unfinished.append(name)
        text = REFERENCE.sub(lambda match: match[1] + self.named(match[2]), file.read_text("utf-8"))
        self.unfinished.pop()
        data = text.encode()
        return _asset(name, data, {"gzip": gzip.compress(data, 9, mtime=0)})

    def _vendored(self, name: str) -> Asset:
        """Return a file of another project, which is kept compressed beside it."""
        folder = self.package.joinpath("vendor")
        return _asset(
            name,
            folder.joinpath(name).read_bytes(),
            {"br": folder.joinpath(f"{name}.br").read_bytes(), "gzip": folder.joinpath(f"{name}.gz").read_bytes()},
        )


def _asset(name: str, data: bytes, compressed: Mapping[str, bytes]) -> Asset:
    digest = hashlib.sha256(data).hexdigest()[:HASH_DIGITS]
    media_type = MEDIA_TYPES[name[name.rindex(".") :]]
    return Asset(
        media_type, digest, data, {coding: body for coding, body in compressed.items() if len(body) < len(data)}
    )


def vendored_files() -> Mapping[str, str]:
    """Return the SHA-256 that the manifest of the files of other projects states, by name."""
    manifest = json.loads(files("tusd_py.pages").joinpath("vendor", "VENDOR.json").read_text("utf-8"))
    return {name: digest for package in manifest["packages"] for name, digest in package["files"].items()}
