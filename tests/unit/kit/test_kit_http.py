"""Calls that are tried again, and calls that must not be; and a wallet that signs in at a service that comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from concilia_kit import http
from concilia_kit.problems import MEDIA_TYPE, Problem, Unavailable
from concilia_kit.wire.auth import AccessToken, Audience, Challenge, Session
from eth_account import Account

HOSPITAL = Account.create()


def later() -> httpx.Response:
    content = {"type": "about:blank", "title": "later", "status": 503, "detail": "not yet", "code": "unavailable"}
    return httpx.Response(503, json=content, headers={"Content-Type": MEDIA_TYPE})


def refused() -> httpx.Response:
    content = {"type": "about:blank", "title": "no", "status": 403, "detail": "not you", "code": "forbidden"}
    return httpx.Response(403, json=content, headers={"Content-Type": MEDIA_TYPE})


def lost() -> httpx.Response:
    raise httpx.ReadError("the connection broke")


def unreachable() -> httpx.Response:
    raise httpx.ConnectError("nobody listens")


@dataclass
class AuthDouble:
    """The auth service's three steps. `troubles` says what takes the place of the next answers at a path; an answer
    that is lost is lost after its challenge was used up, as it would be."""

    troubles: dict[str, list[Callable[[], httpx.Response]]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    nonces: set[str] = field(default_factory=set)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked[path] += 1
        answer = self._answer(path, request.content.decode())
        if self.troubles.get(path):
            return self.troubles[path].pop(0)()
        return answer

    def _answer(self, path: str, body: str) -> httpx.Response:
        ends = datetime.now(UTC) + timedelta(minutes=5)
        if path == "/v1/challenges":
            nonce = f"nonce{self.asked[path]:08}"
            self.nonces.add(nonce)
            return _said(Challenge(message=f"sign {nonce}", nonce=nonce, expires_at=ends))
        if path == "/v1/sessions":
            used = {nonce for nonce in self.nonces if nonce in body}
            if not used:
                return refused()
            self.nonces -= used
            return _said(Session(token="session", address=HOSPITAL.address, roles=(), expires_at=ends))
        return _said(AccessToken(token=f"token{self.asked[path]}", audience=Audience.MODEL, roles=(), expires_at=ends))

    def wallet(self, seconds: float = 30.0) -> http.WalletAuth:
        auth = http.client("http://auth", transport=httpx.MockTransport(self))
        return http.WalletAuth(auth, HOSPITAL, Audience.MODEL, retry_seconds=seconds)


def _said(answer: Challenge | Session | AccessToken) -> httpx.Response:
    return httpx.Response(201, content=answer.model_dump_json())


@pytest.mark.parametrize("path", ["/v1/challenges", "/v1/sessions", "/v1/tokens"])
@pytest.mark.parametrize("trouble", [later, lost, unreachable])
def test_wallet_waits_for_an_auth_service_that_comes_back(path: str, trouble: Callable[[], httpx.Response]) -> None:
    double = AuthDouble({path: [trouble, trouble]})
    assert double.wallet().token().startswith("token")
    assert double.asked[path] == 3


def test_wallet_does_not_repeat_what_was_refused() -> None:
    double = AuthDouble({"/v1/sessions": [refused]})
    with pytest.raises(Problem) as caught:
        double.wallet().token()
    assert caught.value.problem_status == 403
    assert double.asked["/v1/sessions"] == 1


def test_wallet_gives_up_in_time_and_says_why() -> None:
    for trouble, kind in ((later, Problem), (unreachable, Unavailable)):
        double = AuthDouble({"/v1/challenges": [trouble] * 1000})
        with pytest.raises(kind):
            double.wallet(seconds=0.3).token()
        assert double.asked["/v1/challenges"] > 1


@pytest.mark.parametrize(
    ("method", "trouble", "times"),
    [
        ("POST", later, 1),
        ("POST", lost, 1),
        ("POST", unreachable, 2),
        ("GET", later, 2),
        ("GET", lost, 2),
        ("GET", unreachable, 2),
        ("GET", refused, 1),
    ],
)
def test_call_repeats_only_what_may_be(method: str, trouble: Callable[[], httpx.Response], times: int) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        return trouble() if len(asked) == 1 else httpx.Response(200)

    to = http.client("http://model", transport=httpx.MockTransport(answer))
    if times == 1:
        with pytest.raises(Problem):
            http.call(to, method, "/v1/models")
    else:
        assert http.call(to, method, "/v1/models").status_code == 200
    assert len(asked) == times
