"""The identity of a bucket, kept in an object below the prefix."""

from __future__ import annotations

import asyncio
import time

from tusd_py.asyncutil.ttl_set import TTLSet
from tusd_py.backends.s3.client import Client
from tusd_py.backends.s3.config import S3Config
from tusd_py.backends.s3.errors import NotSatisfied, ObjectMissing
from tusd_py.backends.s3.object_keys import protection
from tusd_py.core.storage_identity import MAX_LENGTH, Proof, parse_identity

PROOF_TTL = 10.0  # seconds between two checks: only the server behind the endpoint could change meanwhile
RENEWAL_INTERVAL = 86400.0  # seconds; a bucket that keeps versions keeps one more for each renewal
SETTLE_TIME = 2.0  # seconds in which a process that read no identity has written its own


class IdentityObject:
    """The object with the identity of a bucket. Methods raise `StorageUnavailable`."""

    def __init__(self, config: S3Config, client: Client) -> None:
        self._config = config
        self._client = client
        self._proven_identities = TTLSet(PROOF_TTL)
        self.proof = Proof(f"--s3-bucket, --s3-endpoint and --s3-prefix ({config.bucket}/{config.identity})")
        client.confirm_missing = self.check

    async def read(self) -> str | None:
        """Return the identity; None if the bucket has none."""
        try:
            return parse_identity(await self._client.get_unconfirmed(self._config.identity, MAX_LENGTH))
        except ObjectMissing:
            return None

    async def create(self, identity: str, *, replace: bool) -> None:
        """Store an identity; without `replace`, keep that of another process which was faster."""
        conditional = self._config.capabilities.conditional_put and not replace
        try:
            await self._put(identity, {"IfNoneMatch": "*"} if conditional else {})
        except NotSatisfied:  # another process was faster
            return
        if not conditional and not replace:
            # Another process that read none has written its own by then; the last one counts.
            await asyncio.sleep(SETTLE_TIME)

    async def _put(self, identity: str, condition: dict[str, str]) -> None:
        parameters = {"Key": self._config.identity, **protection(self._config), **condition}
        await self._client.send("put_object", [f"{identity}\n".encode()], **parameters)

    async def check(self) -> None:
        """Raise `WrongStorage` unless the bucket has the expected identity now, or had it within `PROOF_TTL`."""
        expected = self.proof.expected
        if expected is None or expected in self._proven_identities:
            return
        self.proof.judge(await self.read())
        self._proven_identities.add(expected)

    async def renew(self) -> None:
        """Store the object once more after a day, for lifecycle rules that remove old objects."""
        await self.check()
        if self.proof.expected is None:
            return
        found = await self._client.call("head_object", Key=self._config.identity)
        if time.time() - found["LastModified"].timestamp() > RENEWAL_INTERVAL:
            await self._put(self.proof.expected, {})
