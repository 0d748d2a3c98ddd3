"""The decision who may do what, made for every request before a byte of its body is read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, TypeAlias

from tusd_py.contracts.auth import (
    Action,
    Authenticator,
    Decision,
    ExpiredCredentials,
    InvalidCredentials,
    NamesSecretHeaders,
    Principal,
    SupportsAuthorization,
    decide_by_owner,
)
from tusd_py.core.errors import AuthenticationUnavailable, BrokenRecord, CodedError, UploadNotFound
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.http.errors import RETRY_AFTER, TRY_LATER, HTTPError
from tusd_py.http.failure_log import FailureLog, WrongAnswer
from tusd_py.http.request import Request
from tusd_py.uploads.admission import Admission, admission_to, remains_of

TIMEOUT = 10.0  # seconds for the decision
HEAD_TIMEOUT = 1.0  # seconds for that of HEAD, which the server answers within two seconds
PUBLIC_TIMEOUT = 0.5  # seconds to find out the sender of a request that anybody may send
ACTIONS = {
    "POST": Action.CREATE,
    "HEAD": Action.INSPECT,
    "PATCH": Action.APPEND,
    "GET": Action.DOWNLOAD,
    "DELETE": Action.TERMINATE,
}


class Unauthorized(HTTPError):
    """A request without credentials, or with credentials that are not accepted."""

    def __init__(self, reason: str, *, had_credentials: bool, sentence: str = "") -> None:
        """Take the reason for the log; the client learns only whether its credentials were refused.

        `sentence` takes the place of that for the client.
        """
        sentence = sentence or ("the token is not accepted" if had_credentials else "a token is needed")
        challenge = 'Bearer error="invalid_token"' if had_credentials else "Bearer"
        super().__init__(401, "ERR_UNAUTHORIZED", sentence, {"WWW-Authenticate": challenge})
        self.reason = reason


class ExpiredOnHead(Unauthorized):
    """A HEAD with credentials that are good but have expired.

    Clients begin a new upload at its first byte when HEAD answers 401. After 423 they send it again, and may have
    renewed their credentials by then.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason, had_credentials=True)
        self.status = TRY_LATER.status
        self.headers = {**self.headers, "Retry-After": RETRY_AFTER}


class Forbidden(HTTPError):
    """A request that its sender has no right for, by the scopes or by the rules of the application."""

    def __init__(self, action: Action, *, by_scopes: bool) -> None:
        headers = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'} if by_scopes else {}
        super().__init__(403, "ERR_FORBIDDEN", f"you have no right to {action} uploads", headers)


KnownSender: TypeAlias = Callable[[Mapping[str, str]], Principal | None]


class FindsUploads(Protocol):
    """The records, as the decision needs them."""

    async def find(self, upload_id: str) -> Upload | None:
        """Return the record of an upload, also of one that has ended; None if there is none."""

    def find_at_once(self, upload_id: str) -> Upload | None:
        """Return the record of an upload that has not ended, if that takes no waiting; otherwise None."""

    async def miss(self) -> None:
        """Take the time that `find` takes for an unknown upload, beyond that of reading a record."""

    async def find_finished(self, upload_id: str) -> Upload | None:
        """Return the record of a finished upload; None for a partial one, any other, and if it cannot be read now."""


class AdmitsBySignature(Protocol):
    """The decision about requests whose URLs have a signature."""

    def take(self, request: Request) -> None:
        """Take the signatures out of the URL of a request, so that nothing else sees them: `Request.signatures`."""

    async def admit(self, request: Request, action: Action) -> str | None:
        """Admit a request by its signatures.

        Returns:
            None if the request is admitted; otherwise why its signatures count for nothing.

        Raises:
            Unauthorized: the URL has been used.
            Forbidden: the signature does not give this right.
            UploadNotFound: the upload of the signature is gone.
        """


async def authenticate(authenticator: Authenticator, context: RequestContext, failures: FailureLog) -> Principal:
    """Return the principal that an authenticator names; nobody is let in without its answer.

    Raises:
        InvalidCredentials: the credentials are wrong.
        Unauthorized: there are none.
        AuthenticationUnavailable: the authenticator failed, or answered with something else, which is logged.
    """
    try:
        principal: object = await authenticator.authenticate(context)
    except (InvalidCredentials, CodedError):
        raise
    except Exception as error:  # of an authenticator of the application: nobody is let in without its answer
        failures.tell(error)
        raise AuthenticationUnavailable from None
    if principal is None:
        raise Unauthorized("no token", had_credentials=False)
    if not isinstance(principal, Principal):
        failures.tell(WrongAnswer(f"authenticate returned {type(principal).__name__}, not Principal"))
        raise AuthenticationUnavailable
    return principal


