"""Access tokens narrowed to the roles held at this moment, and good for one audience."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from concilia_kit.problems import Unauthorized, Unavailable
from concilia_kit.roles import Role
from concilia_kit.tokens import ALGORITHM, ISSUER, TokenVerifier
from concilia_kit.wire.auth import Audience
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import OKPAlgorithm

ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
KEY = Ed25519PrivateKey.generate()

_roles = st.frozensets(st.sampled_from(Role))


def keys() -> dict[str, Any]:
    entry: dict[str, Any] = OKPAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
    return {"keys": [{**entry, "kid": "one", "use": "sig", "alg": ALGORITHM}]}


def minted(roles: frozenset[Role], audience: Audience = Audience.MODEL, age: int = 0, life: int = 300) -> str:
    issued = int(time.time()) - age
    claims = {"iss": ISSUER, "sub": ADDRESS, "aud": audience.value, "iat": issued, "exp": issued + life}
    return jwt.encode({**claims, "roles": sorted(roles)}, KEY, algorithm=ALGORITHM, headers={"kid": "one"})


def never(_address: str, _as_of: float) -> frozenset[Role]:
    pytest.fail("asked")


def away(_address: str, _as_of: float) -> frozenset[Role]:
    raise Unavailable("away", code="roles_unavailable")


@given(born=_roles, held=_roles)
def test_tokens_standing_narrows_and_never_widens(born: frozenset[Role], held: frozenset[Role]) -> None:
    asked: list[str] = []

    def standing(address: str, as_of: float) -> frozenset[Role]:
        assert as_of <= time.time() + 1
        asked.append(address)
        return held

    caller = TokenVerifier(Audience.MODEL, keys, standing=standing).verify(minted(born))
    assert caller.roles == born & held
    assert caller.address == ADDRESS
    assert set(asked) <= {ADDRESS}


def test_tokens_role_taken_since_is_gone_and_comes_back() -> None:
    held = {Role.CLINICIAN, Role.AUDITOR}
    verifier = TokenVerifier(Audience.MODEL, keys, standing=lambda *_: frozenset(held))
    token = minted(frozenset({Role.CLINICIAN}))
    assert verifier.verify(token).roles == {Role.CLINICIAN}
    held.remove(Role.CLINICIAN)
    assert verifier.verify(token).roles == frozenset()
    held.add(Role.CLINICIAN)
    assert verifier.verify(token).roles == {Role.CLINICIAN}


def test_tokens_without_roles_need_no_standing() -> None:
    assert TokenVerifier(Audience.AUTH, keys, standing=never).verify(minted(frozenset(), Audience.AUTH)).roles == set()


def test_tokens_with_roles_are_refused_where_the_standing_is_unknown() -> None:
    with pytest.raises(Unavailable) as raised:
        TokenVerifier(Audience.MODEL, keys, standing=away).verify(minted(frozenset({Role.CLINICIAN})))
    assert raised.value.problem_code == "roles_unavailable"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: minted(frozenset({Role.ADMIN}), Audience.AUTH), "token_invalid"),
        (lambda: minted(frozenset({Role.ADMIN}), age=301), "token_expired"),
        (lambda: "not.a.token", "token_invalid"),
    ],
)
def test_tokens_that_do_not_hold_ask_nobody(make: Callable[[], str], code: str) -> None:
    with pytest.raises(Unauthorized) as raised:
        TokenVerifier(Audience.MODEL, keys, standing=never).verify(make())
    assert raised.value.problem_code == code


def test_tokens_say_when_they_end() -> None:
    token = minted(frozenset(), life=77)
    claims = jwt.decode(token, options={"verify_signature": False})
    caller = TokenVerifier(Audience.MODEL, keys).verify(token)
    assert caller.expires_at == claims["exp"]


def test_tokens_that_were_verified_are_known_at_once_until_they_end() -> None:
    now = iter([frozenset({Role.CLINICIAN}), None, frozenset[Role]()])
    verifier = TokenVerifier(
        Audience.MODEL, keys, standing=lambda *_: frozenset({Role.CLINICIAN}), at_once=lambda *_: next(now)
    )
    token = minted(frozenset({Role.CLINICIAN}))
    assert verifier.verify_at_once(token) is None, "never seen"
    assert verifier.verify(token).roles == {Role.CLINICIAN}
    told = [verifier.verify_at_once(token) for _ in range(3)]
    assert [each and each.roles for each in told] == [{Role.CLINICIAN}, None, set()]
    ending = minted(frozenset(), age=299)
    verifier.verify(ending)
    while (known := verifier.verify_at_once(ending)) is not None and known.expires_at > time.time():
        time.sleep(0.05)
    assert verifier.verify_at_once(ending) is None
    with pytest.raises(Unauthorized):
        verifier.verify(ending)


def test_tokens_are_forgotten_with_the_key_that_signed_them() -> None:
    published = keys()
    verifier = TokenVerifier(Audience.MODEL, lambda: published, refetch_seconds=0, max_age_seconds=0.05)
    token = minted(frozenset())
    verifier.verify(token)
    published["keys"] = []
    time.sleep(0.06)
    assert verifier.verify_at_once(token) is None
    with pytest.raises(Unauthorized):
        verifier.verify(token)
