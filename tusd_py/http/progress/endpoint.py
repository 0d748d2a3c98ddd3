"""The routes of live progress: `events` below the URL of an upload, and below the creation URL for several."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import parse_qs

from tusd_py.core.errors import UploadNotFound
from tusd_py.core.upload import Upload, is_upload_id
from tusd_py.http.errors import HTTPError
from tusd_py.http.progress.sse import HEADERS, EventForm, stream_headers
from tusd_py.http.progress.stream_body import StreamBody
from tusd_py.http.progress.websocket import WebSocketForm
from tusd_py.http.rates import address_of, sender_of
from tusd_py.http.request import Request, Response
from tusd_py.progress.hub import ProgressHub
from tusd_py.progress.listener import Listener
from tusd_py.progress.listeners import TooManyListenersError
from tusd_py.progress.place import MayFollow
from tusd_py.uploads.service import UploadService

EVENTS = "events"  # the sub-resource, and the name that no upload has
MAX_UPLOADS = 256  # that a client may name
LIFETIME = 3600.0  # seconds after which a listener has to come back, so that its right is checked again
SPREAD = 0.1  # part of them by which listeners differ, so that they do not come back together
MIN_LIFETIME = 1.0  # seconds, also of a listener whose token expires just now
FULL_RETRY = "5"  # seconds


class TooManyListeners(HTTPError):
    """A listener beyond the limit of the server."""

    def __init__(self) -> None:
        text = "too many clients follow uploads; try again later"
        super().__init__(503, "ERR_TOO_MANY_LISTENERS", text, {"Retry-After": FULL_RETRY})


class InvalidUploads(HTTPError):
    """A request for the events of several uploads that names too many, or none where it has to."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "ERR_INVALID_UPLOADS", message)


class ProgressEndpoint:
    """The handlers of GET and HEAD of `<upload>/events` and `<creation URL>/events`."""

    def __init__(
        self, hub: ProgressHub, service: UploadService, name_sender: Callable[[Request], str] | None = None
    ) -> None:
        """Take the parts.

        Args:
            hub: tells the listeners.
            service: knows the uploads.
            name_sender: returns the name under which a listener is counted; None: `listening_sender`.
        """
        self._hub = hub
        self._service = service
        self._name_sender = name_sender or listening_sender

    async def head(self, request: Request) -> Response:
        """Answer as to a GET, without events."""
        await self._read(request)
        return Response(200, dict(HEADERS))

    async def get(self, request: Request) -> Response:
        """Answer with the events of an upload from now on, beginning with a snapshot or what the client has missed.

        A WebSocket always begins with a snapshot. A client that has got the last event is answered 204, after which
        browsers ask no more.
        """
        if request.is_head:
            return await self.head(request)
        listener = Listener((request.upload_id,))
        self._add(listener, request)
        number = last_number(request.headers) if request.websocket is None else None
        try:
            goes_on = await self._hub.watch(listener, request.upload_id, partial(self._read, request), number)
        except BaseException:
            self._hub.remove(listener)
            raise
        if not goes_on:
            self._hub.remove(listener)
            return Response(204, {"Cache-Control": "no-store"})
        return self._answer_with(listener, request)

    async def head_several(self, request: Request) -> Response:
        """Answer as to a GET, without events."""
        named_uploads(request)
        return Response(200, dict(HEADERS))

    async def get_several(self, request: Request) -> Response:
        """Answer with the events of the uploads that the client names, or of all that its principal may see.

        Uploads that do not exist, or that the client may not see, are left out.
        """
        ids = named_uploads(request)
        if request.is_head:
            return Response(200, dict(HEADERS))
        listener = Listener(ids)
        self._add(listener, request)
        may_follow = request.may_follow or _anybody
        try:
            if ids is not None:
                await self._hub.watch_several(listener, ids, partial(self._may_follow_named, may_follow))
            elif request.principal is not None:
                owner = None if request.principal.is_admin else request.principal.owner
                await self._hub.watch_owner(listener, owner, may_follow, self._service.list)
        except BaseException:
            self._hub.remove(listener)
            raise
        return self._answer_with(listener, request)

    def _answer_with(self, listener: Listener, request: Request) -> Response:
        """Return the stream of a listener in the form that its client asks for."""
        request.is_stream = True
        websocket = request.websocket
        if websocket is None:
            body = StreamBody(EventForm(request), listener, self._hub.remove)
            return Response(200, stream_headers(request), events=body)
        snapshots = partial(self._hub.snapshots, listener)
        form = WebSocketForm(websocket.receive, listener, snapshots, sends_pings=websocket.sends_pings)
        return Response(101, events=StreamBody(form, listener, self._hub.remove))

    async def _may_follow_named(self, may_follow: MayFollow, upload: Upload) -> bool:
        """Return whether the client may follow an upload that it has named.

        That it may not takes as long to find out as that there is no such upload.
        """
        if await may_follow(upload):
            return True
        await self._service.miss()
        return False

    def _add(self, listener: Listener, request: Request) -> None:
        try:
            kind = "sse" if request.websocket is None else "websocket"
            self._hub.add(listener, kind, lifetime(request), self._name_sender(request))
        except TooManyListenersError:
            raise TooManyListeners from None

    async def _read(self, request: Request) -> Upload:
        upload = await self._service.get(request.upload_id)
        if not request.admission.fits(upload):
            raise UploadNotFound
        return upload


async def _anybody(upload: Upload) -> bool:
    """Return that everybody who knows the id of an upload may follow it."""
    return True


def is_path_of_events(path: str) -> bool:
    """Return whether a path may be one of those that tell of uploads."""
    return path.removesuffix("/").endswith(f"/{EVENTS}")


def named_uploads(request: Request) -> list[str] | None:
    """Return the ids in the query of a request; None for all uploads of its principal. Raises `InvalidUploads`."""
    query = parse_qs((request.scope.get("query_string") or b"").decode("latin-1"), keep_blank_values=True)
    named = query.get("upload")
    if named is None:
        if request.principal is None:
            raise InvalidUploads("name the uploads, as in events?upload=ID&upload=ID")
        return None
    if len(named) > MAX_UPLOADS:
        raise InvalidUploads(f"a stream is about {MAX_UPLOADS} uploads at most")
    return [upload_id for upload_id in dict.fromkeys(named) if is_upload_id(upload_id)]


def listening_sender(request: Request) -> str:
    """Return the name under which a listener is counted; empty if neither its principal nor its address is known.

    A signed URL names an owner, whose places are not for all who have the URL: they are counted by their addresses.
    """
    if request.principal is not None and math.isinf(request.admitted_until):
        return sender_of(request)
    return address_of(request) if request.client else ""


def lifetime(request: Request) -> float:
    """Return the seconds that a stream may last: no longer than the right to it."""
    seconds = LIFETIME * random.uniform(1 - SPREAD, 1 + SPREAD)
    until = request.admitted_until
    if request.principal is not None:
        expiry = request.principal.claims.get("exp")
        if isinstance(expiry, int | float) and not isinstance(expiry, bool):
            until = min(until, float(expiry))
    return max(MIN_LIFETIME, min(seconds, until - time.time()))


def last_number(headers: Mapping[str, str]) -> int | None:
    """Return the number in Last-Event-ID; None if there is none of this server."""
    text = headers.get("last-event-id", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
