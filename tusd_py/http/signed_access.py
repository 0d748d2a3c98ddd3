"""Access by what a URL itself brings: a capability of an upload, a grant of one creation, a signed download."""

from __future__ import annotations

import math
import time

from tusd_py.auth.secret_files import SecretFile
from tusd_py.auth.signatures import (
    Capability,
    CreationGrant,
    read_capability,
    read_creation,
    sign_capability,
    verify_download,
)
from tusd_py.auth.signing_keys import SigningKeys
from tusd_py.contracts.auth import Action, Principal, is_owner
from tusd_py.core.errors import BrokenRecord, UploadNotFound
from tusd_py.core.redaction import SIGNATURES, without_signatures, without_signatures_within
from tusd_py.core.upload import Upload
from tusd_py.http.access import FindsUploads, Forbidden, Unauthorized
from tusd_py.http.request import Request
from tusd_py.uploads.admission import admission_to, remains_of

BY_CAPABILITY = frozenset({Action.INSPECT, Action.APPEND, Action.TERMINATE})
# Header fields with URLs, in which there may be a signature: of clients, and of proxies that tell what they were asked.
URL_FIELDS = (
    "referer",
    "upload-concat",
    "x-envoy-original-path",
    "x-forwarded-uri",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
)


class SignedAccess:
    """The decision about requests whose URLs have a signature (`tusd_py.http.access.AdmitsBySignature`)."""

    def __init__(self, keys: SecretFile[SigningKeys], uploads: FindsUploads) -> None:
        self._keys = keys
        self._uploads = uploads

    def take(self, request: Request) -> None:
        """Take the signatures out of the URL of a request, see `AdmitsBySignature`."""
        take_signatures(request)

    async def admit(self, request: Request, action: Action) -> str | None:
        """Admit a request by its signatures, see `AdmitsBySignature`."""
        await self._keys.refresh()
        try:
            right = self._right_of(request, action)
        except ValueError as error:
            return str(error)
        if isinstance(right, Capability):
            await self._admit_to(request, action, right)
        elif isinstance(right, CreationGrant):
            await self._admit_creation(request, right)
        return None

    def _right_of(self, request: Request, action: Action) -> Capability | CreationGrant | None:
        """Return what the signature of a request gives, None for a download; raises `ValueError` if it gives nothing.

        The text of the error is for the log.
        """
        keys, now, signatures = self._keys.value, time.time(), request.signatures
        if action in BY_CAPABILITY and request.upload_id and "k" in signatures:
            return read_capability(keys, request.upload_id, signatures["k"], now)
        if action is Action.CREATE and not request.upload_id and "t" in signatures:
            return read_creation(keys, signatures["t"], now)
        if action is not Action.DOWNLOAD or "d" not in signatures:
            raise ValueError("the signature is not for this request")
        verify_download(keys, request.upload_id, signatures["d"], now)
        return None

    async def _admit_to(self, request: Request, action: Action, capability: Capability) -> None:
        """Admit a request to the upload of its capability, on behalf of the owner of the upload."""
        try:
            upload = await self._uploads.find(request.upload_id)
        except BrokenRecord as error:
            upload = remains_of(error)
        if upload is None or microseconds(upload) != capability.created_at:  # gone, or its id is used again
            request.refusal = "no such upload"
            raise UploadNotFound
        request.principal, request.admission = _principal(upload.owner), admission_to(upload)
        request.admitted_until = capability.expires_at
        if action is Action.TERMINATE and not capability.may_terminate:
            request.refusal = f"no right to {action}"
            raise Forbidden(action, by_scopes=False)

    async def _admit_creation(self, request: Request, grant: CreationGrant) -> None:
        request.grant, request.principal = grant, _principal(grant.owner, grant.max_size)
        if await self._uploads.find(grant.upload_id) is not None:
            request.refusal = "the URL has been used"
            raise UrlUsed


class UrlUsed(Unauthorized):
    """A request for a creation by a URL that has created its upload."""

    def __init__(self) -> None:
        super().__init__("the URL has been used", had_credentials=True, sentence="this URL has created its upload")


class CapabilitySigner:
    """The capabilities in `Location`, which outlive the token of a creation."""

    def __init__(self, keys: SecretFile[SigningKeys], ttl: float) -> None:
        """Take the seconds that a capability is good for."""
        self._keys = keys
        self._ttl = ttl

    async def query(self, upload: Upload, request: Request) -> str:
        """Return the query, with `?`, of the URL of an upload for the sender of the request that has created it.

        The capability is good for DELETE if the sender may terminate the upload.
        """
        await self._keys.refresh()
        may_terminate = request.may_terminate is None or await request.may_terminate(upload)
        capability = Capability(math.ceil(time.time() + self._ttl), microseconds(upload), may_terminate)
        return f"?k={sign_capability(self._keys.value, upload.id, capability)}"


def take_signatures(request: Request) -> None:
    """Take the signatures out of the URL of a request, and out of the URLs in its header fields.

    Nothing behind this point can write them to a log, an event or a hook. A parameter that is there twice counts for
    nothing.
    """
    _take_out_of_fields(request)
    raw: bytes = request.scope.get("query_string") or b""
    if not raw:
        return
    query = raw.decode("latin-1")
    kept = without_signatures(query)
    if kept == query:
        return
    request.scope = {**request.scope, "query_string": kept.encode("latin-1")}
    if request.scope.get("raw_path"):
        request.scope["raw_path"] = request.scope["raw_path"].partition(b"?")[0]
    pairs = [pair.partition("=") for pair in query.split("&")]
    names = [name for name, _, _ in pairs]
    values = {name: value for name, _, value in pairs if name in SIGNATURES}
    request.signatures = {name: value if names.count(name) == 1 else "" for name, value in values.items()}


def _take_out_of_fields(request: Request) -> None:
    """Take the signatures out of the header fields of a request, also where an application sees them: in the scope."""
    for name in URL_FIELDS:
        text = request.headers.get(name)
        if text is not None and (without := without_signatures_within(text)) != text:
            request.headers = {**request.headers, name: without}
            others = [field for field in request.scope["headers"] if field[0] != name.encode()]
            request.scope = {**request.scope, "headers": [*others, (name.encode(), without.encode("latin-1"))]}


def microseconds(upload: Upload) -> int:
    """Return the time of the creation of an upload in microseconds since the epoch."""
    return int(upload.created_at * 1e6)


def _principal(owner: str, max_size: int | None = None) -> Principal | None:
    return Principal(owner, max_size=max_size) if is_owner(owner) else None
