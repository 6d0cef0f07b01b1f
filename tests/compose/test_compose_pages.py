"""The pages and what they need, through the real front door: headers, a session in a cookie, the event stream."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from concilia_kit import keystore
from eth_account.messages import encode_defunct

from .conftest import ROOT, Stack, ended, wait_for

COOKIE = "__Host-concilia"
Event = tuple[str, str, str]


@pytest.fixture
def browser(stack: Stack) -> Iterator[httpx.Client]:
    """The administrator's browser: signed in by a wallet, and what a page keeps in memory."""
    account = keystore.load(stack.folder / "secrets" / "admin.json", stack.folder / "secrets" / "admin.password")
    headers = {"Origin": stack.url, "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=stack.url, verify=stack.trust, timeout=20, headers=headers) as http:
        message = http.post("/api/auth/v1/challenges", json={"address": account.address}).json()["message"]
        signature = "0x" + account.sign_message(encode_defunct(text=message)).signature.hex().removeprefix("0x")
        answer = http.post("/api/auth/v1/browser-sessions", json={"message": message, "signature": signature})
        assert answer.status_code == 201, answer.text
        cookie = answer.headers["Set-Cookie"]
        assert all(word in cookie for word in ("Secure", "HttpOnly", "SameSite=strict", "Path=/")), cookie
        assert COOKIE in http.cookies
        http.headers["X-CSRF-Token"] = answer.json()["csrf_token"]
        yield http


def bearer(browser: httpx.Client, audience: str) -> dict[str, str]:
    answer = browser.post("/api/auth/v1/tokens", json={"audience": audience})
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


def test_pages_come_with_their_headers_and_assets_for_good(stack: Stack) -> None:
    told = json.loads((ROOT / "frontend" / "headers.json").read_text())
    with httpx.Client(base_url=stack.url, verify=stack.trust) as http:
        for path, status in (("/", 200), ("/jobs", 200), ("/consortium", 200), ("/no-such-page", 404)):
            answer = http.get(path)
            assert answer.status_code == status
            assert answer.headers["Content-Type"].startswith("text/html")
            assert {name: answer.headers[name] for name in told} == told
            assert "<h1" in answer.text
        script = re.search(r'src="(/assets/[^"]+\.js)"', http.get("/jobs").text)
        assert script is not None
        asset = http.get(script[1], headers={"Accept-Encoding": "gzip"})
        assert "immutable" in asset.headers["Cache-Control"]
        assert asset.headers["Content-Encoding"] == "gzip"


def test_a_cookie_is_good_for_tokens_and_for_nothing_else(browser: httpx.Client) -> None:
    assert browser.get("/api/auth/v1/browser-session").json()["roles"]
    assert browser.get("/api/aggregator/v1/jobs").status_code == 401
    assert browser.get("/api/aggregator/v1/jobs", headers=bearer(browser, "aggregator")).status_code == 200
    forged = browser.post("/api/auth/v1/tokens", json={"audience": "model"}, headers={"X-CSRF-Token": "guess"})
    assert (forged.status_code, forged.json()["code"]) == (403, "csrf_token_invalid")
    foreign = browser.post("/api/auth/v1/tokens", json={"audience": "model"}, headers={"Origin": "http://evil.test"})
    assert (foreign.status_code, foreign.json()["code"]) == (403, "cross_site")


def test_a_wallet_can_be_given_the_network(browser: httpx.Client) -> None:
    def ask(method: str) -> object:
        answer = browser.post("/api/chain/v1/rpc", json={"jsonrpc": "2.0", "id": 1, "method": method, "params": []})
        return answer.json()

    assert ask("eth_chainId") == {"jsonrpc": "2.0", "id": 1, "result": "0x539"}
    refused = ask("eth_sendRawTransaction")
    assert isinstance(refused, dict)
    assert refused["error"]["code"] == -32601


def test_events_come_one_by_one_and_go_on_where_they_stopped(stack: Stack, browser: httpx.Client) -> None:
    to = stack.client()
    job = stack.create(to)
    path, headers = f"/api/aggregator/v1/jobs/{job.id}/stream", bearer(browser, "aggregator")
    first = read(browser, path, headers, until=lambda seen: any(name == "job" for _, name, _ in seen))
    assert first[0][1] == "snapshot"
    wait_for(to, job.id, ended, 240)
    last = {"Last-Event-ID": first[-1][0]}
    rest = read(browser, path, headers | last, until=lambda seen: '"finished"' in seen[-1][2])
    recorded = {
        (event["block"], event["log_index"])
        for _, name, data in (*first, *rest)
        if name == "ledger"
        for event in [json.loads(data)]
    }
    assert "snapshot" not in {name for _, name, _ in rest}
    assert recorded == {(event.block, event.log_index) for event in to.events(job.id)}
    assert len({place for place, _, _ in (*first, *rest)}) == len(first) + len(rest)


def read(http: httpx.Client, path: str, headers: dict[str, str], until: Callable[[list[Event]], bool]) -> list[Event]:
    """Events (id, name, data) until a condition on those seen holds; fails after a minute."""
    seen: list[Event] = []
    deadline = time.monotonic() + 60
    with http.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            assert time.monotonic() < deadline, "no such event within a minute"
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "data" in fields:
                seen.append((fields.get("id", ""), fields.get("event", ""), fields["data"]))
                if until(seen):
                    return seen
            fields = {}
    return pytest.fail("the stream ended before its time")
