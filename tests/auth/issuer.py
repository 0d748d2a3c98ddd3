"""An issuer of JSON Web Tokens: its keys, its tokens, and an endpoint with its key set that can be made to fail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwk, jws

from tests.support.http_endpoint import EndpointHandler, HTTPEndpoint

ALGORITHMS = ("RS256", "PS256", "ES256", "ES384", "ES512", "Ed25519", "EdDSA")
CURVES: Mapping[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


class SigningKey:
    """A private key of an issuer; `pem` is its public part."""

    def __init__(self, algorithm: str = "ES256", kid: str | None = None) -> None:
        self.algorithm = algorithm
        self.kid = kid
        private: Any
        if algorithm.startswith("ES"):
            private = ec.generate_private_key(CURVES[algorithm])
            kind: Any = jwk.ECKey
        elif algorithm.startswith("Ed"):
            private, kind = ed25519.Ed25519PrivateKey.generate(), jwk.OKPKey
        else:
            private, kind = rsa.generate_private_key(65537, 2048), jwk.RSAKey
        self.pem = public_pem(private)
        self.private = kind.import_key(private)

    def sign(self, claims: Mapping[str, Any], **header: Any) -> str:
        kid = {} if self.kid is None else {"kid": self.kid}
        return signed(self.private, {"alg": self.algorithm, "typ": "JWT", **kid, **header}, claims)

    def entry(self, **changes: Any) -> dict[str, Any]:
        """Return the public key as an entry of a key set."""
        kid = {} if self.kid is None else {"kid": self.kid}
        return {**self.private.as_dict(private=False), "use": "sig", **kid, **changes}


def public_pem(private: Any) -> bytes:
    public: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


def signed(key: Any, header: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
    algorithm = str(header["alg"])
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    payload = json.dumps(claims).encode()
    return str(jws.serialize_compact(dict(header), payload, key, algorithms=[algorithm], registry=registry))


def with_secret(secret: bytes, claims: Mapping[str, Any], algorithm: str = "HS256", **header: Any) -> str:
    return signed(jwk.OctKey.import_key(secret), {"alg": algorithm, **header}, claims)


def handmade(header: Mapping[str, Any], claims: Mapping[str, Any], signature: bytes = b"") -> str:
    """Return a token whose signature is any bytes."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def signed_by_hand(secret: bytes, header: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
    """Return a token with any header, signed with HMAC and SHA-256."""
    signing_input = handmade(header, claims).rpartition(".")[0]
    digest = hmac.digest(secret, signing_input.encode(), hashlib.sha256)
    return f"{signing_input}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def claims_of(owner: object = "ann", seconds: float = 3600, **others: Any) -> dict[str, Any]:
    return {"sub": owner, "exp": int(time.time() + seconds), **others}


def key_set(*keys: SigningKey) -> bytes:
    return json.dumps({"keys": [key.entry() for key in keys]}).encode()


class KeyServer(HTTPEndpoint):
    """A JWKS endpoint in threads of this process; use as a context manager."""

    def __init__(self, *keys: SigningKey) -> None:
        super().__init__()
        self.body = key_set(*keys)
        self.status = 200
        self.headers: dict[str, str] = {"Content-Type": "application/json"}
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/keys"


class _Handler(EndpointHandler):
    endpoint: KeyServer

    def do_GET(self) -> None:
        keys = self.endpoint
        body = keys.body  # as it was when the request came
        keys.requests += 1
        keys.hold.wait(120)
        self.send_response(keys.status)
        for name, value in keys.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


KeyServer.handler = _Handler
