"""Runs the scripts of the server, as they are, in Lua 5.1 with the functions that Redis gives them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from lupa.lua51 import LuaRuntime, lua_type

from tests.simulation.redis_wire import Double, Map, RedisError, Status, Verbatim, format_score

PRELUDE = b"""
local call, decode = ...
redis = {call = call, pcall = call, error_reply = function(text) return {err = text} end}
cjson = {decode = decode}
return function(source)
  local script = assert(loadstring(source))
  return function(keys, arguments)
    KEYS, ARGV = keys, arguments
    return script()
  end
end
"""


class LuaScripts:
    """The scripts that one Redis knows, by digest."""

    def __init__(self, call: Callable[[Sequence[bytes]], Any]) -> None:
        """`call` runs a command of a script; raises `RedisError`."""
        self.sources: dict[bytes, bytes] = {}
        self._call = call

    def load(self, source: bytes) -> bytes:
        """Keep a script; return its digest."""
        digest = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
        self.sources[digest] = source
        return digest

    def run(self, digest: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        """Run a script and return its reply."""
        _runtime.call = self._call
        return _runtime.run(self.sources[digest], keys, arguments)


class _Runtime:
    """The Lua of this process, with compiled scripts."""

    def __init__(self) -> None:
        self._lua: Any = LuaRuntime(encoding=None, register_eval=False)
        self._functions: dict[bytes, Any] = {}
        self._compile = self._lua.execute(PRELUDE, self._run_command, self._decode)
        self.call: Callable[[Sequence[bytes]], Any]

    def run(self, source: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        function = self._functions.get(source)
        if function is None:
            plain = b"--" + source if source.startswith(b"#!") else source
            function = self._functions[source] = self._compile(plain)
        return self._reply(function(self._table(list(keys)), self._table(list(arguments))))

    def _table(self, values: list[Any]) -> Any:
        return self._lua.table_from(values)

    def _run_command(self, *words: Any) -> Any:
        return self._from_redis(self.call([word if type(word) is bytes else _word(word) for word in words]))

    def _from_redis(self, reply: Any) -> Any:
        """Return a reply as scripts see it, in RESP2."""
        if type(reply) in (bytes, int):
            return reply
        if reply is None:
            return False
        if isinstance(reply, Map):
            return self._table([word for pair in reply.items.items() for word in pair])
        if isinstance(reply, list):
            return self._table([word if type(word) is bytes else self._from_redis(word) for word in reply])
        if isinstance(reply, Double):
            return format_score(reply.value)
        if isinstance(reply, Verbatim):
            return reply.text.encode()
        if isinstance(reply, Status):
            return self._lua.table_from({b"ok": reply.text.encode()})
        return reply

    def _decode(self, text: bytes) -> Any:
        return self._from_json(json.loads(text))

    def _from_json(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._lua.table_from({name.encode(): self._from_json(item) for name, item in value.items()})
        if isinstance(value, list):
            return self._table([self._from_json(item) for item in value])
        return value.encode() if isinstance(value, str) else value

    def _reply(self, value: Any) -> Any:
        """Return the reply that Redis makes of the result of a script."""
        if type(value) in (bytes, int):
            return value
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, float):
            return int(value)
        if lua_type(value) == "table":
            if value[b"err"] is not None:
                raise RedisError(value[b"err"].decode())
            if value[b"ok"] is not None:
                return Status(value[b"ok"].decode())
            items: list[Any] = []
            while (item := value[len(items) + 1]) is not None:
                items.append(self._reply(item))
            return items
        return value


def _word(word: Any) -> bytes:
    if isinstance(word, bytes):
        return word
    if isinstance(word, int | float) and not isinstance(word, bool):
        return b"%.17g" % word
    raise RedisError("ERR Lua redis lib command arguments must be strings or integers")


_runtime = _Runtime()
