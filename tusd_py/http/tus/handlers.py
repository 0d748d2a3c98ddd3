"""The handlers of tus 1.0.0: each parses a request, calls one verb of the service and formats the response."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from tusd_py.core.conditions import NO_CONDITIONS, Conditions
from tusd_py.core.errors import (
    CodedError,
    ContentRefused,
    HookRejected,
    HookUnavailable,
    UploadError,
    UploadExists,
    UploadGone,
    UploadNotFound,
)
from tusd_py.core.metadata import MetadataLimits
from tusd_py.core.upload import Upload, UploadKind
from tusd_py.http.digest_fields import digests_of
from tusd_py.http.empty_patches import EmptyPatches
from tusd_py.http.errors import RETRY_AFTER, TRY_LATER, HTTPError, error_response_for
from tusd_py.http.hook_answers import answered
from tusd_py.http.rates import ByteRate, CreationRate
from tusd_py.http.request import Handler, Request, Response
from tusd_py.http.signed_access import CapabilitySigner, UrlUsed
from tusd_py.http.tus.downloads import DownloadHandler
from tusd_py.http.tus.features import Features
from tusd_py.http.tus.grants import granted, granted_digests, metadata_with
from tusd_py.http.tus.headers import (
    InvalidHeader,
    format_date,
    is_offset_content_type,
    is_version,
    parse_checksum,
    parse_final_concat,
    quoted,
)
from tusd_py.http.urls import UrlBuilder, upload_id_of
from tusd_py.uploads.checksum import ALGORITHMS, AnnouncedChecksum, TrailingChecksum, Verification
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

VERSION = "1.0.0"


class TusHandlers:
    """The handlers of the methods of the creation URL and of an upload."""

    def __init__(
        self,
        service: UploadService,
        features: Features,
        urls: UrlBuilder,
        metadata_limits: MetadataLimits,
        downloads: DownloadHandler,
        capabilities: CapabilitySigner | None = None,
        creation_rate: CreationRate | None = None,
        byte_rate: ByteRate | None = None,
    ) -> None:
        """Without `capabilities` there are none in `Location`; without rates creations and bytes are not limited."""
        self._capabilities = capabilities
        self._service = service
        self._features = features
        self._urls = urls
        self._metadata_limits = metadata_limits
        self._downloads = downloads
        self._creation_rate = creation_rate
        self._byte_rate = byte_rate
        self._empty_patches = EmptyPatches()
        self.on_creation_url: dict[str, Handler] = {"OPTIONS": self.options, "POST": self.post}
        self.on_upload: dict[str, Handler] = {"OPTIONS": self.options, "HEAD": self.head, "PATCH": self.patch}
        if features.download:
            self.on_upload["GET"] = downloads.get
        if features.termination:
            self.on_upload["DELETE"] = self.delete

    async def options(self, request: Request) -> Response:
        extensions = self._features.extensions(trailers=request.body.has_trailers)
        headers = {"Tus-Version": VERSION, "Tus-Extension": ",".join(extensions)}
        max_size = self._service.max_size
        if max_size is not None:
            headers["Tus-Max-Size"] = str(max_size)
        if self._features.checksum:
            headers["Tus-Checksum-Algorithm"] = ",".join(ALGORITHMS)
        return Response(200, headers)

    async def post(self, request: Request) -> Response:
        check_version(request)
        if self._creation_rate is not None:
            await self._creation_rate.admit(request)
        new = self._new_upload(request)
        is_final = new.concatenation is UploadKind.FINAL
        append_request = None if is_final else await self._first_bytes(request, new)
        try:
            if is_final:
                upload = await self._service.concatenate(new)
            elif append_request is None:
                upload = await self._service.create(new)
            else:  # the client gets the URL of the new upload even if its body is refused
                upload = await self._service.create_with(new, append_request)
        except HookUnavailable as error:
            if error.created:
                request.upload_id = error.created
                request.location = await self._location_of_created(request)
            raise
        except UploadExists:
            if request.grant is not None and await self._service.find(request.grant.upload_id) is not None:
                raise UrlUsed from None
            raise
        request.offset_after = upload.offset
        return answered(await self._created(request, upload), new.context)

    async def _created(self, request: Request, upload: Upload) -> Response:
        request.upload_id = upload.id
        return Response(201, {"Location": await self._location(request, upload), **_offset(upload), **_expires(upload)})

    async def _location(self, request: Request, upload: Upload | None) -> str:
        """Return the URL of an upload, with a capability if there is one of it."""
        url = f"{self._urls.base(request.scope, request.headers)}/{request.upload_id}"
        if self._capabilities is None or upload is None:
            return url
        return url + await self._capabilities.query(upload, request)

    async def _location_of_created(self, request: Request) -> str:
        """Return the URL of the upload that a failed request has created."""
        upload = None
        if self._capabilities is not None:
            with contextlib.suppress(UploadError):  # the client is told of the first error
                upload = await self._service.find(request.upload_id)
        return await self._location(request, upload)

    def _new_upload(self, request: Request) -> NewUpload:
        concatenation, partial_ids = self._concatenation(request)
        header = request.headers.get("upload-metadata", "")
        metadata, pairs = metadata_with(request.grant, header, self._metadata_limits)
        new = NewUpload(
            length=self._new_length(request, concatenation),
            metadata=metadata or None,
            concatenation=concatenation,
            concat_header=request.headers.get("upload-concat"),
            partial_ids=partial_ids,
            context=request.context(),
            max_size=None if request.principal is None else request.principal.max_size,
            quota_bytes=None if request.principal is None else request.principal.quota_bytes,
            may_use=request.may_use,
            conditions=self._conditions(request, pairs),
        )
        return new if request.grant is None else granted(new, request.grant)

    def _conditions(self, request: Request, metadata: Mapping[str, bytes]) -> Conditions:
        if self._features.checksum:
            digests = digests_of(request.headers, metadata)
        else:
            digests = () if request.grant is None else granted_digests(request.grant)
        return Conditions(digests) if digests else NO_CONDITIONS

    def _concatenation(self, request: Request) -> tuple[UploadKind, tuple[str, ...]]:
        header = request.headers.get("upload-concat")
        if header is None:
            return UploadKind.NONE, ()
        if not self._features.concatenation:
            raise HTTPError(400, "ERR_CONCATENATION_UNSUPPORTED", "this server does not concatenate uploads")
        if header == "partial":
            return UploadKind.PARTIAL, ()
        if not header.startswith("final;"):
            raise InvalidHeader('Upload-Concat must be "partial" or "final;" and URLs', "ERR_INVALID_CONCAT")
        if request.has_body:
            raise HTTPError(403, "ERR_MODIFY_FINAL", "a final upload takes no bytes of its own")
        return UploadKind.FINAL, tuple(upload_id_of(url) for url in parse_final_concat(header))

    def _new_length(self, request: Request, concatenation: UploadKind) -> int | None:
        length = request.integer("Upload-Length", "ERR_INVALID_UPLOAD_LENGTH")
        deferred = request.headers.get("upload-defer-length")
        if concatenation is UploadKind.FINAL:
            if length is not None or deferred is not None:
                raise InvalidHeader("a final upload has the length of its parts", "ERR_INVALID_UPLOAD_LENGTH")
            return None
        if deferred is not None and deferred != "1":
            raise InvalidHeader("Upload-Defer-Length must be 1", "ERR_INVALID_UPLOAD_LENGTH_DEFER")
        if deferred is not None and length is not None:
            raise InvalidHeader(
                "Upload-Length and Upload-Defer-Length exclude each other", "ERR_AMBIGUOUS_UPLOAD_LENGTH"
            )
        if deferred is not None and not self._features.creation_defer_length:
            raise InvalidHeader("this server needs to know Upload-Length", "ERR_INVALID_UPLOAD_LENGTH_DEFER")
        if deferred is None and length is None:
            raise InvalidHeader("Upload-Length or Upload-Defer-Length is missing", "ERR_INVALID_UPLOAD_LENGTH")
        return length

    async def _first_bytes(self, request: Request, new: NewUpload) -> AppendRequest | None:
        """Return the append for the bytes that come with a creation, if any; refuse it before the upload is created."""
        if not request.has_body:
            return None
        if not is_offset_content_type(request.headers.get("content-type", "")):
            if request.body.declared_size is None and not await _has_bytes(request):
                return None  # chunked, but empty: a plain creation
            raise _wrong_content_type()
        if not self._features.creation_with_upload:
            raise HTTPError(400, "ERR_CREATION_WITH_UPLOAD_UNSUPPORTED", "this server creates uploads empty")
        size = request.body.declared_size or 0
        if new.length is not None and size > new.length:
            raise HTTPError(413, "ERR_UPLOAD_SIZE_EXCEEDED", "the request holds more bytes than Upload-Length")
        self._service.check_size(max(size, new.length or 0), deferred=new.length is None, max_size=new.max_size)
        verification = self._verification(request)
        source = request.body if self._byte_rate is None else await self._byte_rate.shaped(request)
        return AppendRequest(0, source, verification=verification, context=new.context)

    def _verification(self, request: Request) -> Verification | None:
        if not self._features.checksum:
            return None
        header = request.headers.get("upload-checksum")
        if header is not None:
            return AnnouncedChecksum(*parse_checksum(header))
        promised = [name.strip().lower() for name in request.headers.get("trailer", "").split(",")]
        if "upload-checksum" not in promised:
            return None
        if not request.body.has_trailers:
            raise HTTPError(400, "ERR_TRAILERS_UNSUPPORTED", "this server does not see trailers")

        def trailing_checksum() -> tuple[str, bytes] | None:
            trailer = request.body.trailer("upload-checksum")
            return None if trailer is None else parse_checksum(trailer)

        return TrailingChecksum(trailing_checksum)

    async def head(self, request: Request) -> Response:
        no_store = {"Cache-Control": "no-store"}
        try:
            if request.is_plain_head and self._features.download:
                async with asyncio.timeout_at(request.deadline):
                    return await self._describe(request)
            check_version(request)
            upload = await self._service.inspect(request.upload_id, request.deadline)
            if not request.admission.fits(upload):
                raise UploadNotFound
        except (ContentRefused, HookRejected) as error:  # of the completion: the upload was removed
            return Response(404, no_store, error_code=error.code)
        except (UploadNotFound, UploadGone) as error:
            return Response(error_response_for(error).status, no_store, error_code=error.code)
        except (UploadError, TimeoutError) as error:
            code = error.code if isinstance(error, UploadError) else TRY_LATER.code
            return Response(TRY_LATER.status, {**no_store, "Retry-After": RETRY_AFTER}, error_code=code)
        request.offset_after = upload.offset
        headers = no_store
        expiry = upload.announced_expiry
        if expiry is not None:
            headers["Upload-Expires"] = format_date(expiry)
        if not upload.is_final or upload.is_complete:  # a final upload has no offset before its parts are put together
            headers["Upload-Offset"] = str(upload.offset)
        if upload.length is None:
            headers["Upload-Defer-Length"] = "1"
        else:
            headers["Upload-Length"] = str(upload.length)
        if upload.metadata is not None:
            headers["Upload-Metadata"] = upload.metadata
        if upload.concat_header is not None:
            headers["Upload-Concat"] = upload.concat_header
        return Response(200, headers)

    async def _describe(self, request: Request) -> Response:
        """Respond to the HEAD of a client that does not speak tus (`curl -I`), with the header fields of a GET."""
        if not (await self._service.get(request.upload_id)).is_complete:
            check_version(request)
        return await self._downloads.response(request, body=False)

    async def patch(self, request: Request) -> Response:
        try:
            return await self._patch(request)
        except (ContentRefused, HookRejected, HookUnavailable):
            raise  # bytes were looked at, or the application was asked, which happens for those who were let in
        except CodedError:
            if request.decide is not None:
                await request.decide()  # whoever may not know of the upload learns nothing from the error
            raise

    async def _patch(self, request: Request) -> Response:
        check_version(request)
        if not is_offset_content_type(request.headers.get("content-type", "")):
            raise _wrong_content_type()
        offset = request.integer("Upload-Offset", "ERR_INVALID_OFFSET")
        if offset is None:
            raise InvalidHeader("Upload-Offset is missing", "ERR_INVALID_OFFSET")
        length = request.integer("Upload-Length", "ERR_INVALID_UPLOAD_LENGTH")
        verification = self._verification(request)
        source = request.body if self._byte_rate is None else await self._byte_rate.shaped(request)
        append_request = AppendRequest(offset, source, length, verification, request.context(), request.admission)
        request.offset_before = offset
        try:
            upload = await self._service.append(request.upload_id, append_request)
        except CodedError:
            # The protocol wants Upload-Expires on every answer to a PATCH.
            request.expires_at = await self._service.expires_at(request.upload_id, request.admission)
            raise
        request.offset_after = upload.offset
        if upload.offset > offset:
            self._empty_patches.brought_bytes(upload.id)
        elif length is None and not upload.is_complete:
            await asyncio.sleep(self._empty_patches.pause(upload.id))
        return answered(Response(204, _offset(upload) | _expires(upload)), append_request.context)

    async def delete(self, request: Request) -> Response:
        check_version(request)
        context = request.context()
        await self._service.terminate(request.upload_id, context, request.admission)
        return answered(Response(204), context)


def check_version(request: Request) -> None:
    received = request.headers.get("tus-resumable")
    if received is None:
        raise _wrong_version("none came")
    if received != VERSION and not is_version(received, VERSION):
        raise _wrong_version(f"{quoted(received)} came")


def _wrong_version(received: str) -> HTTPError:
    text = f"Tus-Resumable must be {VERSION}, {received}"
    return HTTPError(412, "ERR_UNSUPPORTED_VERSION", text, {"Tus-Version": VERSION})


def _wrong_content_type() -> HTTPError:
    return HTTPError(415, "ERR_INVALID_CONTENT_TYPE", "Content-Type must be application/offset+octet-stream")


async def _has_bytes(request: Request) -> bool:
    while (data := await request.body.read()) is not None:
        if data:
            return True
    return False


def _offset(upload: Upload) -> dict[str, str]:
    return {"Upload-Offset": str(upload.offset)}


def _expires(upload: Upload) -> dict[str, str]:
    expiry = upload.announced_expiry
    return {} if expiry is None else {"Upload-Expires": format_date(expiry)}
