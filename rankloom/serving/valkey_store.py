"""The state store of several servers: Valkey or Redis behind the same protocol (extra `valkey`).

A batch is one script, so that it is stored whole or not at all; all reads of a request go in one round trip. Events are as
durable as the server makes them: it must write its log on every command (`appendonly yes`, `appendfsync always`), and the
store refuses to open otherwise. `?durable=no` in the address accepts what the server is set to, and the loss that goes
with it. Tombstones are kept in the store and in a local file, which wins after a restore.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

from rankloom.errors import RankloomError
from rankloom.serving.state import (
    HISTORY,
    Document,
    Person,
    StateUnavailableError,
    StoredEvent,
    id_digest,
    pseudonym,
    seen_with,
    to_json,
    tombstone_path,
)
from rankloom.serving.tombstones import Tombstones

T = TypeVar("T")
_PREFIX: Final = "rankloom:"
# KEYS: ids, sequence, total. ARGV: per event digest, key of the person's events, microseconds, JSON.
_APPEND: Final = """
local new = {}
for i = 1, #ARGV, 4 do
  if redis.call('SADD', KEYS[1], ARGV[i]) == 1 then
    local n = redis.call('INCR', KEYS[2])
    redis.call('ZADD', ARGV[i + 1], ARGV[i + 2], string.format('%016x', n) .. ARGV[i + 3])
    redis.call('INCR', KEYS[3])
    new[#new + 1] = 1
  else
    new[#new + 1] = 0
  end
end
return new
"""
# KEYS: the person's events, tombstones, total. ARGV: pseudonym, time. The ids of the events stay among the known ones.
_FORGET: Final = """
local n = 0
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local received = tonumber(cjson.decode(string.sub(member, 17))['received'])
  if received <= tonumber(ARGV[2]) then
    redis.call('ZREM', KEYS[1], member)
    redis.call('DECR', KEYS[3])
    n = n + 1
  end
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return n
"""
# KEYS: values, order, sequence. ARGV: per document name and JSON ('' removes).
_DOCUMENTS: Final = """
local n = 0
for i = 1, #ARGV, 2 do
  n = redis.call('INCR', KEYS[3])
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[2], n, ARGV[i])
end
return n
"""


class ValkeyStore:
    """A `StateStore` at `valkey://HOST:PORT/N` (or `redis://`).

    Raises:
        RankloomError: the extra is not installed, the server is not there, or it does not keep what it acknowledges.
    """

    shared = True

    def __init__(self, address: str) -> None:
        try:
            import valkey
        except ImportError:
            raise RankloomError(
                "a shared state needs the package `valkey`",
                place="--state",
                action="pip install 'rankloom[valkey]', or name a file",
                code="extra-missing",
            ) from None
        parts = urlsplit(address)
        self.place = f"{parts.hostname}:{parts.port or 6379}"
        durable = parse_qs(parts.query).get("durable", ["yes"])[0] != "no"
        plain = urlunsplit((parts.scheme.replace("redis", "valkey"), parts.netloc, parts.path, "", ""))
        self._errors: tuple[type[Exception], ...] = (valkey.ValkeyError, OSError)
        # the package's types speak of its asynchronous client too
        self._client: Any = valkey.Valkey.from_url(plain, socket_timeout=2, socket_connect_timeout=2)
        self._append = self._client.register_script(_APPEND)
        self._forget = self._client.register_script(_FORGET)
        self._put = self._client.register_script(_DOCUMENTS)
        self.tombstones = Tombstones(tombstone_path(address))
        self._call(self._client.ping)
        if durable:
            self._check_durable()
        self._forget_again()

    def _check_durable(self) -> None:
        told = self._call(lambda: {**self._client.config_get("appendonly"), **self._client.config_get("appendfsync")})
        if (told.get("appendonly"), told.get("appendfsync")) != ("yes", "always"):
            raise RankloomError(
                f"the server does not write every command to disk: {told}",
                place=self.place,
                action="set `appendonly yes` and `appendfsync always` there, or add ?durable=no to the address to accept losing the last events",
                code="state-not-durable",
            )

    def _forget_again(self) -> None:
        known = {bytes.fromhex(p.decode()): int(at) for p, at in self._call(lambda: self._client.hgetall(_key("tombstones"))).items()}
        for person, at in self.tombstones.items():
            if known.get(person, -1) < at:
                self._remove(person, at)
        self.tombstones.add(known.items())

    def append(self, events: Sequence[StoredEvent]) -> list[bool]:
        """See `StateStore`."""
        received = time.time_ns() // 1000
        arguments: list[Any] = []
        for e in events:
            value = {
                "event_id": e.event_id, "user_id": e.user_id, "item_id": e.item_id, "event": e.event, "watch_s": e.watch_s,
                "surface": e.surface, "position": e.position, "query": e.query, "request_id": e.request_id, "value": e.value,
                "received": received,
            }  # fmt: skip
            at = round(e.timestamp.timestamp() * 1e6)
            arguments += [id_digest(e.event_id), _events_of(pseudonym(e.user_id)), at, to_json(value)]
        if not arguments:
            return []
        keys = [_key("ids"), _key("sequence"), _key("total")]
        return [bool(new) for new in self._call(lambda: self._append(keys=keys, args=arguments))]

    def people(self, user_ids: Sequence[str]) -> list[Person]:
        """See `StateStore`."""
        if not user_ids:
            return []
        own = [pseudonym(user) for user in user_ids]

        def ask() -> list[Any]:
            pipe = self._client.pipeline(transaction=False)
            for person in own:
                pipe.zrange(_events_of(person), -HISTORY, -1, withscores=True)
                pipe.zcard(_events_of(person))
                pipe.hexists(_key("tombstones"), person.hex())
            replies: list[Any] = pipe.execute()
            return replies

        replies = self._call(ask)
        people = []
        for n, person in enumerate(own):
            rows, total, deleted = replies[3 * n : 3 * n + 3]
            events = tuple(_event(member, score) for member, score in rows)
            older = [] if total <= HISTORY else self._call(partial(self._client.zrange, _events_of(person), 0, -HISTORY - 1))
            seen = seen_with(events, [json.loads(member[16:])["item_id"] for member in older])
            people.append(Person(events, seen, bool(deleted) or person in self.tombstones))
        return people

    def delete_user(self, user_id: str) -> int:
        """See `StateStore`."""
        now = time.time_ns() // 1000
        self.tombstones.add([(pseudonym(user_id), now)])
        return self._remove(pseudonym(user_id), now)

    def _remove(self, person: bytes, at: int) -> int:
        keys = [_events_of(person), _key("tombstones"), _key("total")]
        return int(self._call(lambda: self._forget(keys=keys, args=[person.hex(), at])))

    def put_documents(self, kind: str, values: Mapping[str, Any]) -> int:
        """See `StateStore`."""
        arguments: list[str] = []
        for name, value in values.items():
            arguments += [name, "" if value is None else to_json(value)]
        keys = [_key(f"documents:{kind}"), _key(f"order:{kind}"), _key("changes")]
        return int(self._call(lambda: self._put(keys=keys, args=arguments)))

    def documents(self, kind: str, *, after: int = 0) -> list[Document]:
        """See `StateStore`."""

        def ask() -> list[tuple[bytes, float, bytes]]:
            order = self._client.zrangebyscore(_key(f"order:{kind}"), f"({after}", "+inf", withscores=True)
            values = self._client.hmget(_key(f"documents:{kind}"), [name for name, _ in order]) if order else []
            return [(name, at, value) for (name, at), value in zip(order, values, strict=True)]

        return [
            Document(name.decode(), json.loads(value) if value else None, int(at)) for name, at, value in self._call(ask)
        ]

    def count(self) -> int:
        """See `StateStore`."""
        return int(self._call(lambda: self._client.get(_key("total"))) or 0)

    def close(self) -> None:
        """See `StateStore`."""
        self._client.close()

    def _call(self, what: Callable[[], T]) -> T:
        try:
            return what()
        except self._errors as error:
            raise StateUnavailableError(str(error), place=self.place) from error


def _key(name: str) -> str:
    return _PREFIX + name


def _events_of(person: bytes) -> str:
    return f"{_PREFIX}events:{person.hex()}"


def _event(member: bytes, score: float) -> StoredEvent:
    own = json.loads(member[16:])
    own.pop("received")
    return StoredEvent(timestamp=datetime.fromtimestamp(score / 1e6, UTC), **own)
