"""Who asks, when a service is asked for everything that its description has: somebody with every role.

A description names what an operation wants: an access token, a session's, or a browser's cookie. Each is the real
thing; what may end a session gets one of its own.
"""

from __future__ import annotations

from typing import Any, Self

import httpx
import schemathesis
from concilia_auth import browser
from concilia_kit.tokens import ISSUER
from concilia_kit.wire.auth import Audience
from eth_account.messages import encode_defunct
from schemathesis.auths import AuthContext

from benchmarks import load_routes
from tests.security.schema_stack import Stack

SESSION, COOKIE = "session", "browser session"
"""The schemes of the auth service's description, besides access tokens."""
_STRANGER = "0x" + 20 * "22"


class Caller:
    """The consortium's administrator, to whom all roles were granted."""

    def __init__(self, stack: Stack) -> None:
        self._services = stack.services
        self._url = stack.url("auth")
        self._address = stack.state.caller
        self._http = httpx.Client(base_url=self._url, timeout=60, headers={"Origin": self._url})
        self._session: str | None = None
        self._cookie: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def token(self, service: str, label: str) -> str:
        """An access token for a service; the one route that auth alone may ask has auth's own, and who applies for a
        role has none yet. Who ends sessions has one of a new session, and none of those before may be left."""
        if label.startswith("DELETE /v1/sessions/"):
            self._session = self._cookie = None
            bearer = {"Authorization": f"Bearer {self.session(may_end=True)}"}
            answer = self._http.post("/v1/tokens", json={"audience": service}, headers=bearer)
            return str(answer.raise_for_status().json()["token"])
        caller = {"POST /v1/signatures": ISSUER, "POST /v1/applications": _STRANGER}.get(label, self._address)
        return load_routes.token(self._services, Audience(service), caller)

    def session(self, *, may_end: bool) -> str:
        """A session's token."""
        if may_end or self._session is None:
            self._session = str(self._signed_in("/v1/sessions").json()["token"])
        kept = self._session
        if may_end:
            self._session = None
        return kept

    def cookie(self, *, may_end: bool) -> str:
        """A browser session's cookie, its value alone."""
        if may_end or self._cookie is None:
            self._cookie = self._signed_in("/v1/browser-sessions").cookies[browser.COOKIE]
        kept = self._cookie
        if may_end:
            self._cookie = None
        return kept

    def origin(self) -> str:
        """The site whose pages may use the cookie."""
        return self._url

    def signed(self) -> dict[str, str]:
        """A challenge that the administrator signed, good once."""
        account = self._services.admin.account
        told = self._http.post("/v1/challenges", json={"address": account.address}).raise_for_status()
        message = told.json()["message"]
        signature = account.sign_message(encode_defunct(text=message)).signature.to_0x_hex()
        return {"message": message, "signature": signature}

    def _signed_in(self, path: str) -> httpx.Response:
        self._http.cookies.clear()
        return self._http.post(path, json=self.signed()).raise_for_status()


def provider(service: str, caller: Caller) -> type[Any]:
    """What Schemathesis asks for the credentials of each request."""

    class Provider:
        def get(self, case: schemathesis.Case, context: AuthContext) -> dict[str, str] | None:
            wanted = {name for each in _security(context) for name in each}
            if not wanted:
                return None
            if SESSION in wanted:
                return {"Authorization": f"Bearer {caller.session(may_end=case.method == 'DELETE')}"}
            if COOKIE in wanted:
                return {"Cookie": caller.cookie(may_end=case.method == "DELETE")}
            return {"Authorization": f"Bearer {caller.token(service, context.operation.label)}"}

        def set(self, case: schemathesis.Case, data: dict[str, str], context: AuthContext) -> None:
            if (token := data.get("Cookie")) is None:
                case.headers.update(data)
                return
            case.cookies[browser.COOKIE] = token
            if case.method != "GET":
                case.headers.update({"Origin": caller.origin(), "X-CSRF-Token": browser.csrf_token(token)})

    return Provider


def _security(context: AuthContext) -> list[dict[str, Any]]:
    raw: list[dict[str, Any]] = context.operation.definition.raw.get("security", [])
    return raw
