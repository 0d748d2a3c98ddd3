"""The values of the labels of metrics: closed sets, so that no client can add to the memory of the server."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from tusd_py.contracts.hooks import HookType
from tusd_py.core.progress import ProgressKind

OTHER = "other"  # in place of every value outside the set of its label
MAX_NAMES = 128  # values of a label whose set is not known beforehand


@dataclass(frozen=True, slots=True)
class Label:
    """A label of metrics.

    Attributes:
        name: the name.
        meaning: the meaning of its values.
        values: all values, besides `OTHER`; empty if the settings or a backend name them, `MAX_NAMES` at most.
    """

    name: str
    meaning: str
    values: tuple[str, ...] = ()


METHOD = Label(
    "method",
    "method of the request, after `X-HTTP-Method-Override`",
    ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"),
)
STATUS_CLASS = Label(
    "status_class",
    "class of the status of the answer; `none` if the client was gone before",
    ("1xx", "2xx", "3xx", "4xx", "5xx", "none"),
)
STATUS = Label(
    "status",
    "status of the answer; 0 where no answer could be sent",
    ("0", *(str(status.value) for status in HTTPStatus)),
)
CODE = Label("code", "error code ([troubleshooting.md](troubleshooting.md))")
RESULT = Label("result", "end of the work", ("ok", "failed"))
HOOK = Label("hook", "type of the hook", tuple(HookType))
JOB = Label("job", "periodic job", ("sweeper", "orphan-cleaner"))
SINK = Label("sink", "receiver of events, as the settings name it")
EVENT_STATUS = Label("status", "whether events are still delivered", ("waiting", "dead"))
REASON = Label(
    "reason",
    "reason why the server ended a connection; `room`: an idle one made room for others",
    ("header_timeout", "write_timeout", "unread_body", "room"),
)
LISTENER_KIND = Label("kind", "form of the stream", ("sse", "websocket"))
MESSAGE_KIND = Label(
    "kind",
    "type of the message ([progress.md](progress.md))",
    tuple(kind for kind in ProgressKind if kind not in (ProgressKind.STARTED, ProgressKind.ENDED)),
)
REDIS_CALL = Label(
    "call",
    "command of Redis, or script of the server",
    (
        *("acquire", "renew", "release", "commit", "add", "create", "count", "update", "delete", "move", "note"),
        *("write_metadata", "take_rate", "events", "settle"),
        *("del", "exists", "expire", "hget", "hgetall", "hmget", "info", "lrange", "ltrim", "publish", "pubsub"),
        *("rpush", "sadd", "smembers", "srandmember", "srem", "time"),
        *("zadd", "zlexcount", "zmscore", "zrange", "zrem", "zscore"),
    ),
)
S3_OPERATION = Label(
    "operation",
    "operation of S3",
    (
        *("abort_multipart_upload", "complete_multipart_upload", "copy_object", "create_multipart_upload"),
        *("delete_object", "delete_objects", "get_bucket_versioning", "get_object", "head_object"),
        *("list_multipart_uploads", "list_object_versions", "list_objects_v2", "list_parts", "presign"),
        *("put_object", "upload_part", "upload_part_copy"),
    ),
)
S3_RESULT = Label("result", "`ok`, or the error code of S3 or of the connection to it")


def status_class(status: int) -> str:
    """Return the value of `STATUS_CLASS` for a status; 0 stands for no answer."""
    return f"{status // 100}xx" if status else "none"
