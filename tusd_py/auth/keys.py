"""Keys that verify JSON Web Tokens, each bound to the algorithms of its type. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from joserfc import jwk
from joserfc.errors import JoseError
from joserfc.util import base64_to_int

KEY_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
PUBLIC_KEY_BLOCKS = (b"PUBLIC KEY", b"RSA PUBLIC KEY")
MIN_RSA_BITS = 2048
MIN_SECRET_SIZE = 14  # bytes: 112 bits, which whoever has a token cannot try out
GOOD_SECRET_SIZE = 32  # bytes, as HS256 demands (RFC 7518, section 3.2)
KEYS_OF_OTHER_TYPES = (b"-----BEGIN ", b"---- BEGIN ", b"ssh-rsa ", b"ssh-dss ", b"ssh-ed25519 ", b"ecdsa-sha2-")
MAX_KEYS = 100  # of a key set; the others are ignored

RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
EC_ALGORITHMS = {
    "secp256r1": frozenset({"ES256"}),
    "secp384r1": frozenset({"ES384"}),
    "secp521r1": frozenset({"ES512"}),
}
ED25519_ALGORITHMS = frozenset({"EdDSA", "Ed25519"})
ED448_ALGORITHMS = frozenset({"EdDSA", "Ed448"})
ASYMMETRIC_ALGORITHMS = RSA_ALGORITHMS.union(*EC_ALGORITHMS.values(), ED25519_ALGORITHMS, ED448_ALGORITHMS)
HMAC_ALGORITHMS = frozenset({"HS256", "HS384", "HS512"})

Key: TypeAlias = jwk.OctKey | jwk.RSAKey | jwk.ECKey | jwk.OKPKey
# The errors of the packages for a key that is malformed, or whose curve or algorithm they do not know.
UNUSABLE = (JoseError, ValueError, TypeError, KeyError, OverflowError, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key with the algorithms that it may verify; `kid` is its name in a key set."""

    key: Key = field(repr=False)
    algorithms: frozenset[str]
    kid: str | None = None


KeySet: TypeAlias = tuple[VerificationKey, ...]


def parse_secret(content: bytes) -> KeySet:
    """Return the key of an HMAC secret; a newline at its end is not part of it.

    Raises:
        ValueError: the secret is empty or short, or is a key of another type.
    """
    secret = secret_of(content)
    if not secret.strip():
        raise ValueError("the file is empty")
    if any(beginning in secret for beginning in KEYS_OF_OTHER_TYPES):
        raise ValueError("this is no secret but a key: a public one belongs in jwt_key_file")
    if len(secret) < MIN_SECRET_SIZE:
        raise ValueError(
            f"a secret needs {MIN_SECRET_SIZE} bytes, better {GOOD_SECRET_SIZE} random ones, not {len(secret)}:"
            " whoever has a token can find a short one"
        )
    return (VerificationKey(jwk.OctKey.import_key(secret), HMAC_ALGORITHMS),)


def secret_of(content: bytes) -> bytes:
    """Return the secret that a file holds."""
    return content.removesuffix(b"\n").removesuffix(b"\r")


def parse_key_file(content: bytes) -> KeySet:
    """Return the keys of a file with public keys in PEM, or with a JWK or a set of them.

    Raises:
        ValueError: there is no usable key in it, or a private one.
    """
    if content.lstrip()[:1] == b"{":
        return parse_key_set(content)
    keys = []
    for match in KEY_BLOCK.finditer(content):
        if match[1] not in PUBLIC_KEY_BLOCKS:
            raise ValueError(f"a public key is needed, not a {match[1].decode().lower()}")
        keys.append(_from_pem(match[0] + b"\n"))
    if not keys:
        raise ValueError("there is no public key in it, neither PEM nor a JSON Web Key Set")
    return tuple(keys)


def parse_key_set(content: bytes) -> KeySet:
    """Return the usable keys of a JSON Web Key Set, or of a single JSON Web Key.

    Keys for other purposes and of unknown types are passed over, and so are symmetric ones, which are no public keys.

    Raises:
        ValueError: this is no key set, or no key in it is usable.
    """
    document = parse_json_object(content)
    entries = document.get("keys", [document] if "kty" in document else None)
    if not isinstance(entries, list):
        raise ValueError("this is no JSON Web Key Set")
    keys = [key for key in map(_from_jwk, entries[:MAX_KEYS]) if key is not None]
    if not keys:
        raise ValueError("the key set has no key that can verify tokens")
    return tuple(keys)


def parse_json_object(content: bytes) -> Mapping[str, Any]:
    """Return the object of a JSON text; raises `ValueError` for anything else."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ValueError("this is no JSON object")
    return document


def _from_pem(block: bytes) -> VerificationKey:
    try:
        public = load_pem_public_key(block)
        algorithms = _algorithms_of(public)
        if algorithms:
            return VerificationKey(_wrapped(public), algorithms)
    except UNUSABLE:
        pass
    raise ValueError(
        f"a public key is malformed, or neither RSA of {MIN_RSA_BITS} bits or more, nor P-256, P-384, P-521, Ed25519"
    )


def _wrapped(public: Any) -> Key:
    if isinstance(public, RSAPublicKey):
        return jwk.RSAKey.import_key(public)
    if isinstance(public, EllipticCurvePublicKey):
        return jwk.ECKey.import_key(public)
    return jwk.OKPKey.import_key(public)


def _from_jwk(entry: object) -> VerificationKey | None:
    """Return the key of an entry of a key set; None if it cannot verify tokens."""
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP") or not _is_for_signatures(entry):
        return None
    public = {name: value for name, value in entry.items() if name in ("kty", "n", "e", "crv", "x", "y")}
    kid, algorithm = entry.get("kid"), entry.get("alg")
    try:
        if public["kty"] == "RSA" and base64_to_int(public["n"]).bit_length() < MIN_RSA_BITS:
            return None
        key: Any = jwk.import_key(public)
        algorithms = _algorithms_of(key.public_key)
    except UNUSABLE:
        return None
    if algorithm is not None:
        algorithms &= {algorithm} if isinstance(algorithm, str) else frozenset[str]()
    if not algorithms or (kid is not None and not isinstance(kid, str)):
        return None
    return VerificationKey(key, algorithms, kid)


def _is_for_signatures(entry: Mapping[str, Any]) -> bool:
    operations = entry.get("key_ops")
    return entry.get("use", "sig") == "sig" and (
        operations is None or (isinstance(operations, list) and "verify" in operations)
    )


def _algorithms_of(public: object) -> frozenset[str]:
    """Return the algorithms that a public key may verify; empty for another kind or curve, and for a weak key."""
    if isinstance(public, RSAPublicKey):
        return RSA_ALGORITHMS if public.key_size >= MIN_RSA_BITS else frozenset()
    if isinstance(public, EllipticCurvePublicKey):
        return EC_ALGORITHMS.get(public.curve.name, frozenset())
    if isinstance(public, Ed25519PublicKey):
        return ED25519_ALGORITHMS
    return ED448_ALGORITHMS if isinstance(public, Ed448PublicKey) else frozenset()
