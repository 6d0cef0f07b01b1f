"""Sessions of browsers: the cookie, who may use it, and what ends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from http.cookies import SimpleCookie
from typing import Any

import httpx
import jwt
import pytest
import redis
from concilia_auth import browser, errors
from concilia_kit.roles import Role
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import given
from hypothesis import strategies as st

Sign = Callable[[LocalAccount, str], str]

COOKIE = "__Host-concilia"
ORIGIN = "http://127.0.0.1:8000"
OWN_PAGE = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
FOREIGN_PAGES: list[dict[str, str]] = [
    {"Origin": "https://evil.example"},
    {"Origin": "https://127.0.0.1:8000"},
    {"Origin": "http://127.0.0.1:8001"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": ""},
    {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
]


async def challenge(site: httpx.AsyncClient, account: LocalAccount) -> str:
    answer = await site.post("/v1/challenges", json={"address": account.address})
    return str(answer.json()["message"])


async def sign_in(site: httpx.AsyncClient, account: LocalAccount, sign: Sign) -> httpx.Response:
    message = await challenge(site, account)
    body = {"message": message, "signature": sign(account, message)}
    answer = await site.post("/v1/browser-sessions", json=body, headers=OWN_PAGE)
    assert answer.status_code == 201, answer.text
    return answer


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def csrf(answer: httpx.Response) -> dict[str, str]:
    return {"X-CSRF-Token": answer.json()["csrf_token"]}


# ----------------------------------------------------------------------------------------------------------- signing in


async def test_auth_browser_from_sign_in_to_sign_out(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any
) -> None:
    chain_service.held[account.address] = frozenset({Role.CLINICIAN})
    signed = await sign_in(site, account, sign)
    assert signed.headers["Cache-Control"] == "no-store"
    assert set(signed.json()) == {"address", "roles", "expires_at", "csrf_token"}
    seen = await site.get("/v1/browser-session")
    assert (seen.status_code, seen.json()) == (200, signed.json())
    token = await site.post("/v1/tokens", json={"audience": "model"}, headers=OWN_PAGE | csrf(signed))
    assert (token.status_code, token.json()["roles"]) == (200, ["clinician"])
    ended = await site.delete("/v1/browser-session", headers=OWN_PAGE | csrf(signed))
    assert (ended.status_code, ended.content) == (204, b"")
    assert ended.headers["Clear-Site-Data"] == '"cache", "storage"'
    assert COOKIE not in site.cookies
    assert code_of(await site.get("/v1/browser-session")) == (401, "unauthorized")


async def test_auth_browser_cookie_is_for_this_host_and_no_script(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign
) -> None:
    signed = await sign_in(site, account, sign)
    (header,) = signed.headers.get_list("Set-Cookie")
    (morsel,) = SimpleCookie(header).values()
    assert morsel.key == COOKIE
    assert (morsel["secure"], morsel["httponly"], morsel["samesite"].lower(), morsel["path"]) == (
        (True, True, "strict", "/")
    )
    assert morsel["max-age"] == str(12 * 3600)
    assert morsel["domain"] == ""
    assert morsel.value not in signed.text
    assert morsel.value not in (await site.get("/v1/browser-session")).text


async def test_auth_browser_takes_its_cookie_back(site: httpx.AsyncClient, account: LocalAccount, sign: Sign) -> None:
    signed = await sign_in(site, account, sign)
    ended = await site.delete("/v1/browser-session", headers=csrf(signed))
    (morsel,) = SimpleCookie(ended.headers["Set-Cookie"]).values()
    # A browser forgets a __Host- cookie only where the header would be allowed to set one.
    assert (morsel.key, morsel["max-age"], morsel["secure"], morsel["path"]) == (COOKIE, "0", True, "/")


async def test_auth_browser_session_has_the_roles_of_this_moment(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any
) -> None:
    chain_service.held[account.address] = frozenset({Role.CLINICIAN})
    assert (await sign_in(site, account, sign)).json()["roles"] == ["clinician"]
    chain_service.held.clear()
    assert (await site.get("/v1/browser-session")).json()["roles"] == []


async def test_auth_browser_sign_in_cannot_be_replayed(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign
) -> None:
    message = await challenge(site, account)
    body = {"message": message, "signature": sign(account, message)}
    assert (await site.post("/v1/browser-sessions", json=body)).status_code == 201
    site.cookies.clear()
    for path in ("/v1/browser-sessions", "/v1/sessions"):
        refused = await site.post(path, json=body)
        assert code_of(refused) == (401, "nonce_unknown")
        assert "Set-Cookie" not in refused.headers


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda text: text.replace("127.0.0.1:8000 wants", "evil.example wants"), "domain_mismatch"),
        (lambda text: text.replace(f"URI: {ORIGIN}", "URI: http://evil.example"), "uri_mismatch"),
        (lambda text: text.replace("Chain ID: 1337", "Chain ID: 1"), "chain_mismatch"),
        (lambda text: text.split("Expiration")[0] + "Expiration Time: 2020-01-01T00:00:00Z", "message_expired"),
    ],
)
async def test_auth_browser_sign_in_for_elsewhere_is_refused(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, change: Callable[[str], str], code: str
) -> None:
    message = await challenge(site, account)
    changed = change(message)
    assert changed != message
    refused = await site.post(
        "/v1/browser-sessions", json={"message": changed, "signature": sign(account, changed)}, headers=OWN_PAGE
    )
    assert code_of(refused) == (401, code)
    assert "Set-Cookie" not in refused.headers


async def test_auth_browser_challenge_that_expired_is_refused(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, clock: Any
) -> None:
    message = await challenge(site, account)
    clock.forward(300)
    body = {"message": message, "signature": sign(account, message)}
    assert code_of(await site.post("/v1/browser-sessions", json=body)) == (401, "message_expired")


async def test_auth_browser_signing_in_again_ends_the_session_before(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, redis_connection: redis.Redis
) -> None:
    first = await sign_in(site, account, sign)
    former = site.cookies[COOKIE]
    other: LocalAccount = Account.create()
    second = await sign_in(site, other, sign)
    assert site.cookies[COOKIE] != former
    assert second.json()["csrf_token"] != first.json()["csrf_token"]
    assert (await site.get("/v1/browser-session")).json()["address"] == other.address
    assert len(redis_connection.keys("concilia:auth:session:*")) == 1
    site.cookies.clear()
    site.cookies.set(COOKIE, former)
    assert code_of(await site.get("/v1/browser-session")) == (401, "session_unknown")


async def test_auth_browser_refused_sign_in_leaves_the_session_alone(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign
) -> None:
    await sign_in(site, account, sign)
    message = await challenge(site, account)
    body = {"message": message, "signature": sign(Account.create(), message)}
    assert code_of(await site.post("/v1/browser-sessions", json=body)) == (401, "signature_invalid")
    assert (await site.get("/v1/browser-session")).status_code == 200


async def test_auth_browser_session_ends_at_its_time(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, clock: Any
) -> None:
    signed = await sign_in(site, account, sign)
    clock.forward(12 * 3600)
    assert code_of(await site.get("/v1/browser-session")) == (401, "session_unknown")
    tokens = await site.post("/v1/tokens", json={"audience": "model"}, headers=csrf(signed))
    assert code_of(tokens) == (401, "session_unknown")


# --------------------------------------------------------------------------------------------------- other sites' pages


async def test_auth_browser_other_sites_pages_cannot_use_the_cookie(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign
) -> None:
    signed = await sign_in(site, account, sign)
    for headers in FOREIGN_PAGES:
        known = headers | csrf(signed)  # even where they should know the token
        for answer in (
            await site.post("/v1/tokens", json={"audience": "model"}, headers=known),
            await site.delete("/v1/browser-session", headers=known),
        ):
            assert code_of(answer) == (403, "cross_site"), headers
    assert (await site.get("/v1/browser-session")).status_code == 200


async def test_auth_browser_other_sites_pages_cannot_sign_anybody_in(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign
) -> None:
    message = await challenge(site, account)
    body = {"message": message, "signature": sign(account, message)}
    for headers in FOREIGN_PAGES:
        refused = await site.post("/v1/browser-sessions", json=body, headers=headers)
        assert code_of(refused) == (403, "cross_site"), headers
        assert "Set-Cookie" not in refused.headers
    assert (await site.post("/v1/browser-sessions", json=body, headers=OWN_PAGE)).status_code == 201  # nothing spent


async def test_auth_browser_own_pages_may(site: httpx.AsyncClient, account: LocalAccount, sign: Sign) -> None:
    pages: list[dict[str, str]] = [{}, {"Origin": ORIGIN}, {"Sec-Fetch-Site": "none"}, OWN_PAGE]
    for headers in pages:
        message = await challenge(site, account)
        body = {"message": message, "signature": sign(account, message)}
        signed = await site.post("/v1/browser-sessions", json=body, headers=headers)
        assert signed.status_code == 201
        tokens = await site.post("/v1/tokens", json={"audience": "auth"}, headers=headers | csrf(signed))
        assert tokens.status_code == 200
        assert (await site.delete("/v1/browser-session", headers=headers | csrf(signed))).status_code == 204


async def test_auth_browser_csrf_token_must_be_this_sessions(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign
) -> None:
    signed = await sign_in(site, account, sign)
    right = signed.json()["csrf_token"]
    former = csrf(signed)
    for wrong in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": right[:-1]}, {"X-CSRF-Token": right + "A"}):
        for answer in (
            await site.post("/v1/tokens", json={"audience": "model"}, headers=OWN_PAGE | wrong),
            await site.delete("/v1/browser-session", headers=OWN_PAGE | wrong),
        ):
            assert code_of(answer) == (403, "csrf_token_invalid")
    latin = await site.post("/v1/tokens", json={"audience": "model"}, headers={b"X-CSRF-Token": b"\xe9"})
    assert code_of(latin) == (403, "csrf_token_invalid")
    await sign_in(site, account, sign)
    stale = await site.post("/v1/tokens", json={"audience": "model"}, headers=OWN_PAGE | former)
    assert code_of(stale) == (403, "csrf_token_invalid")


# --------------------------------------------------------------------------------------------------------------- tokens


async def test_auth_browser_bearer_needs_no_further_proof(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign
) -> None:
    message = await challenge(site, account)
    session = await site.post("/v1/sessions", json={"message": message, "signature": sign(account, message)})
    assert "Set-Cookie" not in session.headers
    other: LocalAccount = Account.create()
    await sign_in(site, other, sign)
    bearer = {"Authorization": f"Bearer {session.json()['token']}", "Origin": "https://evil.example"}
    token = (await site.post("/v1/tokens", json={"audience": "model"}, headers=bearer)).json()["token"]
    # the bearer's session, not the cookie's
    assert jwt.decode(token, options={"verify_signature": False})["sub"] == account.address


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/tokens"), ("GET", "/v1/browser-session"), ("DELETE", "/v1/browser-session")]
)
async def test_auth_browser_without_a_cookie_is_nobody(site: httpx.AsyncClient, method: str, path: str) -> None:
    body = {"audience": "model"} if method == "POST" else None
    assert code_of(await site.request(method, path, json=body)) == (401, "unauthorized")
    headers = {"Cookie": f"{COOKIE}=made-up", "X-CSRF-Token": browser.csrf_token("made-up")}
    assert code_of(await site.request(method, path, json=body, headers=headers)) == (401, "session_unknown")


async def test_auth_browser_cookie_is_no_way_into_the_bearers_routes(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign
) -> None:
    signed = await sign_in(site, account, sign)
    for method, path in (("GET", "/v1/session"), ("DELETE", "/v1/sessions"), ("POST", "/v1/applications")):
        answer = await site.request(method, path, headers=csrf(signed))
        assert code_of(answer) == (401, "unauthorized")


async def test_auth_browser_no_get_uses_up_a_session(
    site: httpx.AsyncClient, account: LocalAccount, sign: Sign, redis_connection: redis.Redis
) -> None:
    await sign_in(site, account, sign)

    def kept() -> dict[str, Any]:
        lists = set(redis_connection.keys("concilia:auth:sessions-of:*"))
        return {
            key: redis_connection.zrange(key, 0, -1, withscores=True) if key in lists else redis_connection.get(key)
            for key in redis_connection.keys("*")
        }

    before = kept()
    assert len([key for key in before if ":session" in key]) == 2
    for headers in ({}, {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}):
        assert (await site.get("/v1/browser-session", headers=headers)).status_code == 200
    assert kept() == before


async def test_auth_browser_openapi_names_the_cookie(site: httpx.AsyncClient) -> None:
    document = (await site.get("/openapi.json")).json()
    scheme = document["components"]["securitySchemes"]["browser session"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "cookie", COOKIE)
    paths = document["paths"]
    assert paths["/v1/tokens"]["post"]["security"] == [{"session": []}, {"browser session": []}]
    assert paths["/v1/browser-session"]["delete"]["security"] == [{"browser session": []}]
    assert "security" not in paths["/v1/browser-sessions"]["post"]


# ---------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("uri", "origin"),
    [
        ("https://concilia.example/", "https://concilia.example"),
        ("https://Concilia.Example:443/signin?x#y", "https://concilia.example"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://example:80", "http://example"),
        ("https://example:80", "https://example:80"),
        ("https://user@[2001:DB8::1]:8443/a", "https://[2001:db8::1]:8443"),
    ],
)
def test_auth_browser_origin_is_as_browsers_write_it(uri: str, origin: str) -> None:
    assert browser.origin_of(uri) == origin
    assert browser.origin_of(origin) == origin


@pytest.mark.parametrize("uri", ["http://", "https:///path", "http://:80", "http://host:99999", "http://[::1"])
def test_auth_browser_address_without_an_origin_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"names no host|cannot be one"):
        browser.origin_of(uri)


_text = st.text(max_size=60)
_header = st.none() | _text


@given(token=_text, other=_text, sent=_header)
def test_auth_browser_csrf_token_opens_its_own_session_only(token: str, other: str, sent: str | None) -> None:
    right = browser.csrf_token(token)
    assert len(right) == 43
    assert right.replace("-", "a").replace("_", "a").isalnum()
    assert (browser.csrf_token(other) == right) == (other == token)
    browser.check_csrf(browser.Sent(csrf_token=right), token)
    if sent != right:
        with pytest.raises(errors.CsrfTokenInvalid):
            browser.check_csrf(browser.Sent(csrf_token=sent), token)


@given(
    origin=st.sampled_from([None, ORIGIN]) | _text, fetch_site=st.sampled_from([None, "same-origin", "none"]) | _text
)
def test_auth_browser_site_is_this_one_or_untold(origin: str | None, fetch_site: str | None) -> None:
    own = origin in (None, ORIGIN) and fetch_site in (None, "same-origin", "none")
    with contextlib.nullcontext() if own else pytest.raises(errors.CrossSite):
        browser.check_site(browser.Sent(origin, fetch_site), ORIGIN)


def test_auth_browser_session_lives_as_long_as_its_cookie(service: Any, account: LocalAccount, sign: Sign) -> None:
    message = service.challenge(account.address).message
    session = service.browser_sign_in(message, sign(account, message), None)
    opened = service.browser_session(session.token)
    assert opened.csrf_token == browser.csrf_token(session.token)
    assert session.expires_at - service._clock().replace(microsecond=0) == timedelta(seconds=service.session_seconds)