class AccessControl:
    """The authentication and authorization of requests."""

    def __init__(
        self,
        authenticator: Authenticator,
        uploads: FindsUploads,
        *,
        public_downloads: bool = False,
        known: KnownSender | None = None,
        by_signature: AdmitsBySignature | None = None,
    ) -> None:
        """Take what the decision needs to know.

        Args:
            authenticator: finds the sender of a request.
            uploads: the records.
            public_downloads: whether anybody may download finished uploads.
            known: returns the sender of a request, by its header fields, if that is known without waiting.
            by_signature: decides about URLs with signatures; None if there are no keys for them.
        """
        self._authenticator = authenticator
        self._secret_headers = frozenset[str]()
        if isinstance(authenticator, NamesSecretHeaders):
            self._secret_headers = frozenset(name.lower() for name in authenticator.secret_headers)
        self._rules = authenticator if isinstance(authenticator, SupportsAuthorization) else None
        self._uploads = uploads
        self._public_downloads = public_downloads
        self._known = known
        self._failures = FailureLog()
        self._by_signature = by_signature

    async def admit(self, request: Request) -> None:
        """Return if a request may be carried out; set its sender.

        An upload that does not exist and one of another principal are found out, and answered, in the same way.

        Raises:
            Unauthorized: there are no credentials, or they are not accepted.
            Forbidden: the sender lacks the right.
            UploadNotFound: there is no such upload for the sender.
            AuthenticationUnavailable: the sender cannot be found out now.
            HTTPError: there are two fields with credentials.
        """
        if request.method == "OPTIONS":
            return
        if self._by_signature is not None:
            self._by_signature.take(request)
        request.secret_headers = self._secret_headers
        action = request.purpose or (Action.DOWNLOAD if request.is_plain_head else ACTIONS[request.method])
        if action is Action.CREATE and self._by_signature is not None:
            request.may_terminate = partial(self._may_terminate, request)
        if not request.signatures and self._admit_known(request, action):
            return
        try:
            async with asyncio.timeout_at(_deadline(request)):
                await self._admit(request, action)
        except TimeoutError:
            request.refusal = "no decision in time"
            raise AuthenticationUnavailable from None

    def _admit_known(self, request: Request, action: Action) -> bool:
        """Admit a request if all of the decision is known without waiting; return whether it was admitted.

        Nothing is refused here, but the sender is set if its token is known. Requests whose URLs have a query take the
        long way.
        """
        if self._known is None or self._rules is not None or request.scope.get("query_string"):
            return False
        principal = self._known(request.headers)
        if principal is None:
            return False
        request.principal = principal
        if request.purpose is not None and not request.upload_id:
            self._admit_to_several(request, request.purpose)
            return True
        if request.upload_id:
            return self._leaves_to_append(request, action) or self._admit_to_known_upload(request, action)
        if decide_by_owner(request.context(), action, None) is not Decision.ALLOW:
            return False
        self._admit_to_creation(request)
        return True

    def _admit_to_known_upload(self, request: Request, action: Action) -> bool:
        try:
            upload = self._uploads.find_at_once(request.upload_id)
        except BrokenRecord:
            return False
        if upload is None or decide_by_owner(request.context(), action, upload) is not Decision.ALLOW:
            return False
        request.admission = admission_to(upload)
        return True

    def _leaves_to_append(self, request: Request, action: Action) -> bool:
        """Leave the question of the owner to the append under the lock, if the whole body is in memory.

        The append then has nothing to wait for, and compares the owner before it asks a holder of the lock for it, and
        before the first byte is stored. Any error of it is told to whom `request.decide` lets in.
        """
        if action is not Action.APPEND or self._rules is not None or request.body.arrived is None:
            return False
        principal, context = request.principal, request.context()
        if principal is None or principal.is_admin or decide_by_owner(context, action, None) is not Decision.ALLOW:
            return False
        request.admission = Admission(principal.owner)
        request.decide = partial(self._admit_to_upload, request, action)
        return True

    async def _admit(self, request: Request, action: Action) -> None:
        refused: str | None = ""
        if self._by_signature is not None and request.signatures:
            refused = await self._by_signature.admit(request, action)
            if refused is None:
                return
        if action is Action.DOWNLOAD and self._public_downloads and await self._admit_anybody(request):
            return
        if request.principal is None:
            try:
                request.principal = await self._authenticate(request)
            except Unauthorized as error:
                request.refusal = f"{refused}; {error.reason}" if refused else error.reason
                raise
        if request.upload_id:
            if not self._leaves_to_append(request, action):
                await self._admit_to_upload(request, action)
            return
        if request.purpose is not None:
            self._admit_to_several(request, request.purpose)
            return
        await self._decide(request, action, None)
        self._admit_to_creation(request)

    def _admit_to_several(self, request: Request, action: Action) -> None:
        """Leave it to a stream of several uploads to ask about each of them; no answer is no right."""
        context = request.context()

        async def may_follow(upload: Upload) -> bool:
            try:
                async with asyncio.timeout(TIMEOUT):
                    return await self._answer(context, action, upload) is Decision.ALLOW
            except (CodedError, TimeoutError):
                return False

        request.may_follow = may_follow

    async def _admit_anybody(self, request: Request) -> bool:
        """Admit a request to a finished upload whoever sends it, and find out its sender for the log alone."""
        upload = await self._uploads.find_finished(request.upload_id)
        if upload is None:
            return False
        request.admission = admission_to(upload)
        has_credentials = "authorization" in request.headers or "cookie" in request.headers
        if request.principal is None and has_credentials:
            with contextlib.suppress(CodedError, TimeoutError):
                async with asyncio.timeout(PUBLIC_TIMEOUT):
                    request.principal = await self._authenticate(request)
            request.refusal = ""
        return True

    async def _admit_to_upload(self, request: Request, action: Action) -> None:
        """Admit a request whose sender is known to its upload; a broken record is judged by what can be read of it."""
        broken: BrokenRecord | None = None
        try:
            upload = await self._uploads.find(request.upload_id)
        except BrokenRecord as error:
            broken, upload = error, remains_of(error)
        if upload is None:
            request.refusal = "no such upload"
            raise UploadNotFound
        try:
            await self._decide(request, action, upload)
        except UploadNotFound:
            if broken is not None and not upload.owner and request.is_head:
                raise broken from None  # the client of an owner who cannot be read would begin again
            raise
        request.admission = admission_to(upload)

    async def _authenticate(self, request: Request) -> Principal:
        if sum(name == b"authorization" for name, _ in request.scope["headers"]) > 1:
            request.refusal = "two fields Authorization"
            raise HTTPError(400, "ERR_INVALID_AUTHORIZATION", "Authorization may be there once")
        try:
            return await authenticate(self._authenticator, request.context(), self._failures)
        except InvalidCredentials as error:
            is_of_tus = request.method == "HEAD" and not request.is_plain_head and request.purpose is None
            if isinstance(error, ExpiredCredentials) and is_of_tus:
                raise ExpiredOnHead(str(error)) from None
            raise Unauthorized(str(error), had_credentials=True) from None

    async def _decide(self, request: Request, action: Action, upload: Upload | None) -> None:
        decision = await self._answer(request.context(), action, upload)
        if decision is Decision.ALLOW:
            return
        if decision is Decision.HIDE and upload is not None:
            await self._uploads.miss()  # the answer takes as long as one about an unknown upload
            request.refusal = "another owner"
            raise UploadNotFound
        request.refusal = f"no right to {action}"
        raise Forbidden(action, by_scopes=self._rules is None)

    async def _may_terminate(self, request: Request, upload: Upload) -> bool:
        """Return whether the sender of a creation may remove its upload. No answer is no right, and no error.

        A URL that names no owner gives the right to an upload without one.
        """
        if request.principal is None:
            return not upload.owner
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._answer(request.context(), Action.TERMINATE, upload) is Decision.ALLOW
        except (CodedError, TimeoutError):
            return False

    async def _answer(self, context: RequestContext, action: Action, upload: Upload | None) -> Decision:
        if self._rules is None:
            return decide_by_owner(context, action, upload)
        try:
            decision: object = await self._rules.authorize(context, action, upload)
        except CodedError:
            raise
        except Exception as error:  # as above
            self._failures.tell(error)
            raise AuthenticationUnavailable from None
        if not isinstance(decision, Decision):
            self._failures.tell(WrongAnswer(f"authorize returned {type(decision).__name__}, not Decision"))
            raise AuthenticationUnavailable
        return decision

    def _admit_to_creation(self, request: Request) -> None:
        """Leave it to a creation to ask about the partial uploads of a final one, and about that one itself."""

        async def may_use(upload: Upload) -> bool:
            if await self._answer(request.context(), Action.CONCATENATE, upload) is Decision.ALLOW:
                return True
            await self._uploads.miss()  # as above
            request.refusal = "a partial upload of another owner"
            return False

        if "upload-concat" in request.headers:
            request.may_use = may_use


def _deadline(request: Request) -> float:
    """Return when the decision about a request has to be made, in the time of the event loop."""
    now = asyncio.get_running_loop().time()
    return min(now + HEAD_TIMEOUT, request.deadline) if request.is_head else now + TIMEOUT
