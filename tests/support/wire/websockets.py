"""A client of WebSockets: the one of `websockets`, and what a test asks it for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support.timing import TIMEOUT


class WebSocket:
    """A WebSocket whose handshake has been accepted, or refused by the answer `status`."""

    def __init__(self, port: int, path: str, headers: Mapping[str, str] | None = None, **options: Any) -> None:
        self.status = 101
        self.fields: Mapping[str, str] = {}
        self.text = ""
        try:
            self._context = connect(
                f"ws://127.0.0.1:{port}{path}",
                additional_headers=headers,
                compression=None,
                proxy=None,
                open_timeout=TIMEOUT,
                close_timeout=TIMEOUT,
                ping_interval=None,
                **options,
            )
            self.connection = self._context.__enter__()
        except InvalidStatus as refused:
            answer = refused.response
            self.status, self.fields, self.text = answer.status_code, answer.headers, answer.body.decode()

    @property
    def was_accepted(self) -> bool:
        return self.status == 101

    def send(self, message: object) -> None:
        self.connection.send(message if isinstance(message, (str, bytes)) else json.dumps(message))

    def next(self, timeout: float = TIMEOUT) -> dict[str, Any] | None:
        """Return the next message; None at the end of the WebSocket."""
        try:
            text = self.connection.recv(timeout)
        except ConnectionClosed:
            return None
        assert isinstance(text, str)
        message: dict[str, Any] = json.loads(text)
        return message

    def until(
        self, kind: str, condition: Callable[[dict[str, Any]], bool] = lambda message: True
    ) -> list[dict[str, Any]]:
        """Return the messages up to the first one of a kind that fulfils the condition."""
        messages = []
        for message in self:
            messages.append(message)
            if message["type"] == kind and condition(message):
                return messages
        raise AssertionError(f"the WebSocket ended by {self.code} without {kind}: {messages}")

    def rest(self) -> list[str]:
        """Return the kinds of the messages up to the end."""
        return [message["type"] for message in self]

    @property
    def code(self) -> int | None:
        """The code of the close."""
        code: int | None = self.connection.close_code
        return code

    @property
    def reason(self) -> str | None:
        reason: str | None = self.connection.close_reason
        return reason

    def close(self) -> None:
        if self.was_accepted:
            self._context.__exit__(None, None, None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (message := self.next()) is not None:
            yield message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
