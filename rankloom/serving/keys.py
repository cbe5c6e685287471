"""API keys: who may do what, how often, until when.

A keys file is YAML, one entry a key; the key itself is kept as its SHA-256, so that the file can lie in a repository:

    - name: website
      sha256: 5e88...            # printf %s THE-KEY | sha256sum
      scopes: [recommend, events]
      rate: 200                  # requests a second; burst: 400
      expires: 2027-01-01

`RANKLOOM_API_KEY` is one more key, with every scope.
"""

from __future__ import annotations

import hmac
from datetime import UTC, date, datetime, time
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, Literal

import yaml
from pydantic import Field

from rankloom.errors import RankloomError, fault_of
from rankloom.serving.contract import Body
from rankloom.serving.limits import Buckets

Scope = Literal["recommend", "events", "items", "users", "console", "metrics", "admin"]
ALL: Final[tuple[Scope, ...]] = ("recommend", "events", "items", "users", "console", "metrics", "admin")
# first match wins; `admin` opens every door
_NEEDS: Final[tuple[tuple[str, Scope], ...]] = (
    ("/v1/recommend", "recommend"),
    ("/v1/search", "recommend"),
    ("/v1/events", "events"),
    ("/v1/items", "items"),
    ("/v1/users", "users"),
    ("/v1/console", "console"),
    ("/v1/", "admin"),
)


class Key(Body):
    """One entry of the keys file."""

    name: str = Field(min_length=1, max_length=100)
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: list[Scope] = Field(min_length=1)
    rate: float | None = Field(default=None, gt=0, le=1e6)
    burst: float | None = Field(default=None, ge=1, le=1e6)
    expires: datetime | date | None = None

    def expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        if self.expires is None:
            return False
        end = self.expires if isinstance(self.expires, datetime) else datetime.combine(self.expires, time())
        return now >= (end.replace(tzinfo=UTC) if end.tzinfo is None else end)


class RefusedError(RankloomError):
    """A request that its key does not allow. `status` is HTTP's; `retry_after` in seconds."""

    def __init__(self, status: int, code: str, message: str, action: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, action=action, code=code)
        self.status = status
        self.retry_after = retry_after


class KeyRing:
    """Every key of a server. Without any, everything is allowed (the server then listens on loopback only)."""

    def __init__(self, keys: list[Key] | None = None, *, master: str | None = None) -> None:
        own = list(keys or [])
        if master:
            own.append(Key(name="RANKLOOM_API_KEY", sha256=sha256(master.encode()).hexdigest(), scopes=list(ALL)))
        self._keys = {key.sha256: key for key in own}
        self._buckets = Buckets()

    def __bool__(self) -> bool:
        return bool(self._keys)

    def admit(self, path: str, given: str) -> str:
        """The name of the key that opens `path`.

        Raises:
            RefusedError: 401 no such key, 403 not allowed to it, 429 too often.
        """
        if not self._keys or not path.startswith("/v1"):
            return "open"
        needed = next(scope for prefix, scope in (*_NEEDS, ("", "admin")) if path.startswith(prefix))
        if not given:
            raise RefusedError(401, "key-missing", "this server needs an API key", "send it in the header X-Api-Key")
        digest = sha256(given.encode("utf-8", "surrogateescape")).hexdigest()
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(digest, key.sha256):
            raise RefusedError(401, "key-unknown", "this API key is not known here", "check the header X-Api-Key")
        if key.expired(datetime.now(UTC)):
            raise RefusedError(401, "key-expired", f"the key {key.name!r} has expired", "ask the operator for a new one")
        if needed not in key.scopes and "admin" not in key.scopes:
            raise RefusedError(
                403, "scope-missing", f"the key {key.name!r} has no scope {needed!r}", "use a key with that scope"
            )
        if key.rate is not None:
            wait = self._buckets.take(key.name, rate=key.rate, burst=key.burst or max(1.0, key.rate))
            if wait:
                raise RefusedError(
                    429, "rate-limited", f"the key {key.name!r} allows {key.rate:g} requests a second", "slow down",
                    retry_after=wait,
                )  # fmt: skip
        return key.name


def read_keys(path: Path | None) -> list[Key]:
    """Keys of a YAML file.

    Raises:
        RankloomError: no such file, no YAML, an entry that is none, a name or a key that comes twice.
    """
    if path is None:
        return []
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(raw, list):
            raise ValueError("a list of keys is needed")
        keys = [Key.model_validate(entry) for entry in raw]
        for name, values in (("name", [k.name for k in keys]), ("sha256", [k.sha256 for k in keys])):
            if len(set(values)) < len(values):
                raise ValueError(f"a {name} comes twice")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RankloomError(
            f"the keys cannot be read: {fault_of(error)}", place=str(path), action="see docs/serving.md", code="keys-file"
        ) from None
    return keys
