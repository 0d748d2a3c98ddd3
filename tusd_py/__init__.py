"""A tus server: resumable uploads over HTTP, exact after every failure."""

__version__ = "0.1.0"

from tusd_py.application import create_app
from tusd_py.core.upload import Upload
from tusd_py.events.bus import (
    PartialFinished,
    UploadCreated,
    UploadExpired,
    UploadFinished,
    UploadProgressed,
    UploadTerminated,
)
from tusd_py.server import TusServer
from tusd_py.settings import InvalidSettings, Settings

__all__ = [
    "InvalidSettings",
    "PartialFinished",
    "Settings",
    "TusServer",
    "Upload",
    "UploadCreated",
    "UploadExpired",
    "UploadFinished",
    "UploadProgressed",
    "UploadTerminated",
    "__version__",
    "create_app",
]
