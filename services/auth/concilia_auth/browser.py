"""What makes a session safe in a browser: its cookie, who may make the browser send it, and the CSRF token. Pure.

A session's token lies in a cookie that no script can read and no other host can set. The rules for a request that the
cookie authorises and that changes something, in the order in which they apply:

1. where the browser says which site asked (`Origin`, `Sec-Fetch-Site`), it was this one,
2. the request names the session (the cookie),
3. it carries the session's CSRF token, which another site's page can neither read nor make.

Source: RFC 6265bis (cookie prefixes, SameSite), Fetch Metadata Request Headers, RFC 6454 (Origin), Clear Site Data
(W3C); OWASP, "Cross-Site Request Forgery Prevention", tokens by HMAC bound to the session.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from concilia_auth.errors import CrossSite, CsrfTokenInvalid

COOKIE = "__Host-concilia"
"""The prefix makes a browser refuse it unless it is Secure, has the path '/' and is for this host alone."""

FORGOTTEN = '"cache", "storage"'
"""What a browser is to forget of this origin when somebody signs out (`Clear-Site-Data`). Not "cookies", which would
take those of all services at this host and its parent domains, whatever their port; ours is taken back by name."""

_CONTEXT = b"concilia csrf token 1"
_OWN = frozenset({"same-origin", "none"})  # 'none': the person, not a page, made the browser ask
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Sent:
    """The headers `Origin`, `Sec-Fetch-Site` and `X-CSRF-Token` of a request; None where one was not sent."""

    origin: str | None = None
    fetch_site: str | None = None
    csrf_token: str | None = None


def origin_of(uri: str) -> str:
    """An address's origin as browsers write it: scheme, host, and the port where it is not the scheme's own.

    Raises `ValueError` for an address without a host, or with an impossible port.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"the address {uri!r} cannot be one: {error}") from error
    if not host:
        raise ValueError(f"the address {uri!r} names no host")
    suffix = "" if port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://[{host}]{suffix}" if ":" in host else f"{parts.scheme}://{host}{suffix}"


def csrf_token(session_token: str) -> str:
    """The CSRF token of a session: HMAC-SHA256 keyed by its token, base64url. Nothing is stored for it."""
    made = hmac.digest(session_token.encode(), _CONTEXT, hashlib.sha256)
    return base64.urlsafe_b64encode(made).rstrip(b"=").decode()


def check_site(sent: Sent, origin: str) -> None:
    """Whether the page that asks is of this site, as far as the browser tells. Raises `CrossSite`."""
    if sent.origin not in (None, origin) or not (sent.fetch_site is None or sent.fetch_site in _OWN):
        raise CrossSite(f"only pages of {origin} may ask for this with a cookie")


def check_csrf(sent: Sent, session_token: str) -> None:
    """Whether the request carries its session's CSRF token. Raises `CsrfTokenInvalid`."""
    expected = csrf_token(session_token).encode()
    if not hmac.compare_digest(expected, (sent.csrf_token or "").encode()):
        raise CsrfTokenInvalid("the header X-CSRF-Token must carry the session's csrf_token")
