"""The auth service over HTTP: statuses, codes, bounds; refused settings."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from asgi_lifespan import LifespanManager
from concilia_auth.main import build
from concilia_auth.settings import AuthSettings
from concilia_kit.roles import Role
from eth_account.signers.local import LocalAccount

Sign = Callable[[LocalAccount, str], str]


@pytest.fixture
async def http(settings: AuthSettings, chain_service: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = build(settings.model_copy(update={"chain_url": chain_service.url, "chain_id": 0}))
    async with (
        LifespanManager(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://auth") as client,
    ):
        yield client


async def sign_in(http: httpx.AsyncClient, account: LocalAccount, sign: Sign) -> dict[str, Any]:
    challenge = (await http.post("/v1/challenges", json={"address": account.address})).json()
    answer = await http.post(
        "/v1/sessions", json={"message": challenge["message"], "signature": sign(account, challenge["message"])}
    )
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    session: dict[str, Any] = answer.json()
    return session


async def test_auth_api_from_challenge_to_sign_out(
    http: httpx.AsyncClient, account: LocalAccount, sign: Sign, chain_service: Any
) -> None:
    chain_service.held[account.address] = frozenset({Role.ADMIN})
    session = await sign_in(http, account, sign)
    assert session["roles"] == ["admin"]
    bearer = {"Authorization": f"Bearer {session['token']}"}
    view = await http.get("/v1/session", headers=bearer)
    assert view.json() == {key: session[key] for key in ("address", "roles", "expires_at")}
    token = await http.post("/v1/tokens", json={"audience": "model"}, headers=bearer)
    assert token.status_code == 200
    assert (token.json()["audience"], token.json()["roles"]) == ("model", ["admin"])
    ended = await http.delete("/v1/sessions", headers=bearer)
    assert (ended.status_code, ended.content) == (204, b"")
    refused = await http.post("/v1/tokens", json={"audience": "model"}, headers=bearer)
    assert (refused.status_code, refused.json()["code"]) == (401, "session_unknown")
    assert refused.headers["WWW-Authenticate"] == "Bearer"


async def test_auth_api_keys_and_health(http: httpx.AsyncClient) -> None:
    (key,) = (await http.get("/.well-known/jwks.json")).json()["keys"]
    assert key["alg"] == "EdDSA"
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"redis": "ok", "chain": "ok"})


async def test_auth_api_says_what_is_missing(settings: AuthSettings) -> None:
    app = build(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    async with (
        LifespanManager(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://auth") as http,
    ):
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"redis": "StoreUnavailable", "chain": "Unavailable"})
        refused = await http.post("/v1/challenges", json={"address": "0x" + 40 * "1"})
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/tokens", {"audience": "model"}),
        ("GET", "/v1/session", None),
        ("DELETE", "/v1/sessions", None),
    ],
)
async def test_auth_api_needs_a_session(http: httpx.AsyncClient, method: str, path: str, body: Any) -> None:
    for headers, code in (({}, "unauthorized"), ({"Authorization": "Bearer nonsense"}, "session_unknown")):
        answer = await http.request(method, path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, code)
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/challenges", {"address": "0x12"}, 422, "invalid_request"),
        ("/v1/challenges", {"address": "0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"}, 422, "invalid_request"),
        ("/v1/challenges", {"address": "0x" + 40 * "1", "more": 1}, 422, "invalid_request"),
        ("/v1/sessions", {"message": "hello", "signature": "0x00"}, 422, "message_malformed"),
        ("/v1/sessions", {"message": "\ud800", "signature": "0x00"}, 422, "invalid_request"),
        ("/v1/sessions", {"message": "hello", "signature": "00"}, 422, "invalid_request"),
        ("/v1/sessions", {"message": "Nonce: abcdefgh12345678", "signature": "0x00"}, 401, "nonce_unknown"),
        ("/v1/sessions", {"message": 5000 * "a", "signature": "0x00"}, 422, "invalid_request"),
        ("/v1/sessions", {"message": 70_000 * "a", "signature": "0x00"}, 413, "body_too_large"),
    ],
)
async def test_auth_api_refuses_bad_input(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    # json.dumps, unlike the client, can write a lone surrogate
    answer = await http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_auth_api_stops_reading_an_endless_body(http: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1024
            yield 1024 * b" "

    answer = await http.post("/v1/sessions", content=endless())
    assert answer.status_code == 413
    assert sent <= 66 * 1024  # the limit, and one chunk


@pytest.mark.parametrize("change", [{"domain": "two words"}, {"statement": "two\nlines"}, {"statement": "über"}])
def test_auth_api_refuses_a_site_nobody_can_sign_in_to(settings: AuthSettings, change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="make no EIP-4361 message"):
        build(settings.model_copy(update=change))
