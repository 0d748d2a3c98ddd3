"""The settings of JSON Web Tokens."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tusd_py.core.option_types import Seconds
from tusd_py.http_client.client import parse_http_url

VISIBLE = re.compile(r"[\x21\x22\x24-\x7e]+")  # a fragment is for browsers only


def check_jwks_url(url: str) -> str:
    """Return the URL of an endpoint; raises `ValueError` for one that anybody in between could answer."""
    if not VISIBLE.fullmatch(url):
        raise ValueError("a URL such as https://issuer.example.org/keys")
    parsed = parse_http_url(url)
    if not parsed.secure and not _is_loopback(parsed.host):
        raise ValueError("a URL with https://, or with http:// and an address of this host, such as 127.0.0.1")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_claim(name: str) -> str:
    """Return the name of a claim; raises `ValueError` for an empty one."""
    if not name:
        raise ValueError("the name of a claim such as sub")
    return name


class JwtConfig(BaseModel):
    """The configuration of JSON Web Tokens. Every field is a setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    secret_file: Path | None = Field(default=None, description="file with the secret that signs tokens (HMAC)")
    key_file: Path | None = Field(
        default=None, description="file with the public keys of the issuer of tokens: PEM, or a JSON Web Key Set"
    )
    jwks_url: Annotated[str, AfterValidator(check_jwks_url)] | None = Field(
        default=None, description="URL of the JSON Web Key Set of the issuer of tokens"
    )
    issuer: str | None = Field(default=None, description="issuer that tokens must have (iss)")
    audience: str | None = Field(default=None, description="audience that tokens must have (aud)")
    leeway: Seconds = Field(default=30, le=3600, description="time by which clocks of issuer and server may differ")
    owner_claim: Annotated[str, AfterValidator(check_claim)] = Field(
        default="sub", description="claim of a token that names the owner of its uploads"
    )
    scope_claim: Annotated[str, AfterValidator(check_claim)] = Field(
        default="scope", description="claim of a token with its scopes, as text or list"
    )

    @property
    def is_used(self) -> bool:
        """Whether the server accepts JSON Web Tokens."""
        return any((self.secret_file, self.key_file, self.jwks_url))
