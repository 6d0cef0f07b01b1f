"""A description with examples that are true of what there is: the phase `examples` sends these as they are, and so does
something where values that were drawn are refused."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from concilia_model import tus

from benchmarks import load_routes
from benchmarks.load_routes import Route
from tests.security.schema_callers import Caller
from tests.security.schema_stack import Stack

_SIGN_IN = ("/v1/sessions", "/v1/browser-sessions")
_JSON, _OCTETS = "application/json", "application/octet-stream"


def known(stack: Stack) -> dict[str, Any]:
    """Parameters, by their names, of something that there is."""
    state = stack.state
    return {
        "job": state.job,
        "digest": state.digest,
        "address": state.caller,
        "hospital": state.caller,
        "account": state.caller,
        "round": 1,
        "round_number": 1,
    }


def add(document: dict[str, Any], stack: Stack, service: str, caller: Caller) -> None:
    """Put examples into a service's description."""
    empty = hashlib.sha256(b"").hexdigest()
    values = {
        **known(stack),
        "origin": caller.origin(),
        "sec-fetch-site": "same-origin",
        "Tus-Resumable": tus.VERSION,
        "Upload-Metadata": f"digest {base64.b64encode(empty.encode()).decode()}",
        "Upload-Length": 100,
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in values:
                    parameter["example"] = values[parameter["name"]]
            content = operation.get("requestBody", {}).get("content", {})
            if _JSON in content:
                signs_in = service == "auth" and path in _SIGN_IN
                route = Route(service, method.upper(), path)
                example = caller.signed() if signs_in else load_routes.document(route, stack.state)
                if path == "/v1/jobs":
                    example = {"name": "schemas", "initial": stack.state.digest}
                if example:
                    content[_JSON]["example"] = example
            if (method, path) == ("put", "/v1/artifacts/{digest}"):
                content[_OCTETS]["example"] = stack.state.artifact
