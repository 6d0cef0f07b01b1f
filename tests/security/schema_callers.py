"""Who asks, when a service is asked for everything that its description has: somebody with every role.

A description names what an operation wants: an access token, a session's, or a browser's cookie. Each is the real thing,
for a session by signing in anew, since operations here end sessions too.
"""

from __future__ import annotations

from typing import Any

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


class Caller:
    """The consortium's administrator, to whom all roles were granted."""

    def __init__(self, stack: Stack) -> None:
        self._services = stack.services
        self._url = stack.url("auth")
        self._address = stack.state.caller

    def token(self, service: str, path: str) -> str:
        """An access token for a service; the one route that auth alone may ask has auth's own."""
        caller = ISSUER if path == "/v1/signatures" else self._address
        return load_routes.token(self._services, Audience(service), caller)

    def session(self) -> str:
        """A session's token."""
        return str(self._signed_in("/v1/sessions").json()["token"])

    def cookie(self) -> str:
        """A browser session's cookie, its value alone."""
        return self._signed_in("/v1/browser-sessions").cookies[browser.COOKIE]

    def origin(self) -> str:
        """The site whose pages may use the cookie."""
        return self._url

    def _signed_in(self, path: str) -> httpx.Response:
        account = self._services.admin.account
        headers = {"Origin": self.origin()}
        with httpx.Client(base_url=self._url, timeout=60, headers=headers) as http:
            told = http.post("/v1/challenges", json={"address": account.address}).raise_for_status()
            message = told.json()["message"]
            signature = account.sign_message(encode_defunct(text=message)).signature.to_0x_hex()
            return http.post(path, json={"message": message, "signature": signature}).raise_for_status()


def provider(service: str, caller: Caller) -> type[Any]:
    """What Schemathesis asks for the credentials of each request."""

    class Provider:
        def get(self, case: schemathesis.Case, context: AuthContext) -> dict[str, str] | None:
            wanted = {name for each in _security(context) for name in each}
            if not wanted:
                return None
            if SESSION in wanted:
                return {"Authorization": f"Bearer {caller.session()}"}
            if COOKIE in wanted:
                return {"Cookie": caller.cookie()}
            return {"Authorization": f"Bearer {caller.token(service, context.operation.path)}"}

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
