"""One's own sessions are seen and ended, an administrator ends anybody's, and what was taken with them ends as well."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import redis
from concilia_auth import devices, errors
from concilia_auth.service import AuthService
from concilia_auth.sessions import Sessions
from concilia_auth.settings import AuthSettings
from concilia_auth.store import MAX_LISTED, SessionRecord, Store, session_id
from concilia_kit.problems import Unauthorized
from concilia_kit.roles import Role
from concilia_kit.tokens import Principal, TokenVerifier
from concilia_kit.wire.auth import Audience
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import given
from hypothesis import strategies as st

Sign = Callable[[LocalAccount, str], str]
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


async def sign_in(site: httpx.AsyncClient, account: LocalAccount, sign: Sign, agent: str = FIREFOX) -> dict[str, Any]:
    message = (await site.post("/v1/challenges", json={"address": account.address})).json()["message"]
    body = {"message": message, "signature": sign(account, message)}
    answer = await site.post("/v1/sessions", json=body, headers={"User-Agent": agent})
    assert answer.status_code == 201, answer.text
    session: dict[str, Any] = answer.json()
    return session


async def bearer(site: httpx.AsyncClient, session: dict[str, Any], audience: str = "auth") -> dict[str, str]:
    """A header with an access token."""
    headers = {"Authorization": f"Bearer {session['token']}"}
    answer = await site.post("/v1/tokens", json={"audience": audience}, headers=headers)
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


async def lives(site: httpx.AsyncClient, session: dict[str, Any]) -> bool:
    answer = await site.get("/v1/session", headers={"Authorization": f"Bearer {session['token']}"})
    return answer.status_code == 200


# ------------------------------------------------------------------------------------------------------------ over HTTP


async def test_auth_sessions_are_listed_for_their_own_address(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, clock: Any, chain_service: Any
) -> None:
    clock.forward(-60)  # a token that is dated in the future is none
    first = await sign_in(site, account, sign)
    clock.forward(60)
    second = await sign_in(site, account, sign, "python-httpx/0.28.1")
    await sign_in(site, Account.create(), sign)
    told = (await site.get("/v1/sessions", headers=await bearer(site, second))).json()
    assert [each["id"] for each in told] == [session_id(second["token"]), session_id(first["token"])]
    assert [each["device"] for each in told] == ["python-httpx", "Firefox, Linux"]
    assert [each["is_current"] for each in told] == [True, False]
    assert [datetime.fromisoformat(each["opened_at"]) for each in told] == [
        pytest.approx(clock(), abs=timedelta(seconds=1)),
        pytest.approx(clock() - timedelta(seconds=60), abs=timedelta(seconds=1)),
    ]
    assert all(each["opened_at"] <= each["last_used_at"] <= each["expires_at"] for each in told)
    assert not any(session["token"] in str(told) for session in (first, second))


async def test_auth_sessions_one_of_ones_own_is_ended(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any
) -> None:
    lost, mine = await sign_in(site, account, sign), await sign_in(site, account, sign)
    kept_message = (await site.post("/v1/challenges", json={"address": account.address})).json()["message"]
    taken, headers = await bearer(site, lost), await bearer(site, mine)
    where = f"/v1/sessions/{account.address}/{session_id(lost['token'])}"
    assert (await site.delete(where, headers=headers)).status_code == 204
    assert (await lives(site, lost), await lives(site, mine)) == (False, True)
    refused = await site.get("/v1/sessions", headers=taken)
    assert (refused.status_code, refused.json()["code"]) == (401, "session_ended")
    again = await site.delete(where, headers=headers)
    assert (again.status_code, again.json()["code"]) == (404, "session_not_found")
    body = {"message": kept_message, "signature": sign(account, kept_message)}
    assert (await site.post("/v1/sessions", json=body)).json()["code"] == "nonce_unknown", "a way back in"


@pytest.mark.parametrize("roles", [frozenset[Role](), *(frozenset({role}) for role in Role)])
async def test_auth_sessions_of_others_are_ended_by_administrators_alone(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any, roles: frozenset[Role]
) -> None:
    other: LocalAccount = Account.create()
    chain_service.held[account.address] = roles
    theirs, mine = await sign_in(site, other, sign), await sign_in(site, account, sign)
    headers, id_ = await bearer(site, mine), session_id(theirs["token"])
    one = await site.delete(f"/v1/sessions/{other.address}/{id_}", headers=headers)
    assert (one.status_code, one.json()["code"]) == (403, "not_yours")
    as_mine = await site.delete(f"/v1/sessions/{account.address}/{id_}", headers=headers)
    assert (as_mine.status_code, as_mine.json()["code"]) == (404, "session_not_found")
    assert id_ not in (await site.get("/v1/sessions", headers=headers)).text
    assert await lives(site, theirs)
    everything = await site.delete(f"/v1/sessions/{other.address}", headers=headers)
    assert everything.status_code == (204 if Role.ADMIN in roles else 403)
    assert await lives(site, theirs) is (Role.ADMIN not in roles)
    assert await lives(site, mine)


async def test_auth_sessions_all_but_the_one_that_asks_are_ended(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any
) -> None:
    others = [await sign_in(site, account, sign) for _ in range(3)]
    mine = await sign_in(site, account, sign)
    headers = await bearer(site, mine)
    assert (await site.delete(f"/v1/sessions/{account.address}", headers=headers)).status_code == 204
    assert [await lives(site, each) for each in [*others, mine]] == [False, False, False, True]
    (left,) = (await site.get("/v1/sessions", headers=headers)).json()
    assert left["is_current"] is True


async def test_auth_sessions_who_ends_others_must_have_signed_in_a_little_while_ago(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any, clock: Any
) -> None:
    other: LocalAccount = Account.create()
    chain_service.held[account.address] = frozenset({Role.ADMIN})
    clock.forward(-901)
    left_open, lost, theirs = [await sign_in(site, each, sign) for each in (account, account, other)]
    clock.forward(901)
    headers = await bearer(site, left_open)
    everything = f"/v1/sessions/{account.address}"
    for where in (everything, f"{everything}/{session_id(lost['token'])}"):
        refused = await site.delete(where, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "sign_in_again")
    assert await lives(site, lost)
    assert (await site.delete(f"/v1/sessions/{other.address}", headers=headers)).status_code == 204, "an incident"
    assert not await lives(site, theirs)
    itself = f"{everything}/{session_id(left_open['token'])}"
    assert (await site.delete(itself, headers=headers)).status_code == 204, "is signing out"
    anew = await bearer(site, await sign_in(site, account, sign))
    assert (await site.delete(everything, headers=anew)).status_code == 204
    assert not await lives(site, lost)


async def test_auth_sessions_that_ended_are_told_to_services_while_their_tokens_live(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any, clock: Any
) -> None:
    chain_service.held[account.address] = frozenset({Role.CLINICIAN})
    used, unused, living = [await sign_in(site, account, sign) for _ in range(3)]
    nobody = await sign_in(site, Account.create(), sign)
    for session in (used, living, nobody):
        await bearer(site, session, "model")
    before = await site.get("/v1/ended-sessions")
    assert before.json() == {"sessions": []}
    for session in (used, unused, nobody):
        await site.delete("/v1/sessions", headers={"Authorization": f"Bearer {session['token']}"})
    told = await site.get("/v1/ended-sessions", headers={"If-None-Match": before.headers["ETag"]})
    # Who took no token, or has no role to lose, is not told: strangers cannot make the list long.
    assert told.json() == {"sessions": [session_id(used["token"])]}
    same = await site.get("/v1/ended-sessions", headers={"If-None-Match": told.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    clock.forward(299)
    assert (await site.get("/v1/ended-sessions")).json() == told.json()
    clock.forward(12)
    assert (await site.get("/v1/ended-sessions")).json() == {"sessions": []}


async def test_auth_sessions_a_token_without_roles_ends_with_its_session(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any
) -> None:
    session = await sign_in(site, account, sign)
    taken, wish = await bearer(site, session), {"role": "hospital", "name": "a"}
    assert (await site.post("/v1/applications", json=wish, headers=taken)).status_code == 201
    await site.delete("/v1/sessions", headers={"Authorization": f"Bearer {session['token']}"})
    refused = await site.post("/v1/applications", json=wish, headers=taken)
    assert (refused.status_code, refused.json()["code"]) == (401, "session_ended")


# -------------------------------------------------------------------------------------------------------------- service


def test_auth_sessions_signing_out_ends_tokens_or_they_are_not_given(
    service: AuthService,
    settings: AuthSettings,
    store: Store,
    account: LocalAccount,
    sign: Sign,
    memory_roles: Any,
    clock: Any,
) -> None:
    memory_roles.held[account.address] = frozenset({Role.CLINICIAN})
    sessions = Sessions(settings, store, clock)
    for _ in range(30):
        challenge = service.challenge(account.address)
        opened = service.sign_in(challenge.message, sign(account, challenge.message))

        def take(token: str = opened.token) -> str | None:
            try:
                return service.access_token(token, Audience.MODEL).token
            except errors.SessionUnknown:
                return None

        with ThreadPoolExecutor(2) as pool:
            taking = pool.submit(take)
            pool.submit(service.sign_out, opened.token).result()
        token = taking.result()
        ended = frozenset(sessions.ended().sessions)
        verifier = TokenVerifier(Audience.MODEL, service.published_keys, ended=ended.__contains__)
        if token is not None:
            with pytest.raises(Unauthorized) as raised:
                verifier.verify(token)
            assert raised.value.problem_code == "session_ended"


def test_auth_sessions_signing_in_anew_in_a_browser_ends_the_tokens_of_before(
    service: AuthService, store: Store, account: LocalAccount, sign: Sign, memory_roles: Any, clock: Any
) -> None:
    memory_roles.held[account.address] = frozenset({Role.CLINICIAN})
    texts = [service.challenge(account.address).message for _ in range(2)]
    former = service.browser_sign_in(texts[0], sign(account, texts[0]), None)
    service.access_token(former.token, Audience.MODEL)
    service.browser_sign_in(texts[1], sign(account, texts[1]), former.token)
    assert store.ended_sessions(clock()) == [session_id(former.token)]


def test_auth_sessions_the_newest_are_told_and_all_are_ended(
    settings: AuthSettings, store: Store, clock: Any, redis_connection: redis.Redis
) -> None:
    address, many = "0x" + 40 * "1", MAX_LISTED + 450
    for number in range(many):
        record = SessionRecord(address=address, expires_at=clock() + timedelta(hours=12))
        store.put_session(f"token {number}", record, 3600, clock())
        clock.forward(1)
    store.note_token(session_id("token 0"), 300)
    sessions, caller = Sessions(settings, store, clock), Principal(address, frozenset(), session=session_id("token 7"))
    told = sessions.of(caller)
    assert [each.id for each in told] == [session_id(f"token {many - 1 - number}") for number in range(MAX_LISTED)]
    sessions.end_all(caller, address)
    assert redis_connection.keys("concilia:auth:session:*") == ["concilia:auth:session:" + session_id("token 7")]
    assert sessions.ended().sessions == (session_id("token 0"),)


def test_auth_sessions_idle_ones_are_not_told_and_use_is(
    settings: AuthSettings, store: Store, clock: Any, redis_connection: redis.Redis
) -> None:
    address, idle = "0x" + 40 * "1", settings.idle_seconds
    for token in ("idle", "used"):
        record = SessionRecord(address=address, expires_at=clock() + timedelta(hours=12))
        store.put_session(token, record, idle, clock())
    redis_connection.delete("concilia:auth:session:" + session_id("idle"))
    clock.forward(600)
    redis_connection.expire("concilia:auth:session:" + session_id("used"), idle - 500)
    (told,) = store.sessions(address, clock(), idle)
    assert told.id == session_id("used")
    assert told.used_at == pytest.approx(clock() - timedelta(seconds=500), abs=timedelta(seconds=2))


def test_auth_sessions_the_list_of_an_address_goes_with_its_last(
    store: Store, redis_connection: redis.Redis, clock: Any
) -> None:
    address, now = "0x" + 40 * "1", clock()
    for token, opened in (("old", now - timedelta(hours=13)), ("new", now)):
        record = SessionRecord(address=address, expires_at=opened + timedelta(hours=12))
        store.put_session(token, record, 3600, opened)
    assert store.session_ids(address) == [session_id("new")]
    assert 0 < redis_connection.ttl(f"concilia:auth:sessions-of:{address}") <= 12 * 3600


# -------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (FIREFOX, "Firefox, Linux"),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0",
            "Edge, Windows",
        ),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 14_0) AppleWebKit/605 Version/17.0 Safari/605.1", "Safari, macOS"),
        ("Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/140.0 Mobile Safari", "Chrome, Android"),
        ("python-httpx/0.28.1", "python-httpx"),
        ("", "unknown"),
        (None, "unknown"),
        ("\x1b[31m", "unknown"),
    ],
)
def test_auth_devices_are_two_words(header: str | None, words: str) -> None:
    assert devices.described(header) == words


@given(st.text(max_size=600))
def test_auth_devices_are_bounded_and_plain(header: str) -> None:
    found = devices.described(header)
    assert 0 < len(found) <= 100
    assert found.isascii()
    assert found.isprintable()


def test_auth_sessions_times_are_aware(store: Store, clock: Any) -> None:
    address = "0x" + 40 * "1"
    record = SessionRecord(address=address, expires_at=clock() + timedelta(hours=1))
    store.put_session("token", record, 60, clock())
    assert store.sessions(address, clock(), 60)[0].opened_at.tzinfo is UTC
