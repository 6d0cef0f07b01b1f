"""Calling a Concilia service: retries with jitter, problems kept as problems, sign-in with a key when one is given.

Constructing a client opens no connection.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import httpx
import tenacity
from asgi_correlation_id import correlation_id
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount

from concilia_kit.problems import Problem, Unavailable
from concilia_kit.wire.auth import AccessToken, Audience, Challenge, Session

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_Outcome = TypeVar("_Outcome")
_SAFE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
IDEMPOTENCY_KEY = "Idempotency-Key"
"""The header with which the same request may come twice and counts once."""
_TOO_MANY = 429
_RETRY_STATUS = frozenset({502, 503, 504})
_MARGIN = 10.0  # seconds before a token's end at which a new one is taken


class Client(httpx.Client):
    """An HTTP client that others may ask who vouches for its servers, to open connections of the same trust."""

    def __init__(self, *, authorities: ssl.SSLContext, **kwargs: Any) -> None:
        super().__init__(verify=authorities, **kwargs)
        self.authorities = authorities


def client(
    base_url: str,
    auth: httpx.Auth | None = None,
    transport: httpx.BaseTransport | None = None,
    authorities: ssl.SSLContext | None = None,
) -> Client:
    """An HTTP client for one service that sends the request id on.

    `authorities` vouch for the service where it is asked over TLS: the public ones by default, or those in the file
    that `SSL_CERT_FILE` names.
    """

    def stamp(request: httpx.Request) -> None:
        if (request_id := correlation_id.get()) is not None:
            request.headers["X-Request-ID"] = request_id

    return Client(
        base_url=base_url,
        auth=auth,
        timeout=TIMEOUT,
        transport=transport,
        authorities=authorities or _authorities(),
        event_hooks={"request": [stamp]},
    )


def authorities(file: Path) -> ssl.SSLContext:
    """Trust in the authorities of a PEM file alone. Raises `OSError`, `ssl.SSLError`."""
    return ssl.create_default_context(cafile=file)


@cache
def _authorities() -> ssl.SSLContext:
    """Who vouches for servers: read once for all clients, each of which would keep a megabyte of it."""
    return httpx.create_ssl_context()


def call(http: httpx.Client, method: str, path: str, *, retry_seconds: float = 30.0, **kwargs: Any) -> httpx.Response:
    """One call. Connection failures are retried for `retry_seconds`, and so is 429, after which nothing was done; other
    answers that say "later" likewise for methods that may be repeated (RFC 9110, section 9.2.2), and for requests with
    an idempotency key. Where an answer says when to come back, that is waited for, or given up at once if it is too
    long.

    Raises `Problem` for an answer of 400 and above, `Unavailable` where no answer came.
    """

    repeatable = method in _SAFE or IDEMPOTENCY_KEY in (kwargs.get("headers") or {})
    return _patiently(lambda: _once(http, method, path, **kwargs), http, retry_seconds, repeatable)


def _once(http: httpx.Client, method: str, path: str, **kwargs: Any) -> httpx.Response:
    response = http.request(method, path, **kwargs)
    raise_for_problem(response)
    return response


def _patiently(attempt: Callable[[], _Outcome], http: httpx.Client, seconds: float, repeatable: bool) -> _Outcome:
    """What `attempt` returns, tried again for `seconds`: where no connection came about, and where it may be repeated
    also after an answer that was lost or said "later"."""
    backoff = tenacity.wait_random_exponential(multiplier=0.1, max=3)

    def worth_another_try(error: BaseException) -> bool:
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return True
        if isinstance(error, Problem):
            return error.problem_status == _TOO_MANY or (repeatable and error.problem_status in _RETRY_STATUS)
        return repeatable and isinstance(error, httpx.TransportError)

    def asked(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        return (error.retry_after() or 0.0) if isinstance(error, Problem) else 0.0

    def is_over(state: tenacity.RetryCallState) -> bool:
        return (state.seconds_since_start or 0.0) + asked(state) >= seconds

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(worth_another_try),
        wait=lambda state: asked(state) + backoff(state),
        stop=is_over,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except httpx.TransportError as error:
        raise Unavailable(f"{http.base_url} does not answer ({type(error).__name__})") from error


def raise_for_problem(response: httpx.Response) -> None:
    """Raise the `Problem` that an answer of 400 and above carries."""
    if response.status_code < 400:
        return
    response.read()
    try:
        document = response.json()
    except ValueError:
        document = {}
    raise Problem.from_document(document if isinstance(document, dict) else {}, response.status_code, response.headers)


class WalletAuth(httpx.Auth):
    """Signs in at the auth service with a key (EIP-4361) and keeps a fresh access token for one audience."""

    def __init__(
        self, auth: httpx.Client, account: LocalAccount, audience: Audience, retry_seconds: float = 30.0
    ) -> None:
        self._auth = auth
        self._retry_seconds = retry_seconds
        self._account = account
        self._audience = audience
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._token: AccessToken | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add a token; where it is refused as unknown, or as lacking a role that may have been granted since it was
        issued, take a new one and try once more."""
        request.headers["Authorization"] = f"Bearer {self.token()}"
        response = yield request
        # A streamed body is spent by the first attempt and cannot be sent again.
        if response.status_code in {401, 403} and hasattr(request, "_content"):
            request.headers["Authorization"] = f"Bearer {self.token(fresh=True)}"
            yield request

    def token(self, fresh: bool = False) -> str:
        """An access token with some life left. Raises `Problem` where sign-in is refused."""
        with self._lock:
            if fresh or self._token is None or self._token.expires_at.timestamp() - time.time() < _MARGIN:
                # Nothing is done twice by signing in twice: each attempt signs a challenge of its own.
                self._token = _patiently(self._exchange, self._auth, self._retry_seconds, repeatable=True)
            return self._token.token

    def _exchange(self) -> AccessToken:
        if self._session is None or self._session.expires_at.timestamp() - time.time() < _MARGIN:
            self._session = self._sign_in()
        try:
            return self._access(self._session)
        except Problem as problem:
            if problem.problem_status != 401:
                raise
            self._session = self._sign_in()
            return self._access(self._session)

    def _sign_in(self) -> Session:
        asked = _once(self._auth, "POST", "/v1/challenges", json={"address": self._account.address})
        challenge = Challenge.model_validate_json(asked.content)
        signed = self._account.sign_message(encode_defunct(text=challenge.message))
        answer = _once(
            self._auth,
            "POST",
            "/v1/sessions",
            json={"message": challenge.message, "signature": "0x" + signed.signature.hex().removeprefix("0x")},
        )
        return Session.model_validate_json(answer.content)

    def _access(self, session: Session) -> AccessToken:
        answer = _once(
            self._auth,
            "POST",
            "/v1/tokens",
            json={"audience": self._audience.value},
            headers={"Authorization": f"Bearer {session.token}"},
        )
        return AccessToken.model_validate_json(answer.content)
