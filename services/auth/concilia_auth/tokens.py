"""Access tokens as this service mints them; `concilia_kit.tokens` verifies them. Source: RFC 7519, RFC 8037."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta

import jwt
from concilia_kit.roles import Role
from concilia_kit.tokens import ALGORITHM, ISSUER
from concilia_kit.wire.auth import Audience

from concilia_auth.keys import SigningKey

_OWN_LIFE = timedelta(seconds=60)


def own(key: SigningKey, audience: Audience, now: datetime) -> str:
    """A token of this service itself, whose subject is no address: who signs in never gets one."""
    return mint(
        key,
        token_id=secrets.token_urlsafe(16),
        address=ISSUER,
        roles=(),
        audience=audience,
        issued_at=now,
        expires_at=now + _OWN_LIFE,
    )


def mint(
    key: SigningKey,
    *,
    token_id: str,
    address: str,
    roles: Iterable[Role],
    audience: Audience,
    issued_at: datetime,
    expires_at: datetime,
    session: str | None = None,
) -> str:
    """A signed token that says who (`sub`), which roles, for whom (`aud`), until when (whole seconds), and with which
    session it was taken (`sid`, by its id)."""
    claims = {
        "iss": ISSUER,
        "sub": address,
        "aud": audience.value,
        "iat": int(issued_at.timestamp()),
        "exp": int(expires_at.timestamp()),
        "jti": token_id,
        "roles": sorted(role.value for role in roles),
    } | ({} if session is None else {"sid": session})
    return jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"kid": key.id})
