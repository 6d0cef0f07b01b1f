"""How often somebody may ask, on a real Redis: by address, by source, together with other replicas."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import redis
from asgi_lifespan import LifespanManager
from concilia_auth import errors, limits
from concilia_auth.limits import Kind, Limits, NoLimits, RateLimits
from concilia_auth.main import build
from concilia_auth.metrics import AuthMetrics
from concilia_auth.settings import AuthSettings
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import given
from hypothesis import strategies as st

Sign = Callable[[LocalAccount, str], str]
ADDRESS, OTHER = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
HERE, THERE = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def make(redis_connection: redis.Redis) -> Callable[..., RateLimits]:
    def made(by_address: int = 3, by_source: int = 0) -> RateLimits:
        return RateLimits(redis_connection, by_address, by_source, AuthMetrics())

    return made


def passed(work: Callable[[], None], tries: int) -> int:
    """How many of so many tries passed; each that did not says when to come back."""
    told = []
    for _ in range(tries):
        try:
            work()
        except errors.RateLimited as refused:
            told.append(int(refused.headers["Retry-After"]))
    assert all(1 <= seconds <= 60 for seconds in told)
    return tries - len(told)


def test_auth_limits_an_address_has_its_own(make: Callable[..., RateLimits]) -> None:
    limited = make(by_address=3)
    assert passed(lambda: limited.of_address(Kind.APPLICATION, ADDRESS), 10) == 3
    assert passed(lambda: limited.of_address(Kind.APPLICATION, OTHER), 10) == 3
    assert passed(lambda: limited.of_address(Kind.TOKEN, ADDRESS), 30) == 15  # another kind, five times as many


def test_auth_limits_a_source_has_its_own(make: Callable[..., RateLimits]) -> None:
    limited = make(by_source=4)
    assert passed(lambda: limited.of_source(Kind.CHALLENGE, HERE), 10) == 4
    assert passed(lambda: limited.of_source(Kind.CHALLENGE, THERE), 10) == 4
    assert passed(lambda: limited.of_source(Kind.SIGN_IN, HERE), 10) == 4


def test_auth_limits_who_asks_in_anothers_name_locks_nobody_out(make: Callable[..., RateLimits]) -> None:
    limited = make(by_address=3)
    assert passed(lambda: limited.of_claimed_address(Kind.CHALLENGE, ADDRESS, HERE), 50) == 3
    assert passed(lambda: limited.of_claimed_address(Kind.CHALLENGE, ADDRESS, THERE), 3) == 3
    everywhere = sum(
        passed(lambda place=place: limited.of_claimed_address(Kind.SIGN_IN, ADDRESS, place), 3)  # type: ignore[misc]
        for place in (f"192.0.2.{number}" for number in range(20))
    )
    assert everywhere == 30


def test_auth_limits_replicas_count_together(make: Callable[..., RateLimits]) -> None:
    first, second = make(by_address=4), make(by_address=4)
    taken = sum(passed(lambda it=it: it.of_address(Kind.TOKEN, ADDRESS), 15) for it in (first, second))  # type: ignore[misc]
    assert taken == 20


def test_auth_limits_forget_what_is_a_while_ago(make: Callable[..., RateLimits], redis_connection: redis.Redis) -> None:
    limited = make(by_address=1)
    assert passed(lambda: limited.of_address(Kind.TOKEN, ADDRESS), 9) == 5
    keys = redis_connection.keys("concilia:auth:rate*")
    assert keys
    assert all(0 < redis_connection.ttl(key) <= 120 for key in keys)


@pytest.mark.parametrize("free", ["none", "zero"])
def test_auth_limits_of_nobody(make: Callable[..., RateLimits], free: str, redis_connection: redis.Redis) -> None:
    limited: Limits = NoLimits() if free == "none" else make(by_address=0, by_source=0)
    for _ in range(50):
        limited.of_source(Kind.TOKEN, HERE)
        limited.of_address(Kind.TOKEN, ADDRESS)
        limited.of_claimed_address(Kind.TOKEN, ADDRESS, HERE)
    assert redis_connection.dbsize() == 0


def test_auth_limits_without_redis_let_nobody_in() -> None:
    with redis.Redis(port=1, retry=None, decode_responses=True) as nobody:
        limited = RateLimits(nobody, 1, 1, AuthMetrics())
        for work in (
            lambda: limited.of_source(Kind.TOKEN, HERE),
            lambda: limited.of_address(Kind.TOKEN, ADDRESS),
            lambda: limited.of_claimed_address(Kind.TOKEN, ADDRESS, HERE),
        ):
            with pytest.raises(errors.StoreUnavailable):
                work()


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", limits.UNKNOWN),
        ("192.0.2.1, 10.0.0.1", limits.UNKNOWN),
        ("", limits.UNKNOWN),
        (None, limits.UNKNOWN),
    ],
)
def test_auth_limits_source_of_a_host(host: str | None, source: str) -> None:
    assert limits.source_of(host) == source


@given(st.one_of(st.text(), st.ip_addresses().map(str)))
def test_auth_limits_any_host_has_a_source(host: str) -> None:
    assert len(limits.source_of(host)) <= 43


# ------------------------------------------------------------------------------------------------------------ over HTTP


@pytest.fixture
async def strict(settings: AuthSettings, chain_service: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = build(settings.model_copy(update={"chain_url": chain_service.url, "address_rate": 2, "source_rate": 6}))
    async with (
        LifespanManager(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://auth") as client,
    ):
        yield client


async def statuses(http: httpx.AsyncClient, times: int, path: str, body: Any, headers: Any = None) -> list[int]:
    answers = [await http.post(path, json=body, headers=headers) for _ in range(times)]
    for refused in (each for each in answers if each.status_code == 429):
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["code"] == "rate_limited"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
    return [each.status_code for each in answers]


async def test_auth_limits_over_http(strict: httpx.AsyncClient, account: LocalAccount, sign: Sign) -> None:
    asked = {"address": account.address}
    message = (await strict.post("/v1/challenges", json=asked)).json()["message"]
    assert await statuses(strict, 3, "/v1/challenges", asked) == [200, 429, 429]
    others = [await statuses(strict, 1, "/v1/challenges", {"address": Account.create().address}) for _ in range(4)]
    assert others == [[200], [200], [429], [429]]  # the source has asked six times by now, four of them in vain

    signed = {"message": message, "signature": sign(account, message)}
    session = await strict.post("/v1/sessions", json=signed)
    assert session.status_code == 201
    assert await statuses(strict, 6, "/v1/sessions", signed) == [401] * 5 + [429]
    assert await statuses(strict, 1, "/v1/browser-sessions", signed) == [429]  # signs in as well

    bearer = {"Authorization": f"Bearer {session.json()['token']}"}
    token = (await strict.post("/v1/tokens", json={"audience": "auth"}, headers=bearer)).json()["token"]
    assert await statuses(strict, 10, "/v1/tokens", {"audience": "auth"}, bearer) == [200] * 9 + [429]
    caller = {"Authorization": f"Bearer {token}"}
    application = {"role": "hospital", "name": "St. Anna"}
    assert await statuses(strict, 3, "/v1/applications", application, caller) == [201, 201, 429]
    assert "concilia_rate_limited_total" in (await strict.get("/metrics")).text


async def test_auth_limits_each_source_by_itself(settings: AuthSettings, chain_service: Any) -> None:
    app = build(settings.model_copy(update={"chain_url": chain_service.url, "source_rate": 2}))
    async with LifespanManager(app):
        for host in ("192.0.2.1", "192.0.2.2"):
            transport = httpx.ASGITransport(app, client=(host, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://auth") as http:
                told = [await statuses(http, 1, "/v1/challenges", {"address": Account.create().address}) for _ in "123"]
                assert told == [[200], [200], [429]]
