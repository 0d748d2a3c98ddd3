"""The authenticator that the settings choose."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tusd_py.auth.api_tokens import ApiTokens, parse_api_tokens, parse_changed_api_tokens
from tusd_py.auth.config import JwtConfig
from tusd_py.auth.secret_files import SecretFile
from tusd_py.auth.signing_keys import SigningKeys, parse_signing_keys
from tusd_py.auth.token_authenticator import CookieRule, TokenAuthenticator, VerifiesTokens

logger = logging.getLogger("tusd_py.auth")


def make_authenticator(
    jwt: JwtConfig, api_tokens_file: Path | None, cookie: str, is_allowed_origin: Callable[[str], bool]
) -> TokenAuthenticator | None:
    """Make the authenticator that the settings choose; None without one. Blocks: reads the files.

    Args:
        jwt: the settings of JSON Web Tokens.
        api_tokens_file: the file with API tokens.
        cookie: the name of the cookie that may hold a token; empty for none.
        is_allowed_origin: whether a page of an origin may send that cookie.

    Raises:
        ValueError: a file cannot be used, or a package is missing; the text is one sentence.
    """
    if not jwt.is_used and api_tokens_file is None:
        return None
    api_tokens: SecretFile[ApiTokens] | None = None
    if api_tokens_file is not None:
        api_tokens = SecretFile(api_tokens_file, parse_api_tokens, parse_changed_api_tokens)
    rule = CookieRule(cookie, is_allowed_origin) if cookie else None
    return TokenAuthenticator(api_tokens, _make_verifier(jwt) if jwt.is_used else None, rule)


def make_signing_keys(path: Path | None) -> SecretFile[SigningKeys] | None:
    """Read the keys of capabilities and signed URLs; None without a file. Blocks. Raises `ValueError`."""
    return None if path is None else SecretFile(path, parse_signing_keys)


def _make_verifier(jwt: JwtConfig) -> VerifiesTokens:
    try:
        from tusd_py.auth.key_endpoint import KeyEndpoint
        from tusd_py.auth.keys import GOOD_SECRET_SIZE, KeySet, parse_key_file, parse_secret, secret_of
        from tusd_py.auth.signed_token_verifier import KeyFile, KeySource, SignedTokenVerifier
    except ModuleNotFoundError as error:
        raise ValueError("JSON Web Tokens need the package joserfc: pip install 'tusd-py[jwt]'") from error
    from tusd_py.auth.claims import ClaimRules

    def read_secret(content: bytes) -> KeySet:
        keys = parse_secret(content)
        if len(secret_of(content)) < GOOD_SECRET_SIZE:
            logger.warning(
                "%s: the secret has less than %d bytes; whoever has a token can try to find it",
                jwt.secret_file,
                GOOD_SECRET_SIZE,
            )
        return keys

    source: KeySource
    if jwt.jwks_url is not None:
        source = KeyEndpoint(jwt.jwks_url)
    elif jwt.key_file is not None:
        source = KeyFile(SecretFile(jwt.key_file, parse_key_file))
    else:
        assert jwt.secret_file is not None
        source = KeyFile(SecretFile(jwt.secret_file, read_secret))
    rules = ClaimRules(jwt.issuer, jwt.audience, jwt.leeway, jwt.owner_claim, jwt.scope_claim)
    return SignedTokenVerifier(source, rules)
