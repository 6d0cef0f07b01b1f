"""Why the auth service refuses; each error has one stable code."""

from __future__ import annotations

from concilia_kit.problems import Forbidden, NotFound, Problem, Unauthorized, Unavailable, Unprocessable


class KeyFileError(Exception):
    """A signing key that cannot be used; the message names the file and says what is wrong."""


class MessageMalformed(Unprocessable):
    """Not a sign-in message of EIP-4361."""

    code = "message_malformed"


class NonceUnknown(Unauthorized):
    """The nonce was never given to this address, has been used, or is too old."""

    code = "nonce_unknown"


class DomainMismatch(Unauthorized):
    """The message was signed for another site."""

    code = "domain_mismatch"


class UriMismatch(Unauthorized):
    """The message was signed for another address of this site."""

    code = "uri_mismatch"


class ChainMismatch(Unauthorized):
    """The message was signed for another chain."""

    code = "chain_mismatch"


class MessageExpired(Unauthorized):
    """The message's expiration time has passed."""

    code = "message_expired"


class MessageNotYetValid(Unauthorized):
    """The message is dated in the future."""

    code = "message_not_yet_valid"


class SignatureInvalid(Unauthorized):
    """The address in the message did not sign it."""

    code = "signature_invalid"


class SessionUnknown(Unauthorized):
    """No session goes by this token: it never did, was ended, or timed out."""

    code = "session_unknown"


class SessionNotFound(NotFound):
    """This address has no session of this id."""

    code = "session_not_found"


class SessionNotYours(Forbidden):
    """A session is its own address's; only an administrator ends all of somebody else's."""

    code = "not_yours"


class SignInAgain(Forbidden):
    """Who ends other sessions must have signed in a little while ago: a page that was left open may be anybody's."""

    code = "sign_in_again"


class RateLimited(Problem):
    """This address or this source asks too often."""

    status = 429
    code = "rate_limited"


class CrossSite(Forbidden):
    """A browser asks for a page of another site."""

    code = "cross_site"


class CsrfTokenInvalid(Forbidden):
    """The request comes with a session's cookie and without that session's CSRF token."""

    code = "csrf_token_invalid"


class ApplicationUnknown(NotFound):
    """This address has applied for nothing, or what it applied for was settled."""

    code = "application_unknown"


class ApplicationNotYours(Forbidden):
    """Only an administrator may remove somebody else's application."""

    code = "role_missing"


class ApplicationsFull(Unavailable):
    """As many applications wait as are kept; an administrator has to settle some."""

    code = "applications_full"


class StoreUnavailable(Unavailable):
    """Redis does not answer."""

    code = "store_unavailable"


class ChainUnavailable(Unavailable):
    """The chain service does not answer, or not as agreed."""

    code = "chain_unavailable"
