"""How often somebody may ask, by address and by source, counted in Redis: replicas count together.

A source is whoever connects, or whom a trusted proxy names (`trusted_proxies`). It may be the door of a whole hospital,
so its limit is wide. An address has a narrow one. Where nothing proves yet whose address it is, which is so until
somebody signs, the narrow limit is that of the address from one source: who asks in somebody else's name uses up none
of what the other may ask from elsewhere. From all sources together an address may then ask ten times as often.

Source: RFC 6585, section 4 (429 Too Many Requests); the counting is `limits`' sliding window counter.
"""

from __future__ import annotations

import ipaddress
import math
import time
from enum import StrEnum
from typing import Protocol

import redis
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from concilia_auth.errors import RateLimited
from concilia_auth.metrics import AuthMetrics
from concilia_auth.store import translated

UNKNOWN = "unknown"
"""The source of those who have no address of the Internet Protocol: a socket of this machine."""

_PREFIX = "concilia:auth:rate"
_EVERYWHERE = 10  # times what an address may ask from one source
_NEIGHBOURHOOD = 64  # bits: who has one address of IPv6 has as many as there are below it (RFC 6177)


class Kind(StrEnum):
    """What is counted apart."""

    CHALLENGE = "challenge"
    SIGN_IN = "sign_in"
    TOKEN = "token"  # noqa: S105 - a word of the metrics
    APPLICATION = "application"
    CREDENTIAL = "credential"


_TIMES = {Kind.TOKEN: 5}  # a session asks for one a service and page


class Limits(Protocol):
    """Who is told to come back later."""

    def of_source(self, kind: Kind, source: str) -> None:
        """Count a request by where it comes from. Raises `RateLimited`, `StoreUnavailable`."""
        ...

    def of_address(self, kind: Kind, address: str) -> None:
        """Count a request of somebody who proved to be this address. Raises `RateLimited`, `StoreUnavailable`."""
        ...

    def of_claimed_address(self, kind: Kind, address: str, source: str) -> None:
        """Count a request that names an address and proves nothing. Raises `RateLimited`, `StoreUnavailable`."""
        ...


class RateLimits:
    """Requests of one kind in a minute: so many by address, so many by source; 0 sets no limit."""

    def __init__(self, client: redis.Redis, by_address: int, by_source: int, metrics: AuthMetrics) -> None:
        # The address is not used where there is a pool; its scheme says which client library it is.
        storage = RedisStorage("redis://", connection_pool=client.connection_pool, key_prefix=_PREFIX)
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._by_address = by_address
        self._by_source = by_source
        self._metrics = metrics

    def of_source(self, kind: Kind, source: str) -> None:
        """Count a request by where it comes from. Raises `RateLimited`, `StoreUnavailable`."""
        self._hit(kind, "source", self._by_source, source)

    def of_address(self, kind: Kind, address: str) -> None:
        """Count a request of somebody who proved to be this address. Raises `RateLimited`, `StoreUnavailable`."""
        self._hit(kind, "address", self._by_address, address)

    def of_claimed_address(self, kind: Kind, address: str, source: str) -> None:
        """Count a request that names an address and proves nothing. Raises `RateLimited`, `StoreUnavailable`."""
        self._hit(kind, "address", self._by_address, address, source)
        self._hit(kind, "address", self._by_address * _EVERYWHERE, address)

    def _hit(self, kind: Kind, by: str, most: int, *who: str) -> None:
        if most == 0:
            return
        limit = RateLimitItemPerMinute(most * _TIMES.get(kind, 1))
        with translated():
            if self._limiter.hit(limit, kind.value, by, *who):
                return
            free_at = self._limiter.get_window_stats(limit, kind.value, by, *who).reset_time
        self._metrics.rate_limited.labels(kind.value, by).inc()
        seconds = max(1, math.ceil(free_at - time.time()))
        raise RateLimited(f"this {by} asks too often; come back in {seconds} s", headers={"Retry-After": str(seconds)})


class NoLimits:
    """Everybody may ask as often as they like."""

    def of_source(self, kind: Kind, source: str) -> None:
        """Pass."""

    def of_address(self, kind: Kind, address: str) -> None:
        """Pass."""

    def of_claimed_address(self, kind: Kind, address: str, source: str) -> None:
        """Pass."""


def source_of(host: str | None) -> str:
    """Who counts as one source with a host: itself, and of IPv6 its network of 64 bits."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return UNKNOWN
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # Without the zone of a link, which the network's own class refuses.
    return str(ipaddress.IPv6Network((int(address), _NEIGHBOURHOOD), strict=False))
