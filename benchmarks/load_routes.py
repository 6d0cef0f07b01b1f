"""Every public route of the services, by their own OpenAPI documents, and a request for each.

A route that is new is loaded without a word here: its parameters have values by their names, and its body is empty JSON
until `_BODIES` has a better one.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from concilia.stack.layout import SERVICES
from concilia_auth import tokens
from concilia_kit.roles import Role
from concilia_kit.tokens import ISSUER
from concilia_kit.wire.auth import Audience

from benchmarks.scale_services import Services

_TOKEN_SECONDS = 3000
_BESIDE = ("/metrics", "/openapi.json")  # are in no document
_SIGNING = (("POST", "/v1/sessions"), ("DELETE", "/v1/sessions"))  # take no access token
_OCTETS = "application/octet-stream"
_PART = "application/offset+octet-stream"
_PICTURE = (
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    + bytes(100_000)  # no picture, but as large as one
    + b"\r\n--b--\r\n"
)


@dataclass(frozen=True)
class State:
    """What there is to ask for: a caller with every role, a job with a closed round, its model."""

    caller: str
    job: str
    digest: str
    artifact: bytes
    update: Mapping[str, Any]
    """A signed update as it was submitted."""
    registration: Mapping[str, Any]
    """A node's."""
    evaluation: Mapping[str, Any]
    """A node's report."""


@dataclass(frozen=True)
class Route:
    """A route of a service."""

    service: str
    method: str
    path: str

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.service} {self.method} {self.path}"


def public(services: Services) -> list[Route]:
    """All there are, those that change nothing first. Raises `httpx.HTTPError`."""
    found = []
    for service in SERVICES:
        described = httpx.get(f"{services.layout.url(service)}/openapi.json", timeout=60).raise_for_status().json()
        listed = [(method.upper(), path) for path, methods in described["paths"].items() for method in methods]
        found += [Route(service, *each) for each in [*listed, *(("GET", path) for path in _BESIDE)]]
    return sorted(found, key=lambda route: route.method not in {"GET", "HEAD", "OPTIONS"})


def request(services: Services, route: Route, state: State) -> bytes:
    """The bytes to send: real parameters, and a body that is valid, or refused for what it says. Raises `KeyError` for
    a parameter whose name is not known here."""
    values = {
        "digest": state.digest,
        "job": state.job,
        "round": "1",
        "round_number": "1",
        "address": state.caller,
        "hospital": state.caller,
        "role": Role.HOSPITAL.value,
        "session": secrets.token_hex(32),
        "upload": secrets.token_hex(16),
        "verification": secrets.token_hex(16),
    }
    path = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], route.path)
    if (route.service, route.path) == ("chain", "/v1/members"):
        path += f"?role={Role.HOSPITAL}"
    headers, body = _body(route, state)
    signs_in = route.path in {"/v1/session", "/v1/challenges"} or (route.method, route.path) in _SIGNING
    if route.path.startswith("/v1/") and not signs_in:
        caller = ISSUER if route.path == "/v1/signatures" else state.caller
        headers["Authorization"] = f"Bearer {token(services, Audience(route.service), caller)}"
    if body or route.method not in {"GET", "HEAD", "OPTIONS"}:
        headers["Content-Length"] = str(len(body))
    lines = [f"{route.method} {path} HTTP/1.1", "Host: load", *(f"{name}: {value}" for name, value in headers.items())]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


def _body(route: Route, state: State) -> tuple[dict[str, str], bytes]:
    """Headers that go with a body, and the body."""
    if route.path.startswith("/v1/uploads"):
        headers = {"Tus-Resumable": "1.0.0"}
        if route.method == "PATCH" or "{" in route.path:
            headers |= {"Upload-Offset": "0", "Content-Type": _PART, "X-HTTP-Method-Override": "PATCH"}
            return headers, state.artifact if route.method in {"PATCH", "POST"} else b""
        metadata = f"digest {base64.b64encode(state.digest.encode()).decode()}"
        return {**headers, "Upload-Length": str(len(state.artifact)), "Upload-Metadata": metadata}, b""
    if (route.method, route.path) == ("PUT", "/v1/artifacts/{digest}"):
        return {"Content-Type": _OCTETS}, state.artifact
    if route.path == "/v1/predictions":
        return {"Content-Type": "multipart/form-data; boundary=b"}, _PICTURE
    if route.method not in {"POST", "PUT", "PATCH"}:
        return {}, b""
    return {"Content-Type": "application/json"}, json.dumps(document(route, state)).encode()


def document(route: Route, state: State) -> Any:
    known: dict[tuple[str, str], Any] = {
        ("auth", "/v1/challenges"): {"address": state.caller},
        ("auth", "/v1/sessions"): {"message": "not a challenge", "signature": "0x" + "11" * 65},
        ("auth", "/v1/browser-sessions"): {"message": "not a challenge", "signature": "0x" + "11" * 65},
        ("auth", "/v1/tokens"): {"audience": Audience.MODEL.value},
        ("auth", "/v1/applications"): {"role": Role.HOSPITAL.value, "name": "a hospital"},
        ("aggregator", "/v1/jobs"): {"name": "load", "initial": "ab" * 32},
        ("aggregator", "/v1/nodes/{address}"): state.registration,
        ("aggregator", "/v1/jobs/{job}/rounds/{round_number}/progress"): {"stage": "training", "fraction": 0.5},
        ("aggregator", "/v1/jobs/{job}/rounds/{round_number}/evaluations/{address}"): state.evaluation,
        ("chain", "/v1/updates"): state.update,
        ("chain", "/v1/signatures"): {"address": state.caller, "digest": state.digest, "signature": "0x" + "11" * 65},
        ("chain", "/v1/rpc"): {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []},
        ("model", "/v1/models"): {"job": state.job, "digest": state.digest, "architecture": "mobilenet_v2"},
    }
    return known.get((route.service, route.path), {})


def token(services: Services, audience: Audience, caller: str) -> str:
    now = datetime.now(UTC).replace(microsecond=0)
    return tokens.mint(
        services.signing,
        token_id=secrets.token_urlsafe(16),
        address=caller,
        roles=() if caller == ISSUER else list(Role),
        audience=audience,
        issued_at=now,
        expires_at=now + timedelta(seconds=_TOKEN_SECONDS),
    )
