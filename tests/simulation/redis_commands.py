"""The commands of a model of Redis, as far as the server uses them; each runs at once and as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from tests.simulation.redis_lua import LuaScripts
from tests.simulation.redis_store import Entry, Store
from tests.simulation.redis_wire import Double, Map, RedisError, Status, Verbatim

SCAN_PAGE = 3  # keys of a reply to SCAN
NO_MEMORY = "OOM command not allowed when used memory > 'maxmemory'."
ADDING = (b"SET", b"HSET", b"HINCRBY", b"ZADD", b"SADD", b"RPUSH")  # refused at the limit of memory
OK = Status("OK")


class Commands:
    """The commands that need no connection."""

    def __init__(self, store: Store, rng: Random, publish: Callable[[bytes, bytes], int]) -> None:
        """`publish` sends a message to a channel and returns the number of its receivers."""
        self.store = store
        self.rng = rng
        self.publish = publish
        self.is_full = False
        self.infos: dict[bytes, str] = {}  # by section, what INFO answers in a scenario; empty: not permitted
        self.refuses: list[str] = []  # the texts of the next errors, of a scenario
        self.replication_id = "0"
        self.refusals = 0  # of commands for lack of memory
        self.scripts = LuaScripts(self._call_of_script)
        self._cursors: dict[int, bytes] = {}
        self._table = {
            name.removeprefix("_do_").upper().encode(): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }

    def run(self, words: Sequence[bytes]) -> Any:
        """Run a command; raises `RedisError`."""
        name = words[0].upper()
        function = self._table.get(name)
        if self.refuses:
            raise RedisError(self.refuses.pop(0))
        if function is None:
            raise RedisError(f"ERR unknown command '{name.decode()}'")
        if self.is_full and name in ADDING:
            self._refuse()
        return function(*words[1:])

    def _refuse(self) -> None:
        self.refusals += 1
        raise RedisError(NO_MEMORY)

    # Scripts.

    def _do_eval(self, source: bytes, count: bytes, *words: bytes) -> Any:
        return self._evaluate(self.scripts.load(source), int(count), words)

    def _do_evalsha(self, digest: bytes, count: bytes, *words: bytes) -> Any:
        if digest not in self.scripts.sources:
            raise RedisError("NOSCRIPT No matching script. Please use EVAL.")
        return self._evaluate(digest, int(count), words)

    def _evaluate(self, digest: bytes, count: int, words: Sequence[bytes]) -> Any:
        """Run a script: without flags it is refused at its first addition, unless it has changed something already."""
        self._began_at = self.store.changes
        self._allow_oom = b"allow-oom" in self.scripts.sources[digest].partition(b"\n")[0]
        return self.scripts.run(digest, words[:count], words[count:])

    def _call_of_script(self, words: Sequence[bytes]) -> Any:
        name = words[0].upper()
        if self.is_full and name in ADDING and not self._allow_oom and self.store.changes == self._began_at:
            self._refuse()
        reply = self._table[name](*words[1:])
        if words[-1] == b"WITHSCORES":  # in RESP2, pairs follow each other
            return [item for pair in reply for item in pair]
        return reply

    # Keys.

    def _do_exists(self, *keys: bytes) -> int:
        return sum(self.store.entry(key) is not None for key in keys)

    def _do_del(self, *keys: bytes) -> int:
        found = [key for key in keys if self.store.entry(key) is not None]
        for key in found:
            self.store.put(key, None)
        return len(found)

    def _do_expire(self, key: bytes, seconds: bytes) -> int:
        return self._do_pexpire(key, b"%d" % (int(seconds) * 1000))

    def _do_pexpire(self, key: bytes, milliseconds: bytes) -> int:
        found = self.store.entry(key)
        if found is None:
            return 0
        self.store.put(key, Entry(found.value, self.store.milliseconds() + int(milliseconds)))
        return 1

    def _do_pttl(self, key: bytes) -> int:
        found = self.store.entry(key)
        if found is None:
            return -2
        return -1 if found.expires_at is None else found.expires_at - self.store.milliseconds()

    def _do_scan(self, cursor: bytes, *options: bytes) -> list[Any]:
        """Return keys in their order: those that are there all the time come once."""
        pattern = glob(options[options.index(b"MATCH") + 1])
        after = self._cursors.pop(int(cursor), b"")
        page = sorted(key for key in self.store.entries if key > after)
        found = [key for key in page[:SCAN_PAGE] if pattern.fullmatch(key) and self.store.entry(key) is not None]
        if len(page) <= SCAN_PAGE:
            return [b"0", found]
        number = self.rng.randrange(1, 1 << 40)
        self._cursors[number] = page[SCAN_PAGE - 1]
        return [b"%d" % number, found]

    # Texts.

    def _do_get(self, key: bytes) -> bytes | None:
        text: bytes | None = self.store.value(key)
        return text

    def _do_set(self, key: bytes, value: bytes, *options: bytes) -> Status:
        assert not options or options[0] == b"PX"
        self.store.put(key, Entry(value, self.store.milliseconds() + int(options[1]) if options else None))
        return OK

    # Hashes.

    def _do_hget(self, key: bytes, name: bytes) -> bytes | None:
        value: bytes | None = self.store.value(key, {}).get(name)
        return value

    def _do_hmget(self, key: bytes, *names: bytes) -> list[bytes | None]:
        values = self.store.value(key, {})
        return [values.get(name) for name in names]

    def _do_hgetall(self, key: bytes) -> Map:
        return Map(self.store.value(key, {}))

    def _do_hset(self, key: bytes, *words: bytes) -> int:
        if not words or len(words) % 2:
            raise RedisError("ERR wrong number of arguments for 'hset' command")
        values = self.store.copied(key, {})
        before = len(values)
        values.update(zip(words[::2], words[1::2], strict=True))
        self.store.change(key, values)
        return len(values) - before

    def _do_hdel(self, key: bytes, *names: bytes) -> int:
        values = self.store.copied(key, {})
        found = [name for name in names if name in values]
        for name in found:
            del values[name]
        if found:
            self.store.change(key, values)
        return len(found)

    def _do_hincrby(self, key: bytes, name: bytes, amount: bytes) -> int:
        values = self.store.copied(key, {})
        total = int(values.get(name, b"0")) + int(amount)
        self.store.change(key, {**values, name: b"%d" % total})
        return total

    def _do_hkeys(self, key: bytes) -> list[bytes]:
        return list(self.store.value(key, {}))

    def _do_hexists(self, key: bytes, name: bytes) -> int:
        return int(name in self.store.value(key, {}))

    # Sets.

    def _do_smembers(self, key: bytes) -> list[bytes]:
        return list(self.store.value(key, {}))

    def _do_sadd(self, key: bytes, *members: bytes) -> int:
        held = self.store.copied(key, {})
        before = len(held)
        self.store.change(key, held | dict.fromkeys(members))
        return len(self.store.value(key)) - before

    def _do_srem(self, key: bytes, *members: bytes) -> int:
        held = self.store.copied(key, {})
        found = [member for member in members if member in held]
        for member in found:
            del held[member]
        if found:
            self.store.change(key, held)
        return len(found)

    def _do_srandmember(self, key: bytes, count: bytes) -> list[bytes]:
        members = list(self.store.value(key, {}))
        return self.rng.sample(members, min(int(count), len(members)))

    # Sorted sets.

    def _do_zadd(self, key: bytes, *words: bytes) -> int:
        options = [word for word in words[:-2] if word in (b"NX", b"XX", b"LT")]
        pairs = words[len(options) :]
        scores = self.store.copied(key, {})
        before = len(scores)
        for text, member in zip(pairs[::2], pairs[1::2], strict=True):
            score, held = float(text), scores.get(member)
            if (b"NX" in options and held is not None) or (b"XX" in options and held is None):
                continue
            if b"LT" not in options or held is None or score < held:
                scores[member] = score
        self.store.change(key, scores)
        return len(scores) - before

    def _do_zrem(self, key: bytes, *members: bytes) -> int:
        return self._do_hdel(key, *members)

    def _do_zscore(self, key: bytes, member: bytes) -> Double | None:
        score = self.store.value(key, {}).get(member)
        return None if score is None else Double(score)

    def _do_zmscore(self, key: bytes, *members: bytes) -> list[Double | None]:
        return [self._do_zscore(key, member) for member in members]

    def _do_zlexcount(self, key: bytes, first: bytes, last: bytes) -> int:
        return len(between(self.store.value(key, {}), first, last))

    def _do_zrange(self, key: bytes, first: bytes, last: bytes, by: bytes, *options: bytes) -> list[Any]:
        is_reversed = options[0] == b"REV"
        options = options[is_reversed:]
        assert options[0] == b"LIMIT"
        start, count = int(options[1]), int(options[2])
        scores = self.store.value(key, {})
        if by == b"BYLEX":
            return between(scores, first, last)[start : start + count]
        low, high = (last, first) if is_reversed else (first, last)
        found = sorted(
            (score, member) for member, score in scores.items() if _is_above(score, low) and _is_below(score, high)
        )
        if is_reversed:
            found.reverse()
        return [[member, Double(score)] for score, member in found[start : start + count]]

    # Lists.

    def _do_rpush(self, key: bytes, *items: bytes) -> int:
        held = [*self.store.value(key, []), *items]
        self.store.change(key, held)
        return len(held)

    def _do_ltrim(self, key: bytes, first: bytes, last: bytes) -> Status:
        self.store.change(key, self._do_lrange(key, first, last))
        return OK

    def _do_lrange(self, key: bytes, first: bytes, last: bytes) -> list[bytes]:
        held: list[bytes] = self.store.value(key, [])
        assert last == b"-1"
        return held[int(first) :]

    # The server.

    def _do_publish(self, channel: bytes, message: bytes) -> int:
        return self.publish(channel, message)

    def _do_ping(self) -> Status:
        return Status("PONG")

    def _do_time(self) -> list[bytes]:
        seconds, microseconds = divmod(self.store.microseconds(), 1_000_000)
        return [b"%d" % seconds, b"%d" % microseconds]

    def _do_info(self, section: bytes) -> Verbatim:
        if section in self.infos:
            if not self.infos[section]:
                raise RedisError("NOPERM User default has no permissions to run the 'info' command")
            return Verbatim(self.infos[section])
        if section == b"memory":
            return Verbatim("# Memory\r\nmaxmemory:1000000\r\nmaxmemory_policy:noeviction\r\n")
        if section == b"replication":
            return Verbatim(f"# Replication\r\nrole:master\r\nmaster_replid:{self.replication_id}\r\n")
        return Verbatim("# Server\r\nredis_version:7.4.0\r\n")

    def _do_client(self, *_: bytes) -> Status:
        raise RedisError("ERR unknown subcommand")


def between(members: Iterable[bytes], first: bytes, last: bytes) -> list[bytes]:
    """Return the members between two bounds of `BYLEX`, in their order."""
    found = sorted(members)
    if first != b"-":
        found = [member for member in found if member > first[1:] or (first[:1] == b"[" and member == first[1:])]
    if last != b"+":
        found = [member for member in found if member < last[1:] or (last[:1] == b"[" and member == last[1:])]
    return found


def _is_above(score: float, bound: bytes) -> bool:
    return score > float(bound[1:]) if bound.startswith(b"(") else score >= float(bound)


def _is_below(score: float, bound: bytes) -> bool:
    return score < float(bound[1:]) if bound.startswith(b"(") else score <= float(bound)


def glob(pattern: bytes) -> re.Pattern[bytes]:
    """Return the regular expression of a pattern of Redis that has no brackets."""
    parts = re.split(rb"(\\.|\*|\?)", pattern)
    special = {b"*": b".*", b"?": b"."}
    return re.compile(
        b"".join(special.get(part) or re.escape(part[1:] if part.startswith(b"\\") else part) for part in parts),
        re.DOTALL,
    )
