"""Every way in which a token may be wrong, one by one: nothing but the auth service's own is taken."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from concilia_kit.problems import Unauthorized
from concilia_kit.roles import Role
from concilia_kit.tokens import ALGORITHM, ISSUER, TokenVerifier
from concilia_kit.wire.auth import Audience
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import OKPAlgorithm

KEY, OTHER, STRANGER = (Ed25519PrivateKey.generate() for _ in range(3))
PUBLIC = KEY.public_key()
RAW = PUBLIC.public_bytes(Encoding.Raw, PublicFormat.Raw)
PEM = PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
MISSING: Any = object()


def keys() -> dict[str, Any]:
    return {
        "keys": [
            {**OKPAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", "alg": ALGORITHM}
            for kid, key in (("one", KEY), ("two", OTHER))
        ]
    }


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    said = {
        "iss": ISSUER,
        "sub": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "aud": "model",
        "iat": now,
        "exp": now + 300,
        "roles": ["admin"],
        **changes,
    }
    return {name: value for name, value in said.items() if value is not MISSING}


def signed(key: Any = KEY, header: dict[str, Any] | None = None, algorithm: str = ALGORITHM, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers={"kid": "one", **(header or {})})


def by_hand(header: dict[str, Any], signature: Callable[[bytes], bytes]) -> str:
    """A token of any header, as no library makes it."""

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    text = b".".join(part(json.dumps(each).encode()) for each in (header, claims()))
    return (text + b"." + part(signature(text))).decode()


def hs256(secret: bytes) -> str:
    header = {"alg": "HS256", "typ": "JWT", "kid": "one"}
    return by_hand(header, lambda text: hmac.digest(secret, text, hashlib.sha256))


def with_own_key() -> str:
    """A token that brings the key that it is to be verified with."""
    own = OKPAlgorithm.to_jwk(STRANGER.public_key(), as_dict=True)
    return signed(STRANGER, {"jwk": own})


def test_tokens_of_the_auth_service_are_taken() -> None:
    verifier = TokenVerifier(Audience.MODEL, keys)
    assert verifier.verify(signed()).roles == {Role.ADMIN}
    assert verifier.verify(signed(OTHER, {"kid": "two"})).roles == {Role.ADMIN}
    assert verifier.verify(signed(nbf=int(time.time()))).roles == {Role.ADMIN}


INVALID: dict[str, Callable[[], str]] = {
    "alg none, no signature": lambda: by_hand({"alg": "none", "kid": "one"}, lambda _: b""),
    "alg None, no signature": lambda: by_hand({"alg": "None", "kid": "one"}, lambda _: b""),
    "alg none, signed": lambda: by_hand({"alg": "none", "kid": "one"}, KEY.sign),
    "no alg": lambda: by_hand({"kid": "one"}, KEY.sign),
    "alg EdDSA, no signature": lambda: by_hand({"alg": "EdDSA", "kid": "one"}, lambda _: b""),
    "HS256 with the public key, raw": lambda: hs256(RAW),
    "HS256 with the public key, PEM": lambda: hs256(PEM),
    "HS256 with the public key, as published": lambda: hs256(json.dumps(keys()["keys"][0]).encode()),
    "HS256 with nothing": lambda: hs256(b""),
    "RS256": lambda: signed(rsa.generate_private_key(65537, 2048), algorithm="RS256"),
    "ES256": lambda: signed(ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
    "another's key": lambda: signed(STRANGER),
    "a key of the token's own": with_own_key,
    "a key from an address of the token's own": lambda: signed(STRANGER, {"jku": "https://evil.example/jwks.json"}),
    "another published key's id": lambda: signed(header={"kid": "two"}),
    "an unknown key's id": lambda: signed(header={"kid": "three"}),
    "a key id that is a path": lambda: signed(header={"kid": "../../dev/null"}),
    "no key id": lambda: jwt.encode(claims(), KEY, algorithm=ALGORITHM),
    "a critical extension nobody knows": lambda: signed(header={"crit": ["b64"], "b64": False}),
    "another issuer": lambda: signed(iss="concilia-model"),
    "no issuer": lambda: signed(iss=MISSING),
    "another audience": lambda: signed(aud="chain"),
    "other audiences": lambda: signed(aud=["chain", "auth"]),
    "no audience": lambda: signed(aud=MISSING),
    "no end": lambda: signed(exp=MISSING),
    "an end that is no time": lambda: signed(exp="never"),
    "no beginning": lambda: signed(iat=MISSING),
    "issued in the future": lambda: signed(iat=int(time.time()) + 120),
    "not before a time to come": lambda: signed(nbf=int(time.time()) + 120),
    "no subject": lambda: signed(sub=MISSING),
    "a role that is none": lambda: signed(roles=["king"]),
    "no roles": lambda: signed(roles=MISSING),
    "changed after it was signed": lambda: signed()[:-8] + "AAAAAAAA",
    "cut short": lambda: signed().rsplit(".", 1)[0],
    "nothing": lambda: "",
    "no token": lambda: "not.a.token",
}


@pytest.mark.parametrize("make", INVALID.values(), ids=INVALID.keys())
def test_tokens_of_all_others_are_refused(make: Callable[[], str]) -> None:
    verifier = TokenVerifier(Audience.MODEL, keys)
    verifier.verify(signed())  # the way in is right, so what follows is the reason
    for attempt in (verifier.verify, verifier.verify):  # nor is it remembered as a good one
        with pytest.raises(Unauthorized) as refused:
            attempt(make())
        assert refused.value.problem_code == "token_invalid"


def test_tokens_that_ended_are_refused_as_such() -> None:
    with pytest.raises(Unauthorized) as refused:
        TokenVerifier(Audience.MODEL, keys).verify(signed(iat=int(time.time()) - 301, exp=int(time.time()) - 1))
    assert refused.value.problem_code == "token_expired"


@given(st.sampled_from(Audience), st.sampled_from(Audience))
def test_tokens_are_good_for_one_audience(made_for: Audience, shown_to: Audience) -> None:
    verifier = TokenVerifier(shown_to, keys)
    token = signed(aud=made_for.value)
    if made_for is shown_to:
        assert verifier.verify(token).roles == {Role.ADMIN}
        return
    with pytest.raises(Unauthorized):
        verifier.verify(token)


@given(st.text())
def test_tokens_of_any_text_are_refused(text: str) -> None:
    with pytest.raises(Unauthorized):
        TokenVerifier(Audience.MODEL, keys).verify(text)
