"""Applying for a role: filing, listing, settling, and how many there may be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import redis
from concilia_auth import store as store_module
from concilia_auth.errors import ApplicationNotYours, ApplicationsFull, ApplicationUnknown, StoreUnavailable
from concilia_auth.limits import NoLimits
from concilia_auth.service import Applications
from concilia_auth.store import Store
from concilia_kit.problems import Unavailable
from concilia_kit.roles import Role
from concilia_kit.tokens import Principal
from concilia_kit.wire.auth import Application, FiledApplication
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Sign = Callable[[LocalAccount, str], str]
ASKED = {"role": "hospital", "name": "St. Anna", "note": "HAM10000: 10 images."}
DAY = 24 * 3600


def address_of(number: int) -> str:
    return str(to_checksum_address(f"0x{number:040x}"))


def caller_of(number: int, *roles: Role) -> Principal:
    return Principal(address_of(number), frozenset(roles))


def asked(role: Role = Role.HOSPITAL, name: str = "St. Anna") -> Application:
    return Application(role=role, name=name)


@pytest.fixture
def applications(store: Store, memory_roles: Any, clock: Any) -> Applications:
    return Applications(store, memory_roles.of, clock, limits=NoLimits())


# ------------------------------------------------------------------------------------------------------------ over HTTP


async def access(site: httpx.AsyncClient, account: LocalAccount, sign: Sign, audience: str = "auth") -> dict[str, str]:
    message = (await site.post("/v1/challenges", json={"address": account.address})).json()["message"]
    signed = {"message": message, "signature": sign(account, message)}
    session = (await site.post("/v1/sessions", json=signed)).json()
    bearer = {"Authorization": f"Bearer {session['token']}"}
    token = (await site.post("/v1/tokens", json={"audience": audience}, headers=bearer)).json()["token"]
    return {"Authorization": f"Bearer {token}"}


async def test_auth_application_from_filing_to_grant(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any, clock: Any
) -> None:
    admin: LocalAccount = Account.create()
    chain_service.held[admin.address] = frozenset({Role.ADMIN})
    stranger, administrator = await access(site, account, sign), await access(site, admin, sign)
    filed = await site.post("/v1/applications", json=ASKED, headers=stranger)
    assert filed.status_code == 201
    assert filed.headers["Cache-Control"] == "no-store"
    application = FiledApplication.model_validate_json(filed.content)
    assert (application.address, application.filed_at) == (account.address, clock())
    assert {key: filed.json()[key] for key in ASKED} == ASKED
    listed = await site.get("/v1/applications", headers=administrator)
    assert (listed.status_code, listed.json()) == (200, [filed.json()])
    assert account.address in chain_service.roles_asked
    refused = await site.get("/v1/applications", headers=stranger)
    assert (refused.status_code, refused.json()["code"]) == (403, "role_missing")
    declined = await site.delete(f"/v1/applications/{account.address.lower()}", headers=administrator)
    assert (declined.status_code, declined.content) == (204, b"")
    assert (await site.get("/v1/applications", headers=administrator)).json() == []
    gone = await site.delete(f"/v1/applications/{account.address}", headers=administrator)
    assert (gone.status_code, gone.json()["code"]) == (404, "application_unknown")


async def test_auth_application_needs_a_token_for_auth(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign
) -> None:
    elsewhere = await access(site, account, sign, "chain")
    for method, path in (
        ("POST", "/v1/applications"),
        ("GET", "/v1/applications"),
        ("DELETE", f"/v1/applications/{account.address}"),
    ):
        for headers, code in (({}, "unauthorized"), (elsewhere, "token_invalid")):
            answer = await site.request(method, path, json=ASKED if method == "POST" else None, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, code)


async def test_auth_administrator_who_was_dismissed_reads_nothing(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any
) -> None:
    chain_service.held[account.address] = frozenset({Role.ADMIN})
    bearer = await access(site, account, sign)
    chain_service.held.clear()
    answer = await site.get("/v1/applications", headers=bearer)
    assert (answer.status_code, answer.json()["code"]) == (403, "role_missing")


@pytest.mark.parametrize(
    "change",
    [
        {"role": "emperor"},
        {"name": ""},
        {"name": 101 * "a"},
        {"name": "a\x00"},
        {"note": 501 * "a"},
        {"note": "\x00"},
        {"address": address_of(1)},
    ],
)
async def test_auth_application_has_bounds(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, change: dict[str, str], redis_connection: redis.Redis
) -> None:
    answer = await site.post("/v1/applications", json=ASKED | change, headers=await access(site, account, sign))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert not redis_connection.exists("concilia:auth:applications")


async def test_auth_application_full_is_said(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_APPLICATIONS", 0)
    answer = await site.post("/v1/applications", json=ASKED, headers=await access(site, account, sign))
    assert (answer.status_code, answer.json()["code"]) == (503, "applications_full")


# ---------------------------------------------------------------------------------------------------------------- rules


def test_auth_application_replaces_the_one_before(applications: Applications, clock: Any) -> None:
    applications.file(caller_of(1), asked(Role.HOSPITAL))
    clock.forward(1)
    second = applications.file(caller_of(1), asked(Role.AUDITOR))
    assert applications.pending() == [second]


def test_auth_applications_are_listed_newest_first(applications: Applications, clock: Any) -> None:
    filed = []
    for number in (3, 1, 2):
        filed.append(applications.file(caller_of(number), asked()))
        clock.forward(1)
    assert applications.pending() == filed[::-1]


def test_auth_application_is_settled_by_the_grant(
    applications: Applications, memory_roles: Any, redis_connection: redis.Redis
) -> None:
    for number in (1, 2, 3):
        applications.file(caller_of(number), asked(Role.HOSPITAL))
    memory_roles.held[address_of(1)] = frozenset({Role.HOSPITAL})
    memory_roles.held[address_of(2)] = frozenset({Role.AUDITOR})  # another role than it asked for
    assert {filed.address for filed in applications.pending()} == {address_of(2), address_of(3)}
    assert redis_connection.hlen("concilia:auth:applications") == 2
    memory_roles.held.clear()  # what was settled stays settled when the role is taken again
    assert {filed.address for filed in applications.pending()} == {address_of(2), address_of(3)}


def test_auth_application_filed_while_an_older_one_is_settled_stays(
    applications: Applications, store: Store, clock: Any
) -> None:
    old = applications.file(caller_of(1), asked(Role.HOSPITAL))
    clock.forward(1)
    new = applications.file(caller_of(1), asked(Role.AUDITOR))
    store.settle_application(old)
    assert applications.pending() == [new]
    store.settle_application(new)
    store.settle_application(new)
    assert applications.pending() == []


def test_auth_application_is_removed_by_its_owner_or_an_administrator(applications: Applications) -> None:
    for number in (1, 2):
        applications.file(caller_of(number), asked())
    for stranger in (caller_of(3), caller_of(3, Role.HOSPITAL, Role.COORDINATOR, Role.AUDITOR, Role.CLINICIAN)):
        with pytest.raises(ApplicationNotYours):
            applications.remove(stranger, address_of(1))
        with pytest.raises(ApplicationNotYours):  # and does not learn whether there is one
            applications.remove(stranger, address_of(9))
    applications.remove(caller_of(1), address_of(1))
    applications.remove(caller_of(3, Role.ADMIN), address_of(2))
    assert applications.pending() == []
    with pytest.raises(ApplicationUnknown):
        applications.remove(caller_of(1), address_of(1))


def test_auth_application_lives_thirty_days(
    applications: Applications, clock: Any, redis_connection: redis.Redis
) -> None:
    applications.file(caller_of(1), asked())
    assert 29 * DAY < redis_connection.ttl("concilia:auth:applications") <= 30 * DAY
    clock.forward(30 * DAY - 1)
    assert len(applications.pending()) == 1
    clock.forward(1)
    assert applications.pending() == []
    with pytest.raises(ApplicationUnknown):
        applications.remove(caller_of(1), address_of(1))


def test_auth_applications_are_a_thousand_at_most(applications: Applications, clock: Any) -> None:
    for number in range(1, 1001):
        applications.file(caller_of(number), asked())
        clock.forward(1)
    with pytest.raises(ApplicationsFull):
        applications.file(caller_of(1001), asked())
    applications.file(caller_of(7), asked(name="again"))  # replaces
    assert len(applications.pending()) == 1000
    applications.remove(caller_of(8), address_of(8))
    applications.file(caller_of(1001), asked())
    clock.forward(30 * DAY - 1001)  # the first ones end, and make room
    with pytest.raises(ApplicationsFull):
        applications.file(caller_of(1002), asked())
    clock.forward(2)
    applications.file(caller_of(1002), asked())
    assert address_of(1) not in {filed.address for filed in applications.pending()}


def test_auth_applications_filed_together_do_not_pass_the_limit(
    applications: Applications, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_APPLICATIONS", 5)
    together = threading.Barrier(20)

    def attempt(number: int) -> bool:
        together.wait()
        try:
            applications.file(caller_of(number), asked())
        except ApplicationsFull:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(attempt, range(1, 21)))
    assert outcomes.count(True) == 5
    assert len(applications.pending()) == 5


def test_auth_applications_are_not_listed_where_the_roles_cannot_be_had(
    store: Store, clock: Any, redis_connection: redis.Redis
) -> None:
    def away(_address: str) -> frozenset[Role]:
        raise Unavailable("away", code="roles_unavailable")

    applications = Applications(store, away, clock, limits=NoLimits())
    applications.file(caller_of(1), asked())
    with pytest.raises(Unavailable):
        applications.pending()
    assert redis_connection.hlen("concilia:auth:applications") == 1


def test_auth_applications_say_when_redis_is_away() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    filed = FiledApplication(role=Role.HOSPITAL, name="a", address=address_of(1), filed_at=now)
    with redis.Redis(port=1, retry=None) as nobody:
        store = Store(nobody)
        for work in (
            lambda: store.put_application(filed),
            lambda: store.applications(now),
            lambda: store.drop_application(filed.address, now),
            lambda: store.settle_application(filed),
        ):
            with pytest.raises(StoreUnavailable):
                work()


_numbers = st.integers(1, 4)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("file"), _numbers, st.sampled_from(Role)),
        st.tuples(st.just("remove"), _numbers, st.none()),
        st.tuples(st.just("grant"), _numbers, st.sampled_from(Role)),
        st.tuples(st.just("revoke"), _numbers, st.none()),
        st.tuples(st.just("wait"), st.integers(0, 40), st.none()),
        st.tuples(st.just("list"), st.none(), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_steps)
def test_auth_applications_are_as_a_dictionary_would_have_them(
    applications: Applications,
    memory_roles: Any,
    clock: Any,
    redis_connection: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[str, Any, Any]],
) -> None:
    monkeypatch.setattr(store_module, "MAX_APPLICATIONS", 3)
    redis_connection.flushall()
    memory_roles.held.clear()
    kept: dict[str, FiledApplication] = {}
    life = timedelta(days=30)
    for action, subject, role in [*steps, ("list", None, None)]:
        clock.forward(0.001)
        kept = {address: filed for address, filed in kept.items() if clock() < filed.filed_at + life}
        if action == "file":
            expected = address_of(subject) in kept or len(kept) < 3
            try:
                kept[address_of(subject)] = applications.file(caller_of(subject), asked(role))
                assert expected
            except ApplicationsFull:
                assert not expected
        elif action == "remove":
            expected = address_of(subject) in kept
            try:
                applications.remove(caller_of(subject), address_of(subject))
                assert expected
            except ApplicationUnknown:
                assert not expected
            kept.pop(address_of(subject), None)
        elif action == "grant":
            memory_roles.held[address_of(subject)] = memory_roles.of(address_of(subject)) | {role}
        elif action == "revoke":
            memory_roles.held.pop(address_of(subject), None)
        elif action == "wait":
            clock.forward(subject * DAY)
            kept = {address: filed for address, filed in kept.items() if clock() < filed.filed_at + life}
        else:
            kept = {address: filed for address, filed in kept.items() if filed.role not in memory_roles.of(address)}
            assert applications.pending() == sorted(kept.values(), key=lambda filed: filed.filed_at, reverse=True)
