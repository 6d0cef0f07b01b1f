"""Sign-in (EIP-4361) and access tokens: what the auth service takes and gives."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from concilia_kit.digests import Digest
from concilia_kit.roles import Role
from concilia_kit.signing import Address, AnySignature
from concilia_kit.strict import Text, Truth
from concilia_kit.wire.base import Wire


class Audience(StrEnum):
    """The services that accept access tokens; a token is good for one of them."""

    AUTH = "auth"
    MODEL = "model"
    AGGREGATOR = "aggregator"
    CHAIN = "chain"


class ChallengeRequest(Wire):
    """Ask for a message to sign."""

    address: Address


class Challenge(Wire):
    """An EIP-4361 message with a nonce that works once and until `expires_at`."""

    message: str
    nonce: str
    expires_at: AwareDatetime


class SignIn(Wire):
    """A challenge's message, signed by `personal_sign` (EIP-191): by the address's own key, or by its contract wallet
    (ERC-1271, ERC-6492)."""

    message: str = Field(max_length=4096)
    signature: AnySignature


class Session(Wire):
    """A session: exchange its token for access tokens until it ends."""

    token: str
    address: Address
    roles: tuple[Role, ...]
    expires_at: AwareDatetime


class SessionView(Wire):
    """A session as its holder sees it again: with the roles of this moment, and without its token."""

    address: Address
    roles: tuple[Role, ...]
    expires_at: AwareDatetime


class BrowserSession(SessionView):
    """A session whose token lies in a cookie that no script can read.

    Whatever the cookie authorises and changes something must carry `csrf_token` in the header `X-CSRF-Token`: another
    site's page can make a browser send the cookie, and cannot read this.
    """

    csrf_token: str


class OpenSession(Wire):
    """One of the caller's own sessions. Its `id` opens nothing: it is the SHA-256 of the session's token."""

    id: Digest
    opened_at: AwareDatetime
    last_used_at: AwareDatetime = Field(description="when the session was last shown to the auth service")
    expires_at: AwareDatetime = Field(description="when it ends at the latest")
    device: str = Field(max_length=100, description="program and system, as the one that signed in called itself")
    is_current: Truth = Field(description="whether it is the one that asks")


class EndedSessions(Wire):
    """Ids of the sessions that were ended while access tokens with roles, taken with them, live on; in order."""

    sessions: tuple[Digest, ...]


class Application(Wire):
    """Somebody signed in asks an administrator for a role; one at a time for an address."""

    role: Role
    name: Text = Field(min_length=1, max_length=100, description="who asks: a hospital, a person")
    note: Text = Field(default="", max_length=500)


class FiledApplication(Application):
    """An application as an administrator sees it."""

    address: Address
    filed_at: AwareDatetime


class TokenRequest(Wire):
    """Ask for an access token for one audience."""

    audience: Audience


class AccessToken(Wire):
    """A short-lived JSON Web Token (RFC 7519) for one audience."""

    token: str
    audience: Audience
    roles: tuple[Role, ...]
    expires_at: AwareDatetime


class BrokerCredential(Wire):
    """A hospital's own user at the broker, which can do nothing but work at the hospital's own queue.

    `renew_at` is when to ask for another one: the password works until well after it.
    """

    username: str
    password: str = Field(repr=False)
    renew_at: AwareDatetime
