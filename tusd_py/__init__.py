"""A tus server: resumable uploads over HTTP, exact after every failure.

The public API is what this package exports, with `tusd_py.contracts` and `tusd_py.testing` for those who write a
storage, a state store or a locker (docs/extending.md). Everything else is internal and may change with any release.

Example::

    from starlette.applications import Starlette
    from tusd_py import TusServer, UploadFinished

    tus = TusServer(upload_dir="uploads")

    @tus.on(UploadFinished)
    async def finished(event: UploadFinished) -> None:
        print(event.upload.id, event.upload.decoded_metadata, tus.path(event.upload))

    app = Starlette(routes=[tus.route("/files")], lifespan=tus.lifespan)
"""

__version__ = "0.1.0"

from tusd_py.application import create_app
from tusd_py.auth.url_signer import UrlSigner
from tusd_py.contracts.auth import Action, Decision, ExpiredCredentials, InvalidCredentials, Principal
from tusd_py.core.durability import Durability
from tusd_py.core.errors import (
    AuthenticationUnavailable,
    BrokenRecord,
    ChecksumMismatch,
    ClientDisconnected,
    CodedError,
    CompletionDelayed,
    ContentRefused,
    DigestMismatch,
    FinalUploadModified,
    HookRejected,
    HookUnavailable,
    IncompleteBody,
    InvalidConcatenation,
    InvalidLength,
    LockLost,
    LockTimeout,
    MalwareFound,
    MaxSizeExceeded,
    NotReady,
    OffsetMismatch,
    PartBehind,
    PartialLost,
    PartialUnfinished,
    PathTaken,
    QuotaExceeded,
    ReadTimeout,
    ScanSizeExceeded,
    ScanUnavailable,
    ServerShutdown,
    SizeExceeded,
    StateFull,
    StateUnavailable,
    StorageAhead,
    StorageBehind,
    StorageFull,
    StorageUnavailable,
    StoredElsewhere,
    TerminationRejected,
    TypeNotAllowed,
    UploadError,
    UploadExists,
    UploadGone,
    UploadInterrupted,
    UploadNotFound,
    UploadStopped,
    WriteTimeout,
    WrongStatus,
    WrongStorage,
)
from tusd_py.core.listing import Page, UploadFilter
from tusd_py.core.metadata import parse_metadata
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload, UploadKind, UploadPart
from tusd_py.embedding import UploadReader, Uploads
from tusd_py.events.types import (
    AppendEnded,
    AppendStarted,
    JobFinished,
    LockWaited,
    PartialFinished,
    RequestFinished,
    UploadCreated,
    UploadExpired,
    UploadFinished,
    UploadProgressed,
    UploadTerminated,
)
from tusd_py.server import TusServer
from tusd_py.settings import InvalidSettings, Settings, SettingsOverrides

__all__ = [
    "Action",
    "AppendEnded",
    "AppendStarted",
    "AuthenticationUnavailable",
    "BrokenRecord",
    "ChecksumMismatch",
    "ClientDisconnected",
    "CodedError",
    "CompletionDelayed",
    "ContentRefused",
    "Decision",
    "DigestMismatch",
    "Durability",
    "ExpiredCredentials",
    "FinalUploadModified",
    "HookRejected",
    "HookUnavailable",
    "IncompleteBody",
    "InvalidConcatenation",
    "InvalidCredentials",
    "InvalidLength",
    "InvalidSettings",
    "JobFinished",
    "LockLost",
    "LockTimeout",
    "LockWaited",
    "MalwareFound",
    "MaxSizeExceeded",
    "NotReady",
    "OffsetMismatch",
    "Page",
    "PartBehind",
    "PartialFinished",
    "PartialLost",
    "PartialUnfinished",
    "PathTaken",
    "Principal",
    "QuotaExceeded",
    "ReadTimeout",
    "RequestContext",
    "RequestFinished",
    "ScanSizeExceeded",
    "ScanUnavailable",
    "ServerShutdown",
    "Settings",
    "SettingsOverrides",
    "SizeExceeded",
    "StateFull",
    "StateUnavailable",
    "Status",
    "StorageAhead",
    "StorageBehind",
    "StorageFull",
    "StorageUnavailable",
    "StoredElsewhere",
    "TerminationRejected",
    "TusServer",
    "TypeNotAllowed",
    "Upload",
    "UploadCreated",
    "UploadError",
    "UploadExists",
    "UploadExpired",
    "UploadFilter",
    "UploadFinished",
    "UploadGone",
    "UploadInterrupted",
    "UploadKind",
    "UploadNotFound",
    "UploadPart",
    "UploadProgressed",
    "UploadReader",
    "UploadStopped",
    "UploadTerminated",
    "Uploads",
    "UrlSigner",
    "WriteTimeout",
    "WrongStatus",
    "WrongStorage",
    "__version__",
    "create_app",
    "parse_metadata",
]
