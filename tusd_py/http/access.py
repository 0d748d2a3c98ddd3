"""The decision who may do what, made for every request before a byte of its body is read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from tusd_py.contracts.auth import (
    Action,
    Authenticator,
    Decision,
    InvalidCredentials,
    Principal,
    SupportsAuthorization,
    decide_by_owner,
)
from tusd_py.core.errors import AuthenticationUnavailable, BrokenRecord, CodedError, UploadNotFound
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.http.errors import HTTPError
from tusd_py.http.request import Request
from tusd_py.uploads.admission import admission_to

logger = logging.getLogger("tusd_py.auth")

TIMEOUT = 10.0  # seconds for the decision
HEAD_TIMEOUT = 1.0  # seconds for that of HEAD, which the server answers within two seconds
ACTIONS = {
    "POST": Action.CREATE,
    "HEAD": Action.INSPECT,
    "PATCH": Action.APPEND,
    "GET": Action.DOWNLOAD,
    "DELETE": Action.TERMINATE,
}


class Unauthorized(HTTPError):
    """A request without credentials, or with credentials that are not accepted."""

    def __init__(self, reason: str, *, had_credentials: bool) -> None:
        """Take the reason for the log; the client learns only whether its credentials were refused."""
        sentence = "the token is not accepted" if had_credentials else "a token is needed"
        challenge = 'Bearer error="invalid_token"' if had_credentials else "Bearer"
        super().__init__(401, "ERR_UNAUTHORIZED", sentence, {"WWW-Authenticate": challenge})
        self.reason = reason


class Forbidden(HTTPError):
    """A request that its sender has no right for."""

    def __init__(self, action: Action) -> None:
        super().__init__(403, "ERR_FORBIDDEN", f"you have no right to {action} uploads")


class FindsUploads(Protocol):
    """The records, as the decision needs them."""

    async def find(self, upload_id: str) -> Upload | None:
        """Return the record of an upload, also of one that has ended; None if there is none."""

    async def miss(self) -> None:
        """Take the time that `find` takes for an unknown upload, beyond that of reading a record."""

    async def is_complete(self, upload_id: str) -> bool:
        """Return whether an upload exists and can be read."""


class AccessControl:
    """The authentication and authorization of requests."""

    def __init__(
        self,
        authenticator: Authenticator,
        uploads: FindsUploads,
        *,
        public_downloads: bool = False,
    ) -> None:
        """Take what the decision needs to know.

        Args:
            authenticator: finds the sender of a request.
            uploads: the records.
            public_downloads: whether anybody may download complete uploads.
        """
        self._authenticator = authenticator
        self._authorize = decide_by_owner_later
        if isinstance(authenticator, SupportsAuthorization):
            self._authorize = authenticator.authorize
        self._uploads = uploads
        self._public_downloads = public_downloads

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
        action = Action.DOWNLOAD if request.is_plain_head else ACTIONS[request.method]
        try:
            async with asyncio.timeout(HEAD_TIMEOUT if request.method == "HEAD" else TIMEOUT):
                await self._admit(request, action)
        except TimeoutError:
            request.refusal = "no decision in time"
            raise AuthenticationUnavailable from None

    async def _admit(self, request: Request, action: Action) -> None:
        is_public = action is Action.DOWNLOAD and self._public_downloads
        if is_public and await self._uploads.is_complete(request.upload_id):
            return
        try:
            principal = await self._authenticate(request, request.context())
        except Unauthorized as error:
            request.refusal = error.reason
            raise
        request.principal = principal
        context = request.context()  # which knows its sender now
        request.may_use = self._may_use(context)
        if not request.upload_id:
            await self._decide(request, context, action, None)
            return
        upload = await self._record_of(request)
        await self._decide(request, context, action, upload)
        request.admission = admission_to(upload)

    async def _authenticate(self, request: Request, context: RequestContext) -> Principal:
        if sum(name == b"authorization" for name, _ in request.scope["headers"]) > 1:
            request.refusal = "two fields Authorization"
            raise HTTPError(400, "ERR_INVALID_AUTHORIZATION", "Authorization may be there once")
        try:
            principal = await self._authenticator.authenticate(context)
        except InvalidCredentials as error:
            raise Unauthorized(str(error), had_credentials=True) from None
        except CodedError:
            raise
        except Exception as error:  # of an authenticator of the application: nobody is let in without its answer
            logger.exception("the authenticator of the application has failed")
            raise AuthenticationUnavailable from error
        if principal is None:
            raise Unauthorized("no token", had_credentials=False)
        return principal

    async def _record_of(self, request: Request) -> Upload:
        try:
            upload = await self._uploads.find(request.upload_id)
        except BrokenRecord as error:
            remains = error.remains
            if not isinstance(remains, Upload) or not remains.owner:
                raise  # whoever owns it must not be told that it is gone
            upload = remains
        if upload is None:
            request.refusal = "no such upload"
            raise UploadNotFound
        return upload

    async def _decide(self, request: Request, context: RequestContext, action: Action, upload: Upload | None) -> None:
        decision = await self._answer(context, action, upload)
        if decision is Decision.ALLOW:
            return
        if decision is Decision.HIDE and upload is not None:
            await self._uploads.miss()  # the answer takes as long as one about an unknown upload
            request.refusal = "another owner"
            raise UploadNotFound
        request.refusal = f"no right to {action}"
        raise Forbidden(action)

    async def _answer(self, context: RequestContext, action: Action, upload: Upload | None) -> Decision:
        try:
            return await self._authorize(context, action, upload)
        except CodedError:
            raise
        except Exception as error:  # as above
            logger.exception("the authenticator of the application has failed")
            raise AuthenticationUnavailable from error

    def _may_use(self, context: RequestContext) -> Callable[[Upload], Awaitable[bool]]:
        """Return whether the sender may make a final upload of a partial one, or be given a final one again."""

        async def may_use(upload: Upload) -> bool:
            return await self._answer(context, Action.CONCATENATE, upload) is Decision.ALLOW

        return may_use


async def decide_by_owner_later(context: RequestContext, action: Action, upload: Upload | None) -> Decision:
    """Decide as `decide_by_owner` does."""
    return decide_by_owner(context, action, upload)
