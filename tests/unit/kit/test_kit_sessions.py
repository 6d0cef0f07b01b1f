"""Tokens of sessions that ended are refused, within a second and at no question a request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt
import pytest
from concilia_kit import http
from concilia_kit.problems import Unauthorized, Unavailable
from concilia_kit.roles import Role
from concilia_kit.sessions import PATH, SessionsEnded
from concilia_kit.tokens import ALGORITHM, ISSUER, TokenVerifier
from concilia_kit.wire.auth import Audience, EndedSessions
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

KEY = Ed25519PrivateKey.generate()
ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
ONE, OTHER = "ab" * 32, "cd" * 32


@dataclass
class AuthDouble:
    """The auth service as it tells which sessions ended, and a clock."""

    ended: set[str] = field(default_factory=set)
    trouble: Callable[[], httpx.Response] | None = None
    statuses: list[int] = field(default_factory=list)
    now: float = 1000.0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("GET", PATH)
        content = EndedSessions(sessions=tuple(sorted(self.ended))).model_dump_json()
        tag = f'"{hash(content)}"'
        is_known = request.headers.get("If-None-Match") == tag
        answer = httpx.Response(304) if is_known else httpx.Response(200, content=content, headers={"ETag": tag})
        if self.trouble is not None:
            answer = self.trouble()
        self.statuses.append(answer.status_code)
        return answer

    def sessions(self) -> SessionsEnded:
        auth = http.client("http://auth", transport=httpx.MockTransport(self))
        return SessionsEnded(auth, 1.0, 60.0, clock=lambda: self.now)


def keys() -> dict[str, Any]:
    entry: dict[str, Any] = OKPAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
    return {"keys": [{**entry, "kid": "one", "use": "sig", "alg": ALGORITHM}]}


def minted(session: str | None, roles: tuple[Role, ...] = (Role.CLINICIAN,)) -> str:
    issued = int(time.time())
    claims: dict[str, Any] = {"iss": ISSUER, "sub": ADDRESS, "aud": "model", "iat": issued, "exp": issued + 300}
    named = {} if session is None else {"sid": session}
    return jwt.encode({**claims, **named, "roles": roles}, KEY, algorithm=ALGORITHM, headers={"kid": "one"})


def refused_dead() -> httpx.Response:
    raise httpx.ConnectError("refused")


def test_sessions_tokens_are_good_until_theirs_ended() -> None:
    auth = AuthDouble()
    verifier = TokenVerifier(Audience.MODEL, keys, ended=auth.sessions())
    token, other, nobody = minted(ONE), minted(OTHER, ()), minted(None)
    assert [verifier.verify(each).session for each in (token, other, nobody)] == [ONE, OTHER, ""]
    assert all(verifier.verify_at_once(each) is not None for each in (token, other, nobody))
    assert auth.statuses == [200], "many tokens, one question"
    auth.ended.add(ONE)
    auth.now += 0.99
    assert verifier.verify(token).session == ONE
    auth.now += 0.02
    assert verifier.verify_at_once(token) is None, "somebody must be asked"
    with pytest.raises(Unauthorized) as raised:
        verifier.verify(token)
    assert raised.value.problem_code == "session_ended"
    assert verifier.verify_at_once(token) is None
    assert (verifier.verify(other).address, verifier.verify_at_once(nobody) is not None) == (ADDRESS, True)
    auth.now += 1.01
    with pytest.raises(Unauthorized):
        verifier.verify(token)
    assert auth.statuses == [200, 200, 304]


def test_sessions_the_roles_of_one_that_ended_are_not_asked_about() -> None:
    def never(_address: str, _as_of: float) -> frozenset[Role]:
        pytest.fail("asked")

    verifier = TokenVerifier(Audience.MODEL, keys, standing=never, ended=lambda _: True)
    with pytest.raises(Unauthorized):
        verifier.verify(minted(ONE))


@pytest.mark.parametrize(
    "trouble",
    [refused_dead, lambda: httpx.Response(404), lambda: httpx.Response(200, json={"sessions": ["not an id"]})],
)
def test_sessions_what_was_told_last_counts_for_a_minute_and_nothing_after(
    trouble: Callable[[], httpx.Response],
) -> None:
    auth = AuthDouble(ended={OTHER})
    verifier = TokenVerifier(Audience.MODEL, keys, ended=auth.sessions())
    verifier.verify(minted(ONE))
    auth.trouble = trouble
    auth.now += 60
    assert verifier.verify(minted(ONE)).session == ONE
    with pytest.raises(Unauthorized):
        verifier.verify(minted(OTHER))
    auth.now += 0.01
    with pytest.raises(Unavailable) as raised:
        verifier.verify(minted(ONE))
    assert raised.value.problem_code == "sessions_unavailable"
    assert verifier.verify(minted(None)).address == ADDRESS, "what auth made for itself waits for nobody"


def test_sessions_nobody_is_let_in_before_auth_has_told() -> None:
    with pytest.raises(Unavailable):
        TokenVerifier(Audience.MODEL, keys, ended=AuthDouble(trouble=refused_dead).sessions()).verify(minted(ONE))
