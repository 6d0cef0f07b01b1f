"""What a service's description (OpenAPI 3.1) says of all its operations alike: which problems they answer with, and
bounds as exact as they are.

A route names the problems of its own, `responses=problems(JobEnded, …)`; those that any operation of its kind has are
added here, so that no answer is without a word in the description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Match

from concilia_kit.admission import ALWAYS, TooBusy
from concilia_kit.bodies import BodyTooLarge, BodyTooSlow
from concilia_kit.problems import MEDIA_TYPE, Forbidden, NotFound, Problem, Unauthorized, Unavailable
from concilia_kit.serving import HeadTooSlow, Malformed

Responses = dict[int | str, dict[str, Any]]

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_NAME = "Problem"
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Problem details (RFC 9457); `code` is for programs, and problems may have members of their own.",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"const": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"},
        "detail": {"type": "string"},
    },
}
_CONTENT: dict[str, Any] = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{_NAME}"}}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    429: {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 0}}},
    503: {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 0}}},
}
_FASTAPIS = ("HTTPValidationError", "ValidationError")  # what is in the place of these is `invalid_request`
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def problems(*kinds: type[Problem]) -> Responses:
    """A route's own problems for its `responses`, by status."""
    codes: dict[int, list[str]] = {}
    for kind in kinds:
        codes.setdefault(kind.status, []).append(kind.code)
    return {status: _described(status, named) for status, named in codes.items()}


def complete(app: FastAPI) -> None:
    """Have an application's description say what its operations have in common."""
    described: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = described()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _complete(path, operation)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name in _FASTAPIS:
                schemas.pop(name, None)
            schemas[_NAME] = _SCHEMA
            _make_exact(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def allowed(request: Request) -> str:
    """The methods of all routes at a request's path, for `Allow` (RFC 9110, section 10.2.1). Starlette names those of
    the first one alone."""
    routes = request.app.router.routes
    scopes = ((method, {**request.scope, "method": method}) for method in _METHODS)
    return ", ".join(method for method, scope in scopes if any(each.matches(scope)[0] is Match.FULL for each in routes))


def _described(status: int, codes: Iterable[str]) -> dict[str, Any]:
    answer = {"description": ", ".join(f"`{code}`" for code in codes), "content": _CONTENT}
    return {**answer, "headers": _HEADERS[status]} if status in _HEADERS else answer


def _complete(path: str, operation: dict[str, Any]) -> None:
    said: dict[str, Any] = operation["responses"]
    if _FASTAPIS[0] in str(said.get("422")):
        del said["422"]
    codes: dict[int, list[str]] = {}
    for status, code in _common(path, operation):
        codes.setdefault(status, []).append(code)
    for status, named in codes.items():
        there = said.setdefault(str(status), {"description": ""})
        words = [there["description"], *(f"`{code}`" for code in named if code not in there["description"])]
        there["description"] = ", ".join(filter(None, words))
    for name, answer in said.items():
        if name.isdigit() and int(name) >= 400:
            answer.setdefault("content", _CONTENT)
            if int(name) in _HEADERS:
                answer["headers"] = {**_HEADERS[int(name)], **answer.get("headers", {})}
    operation["responses"] = dict(sorted(said.items()))


def _common(path: str, operation: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Status and code of what an operation of this kind may answer."""
    parameters: list[dict[str, Any]] = operation.get("parameters", [])
    if operation.get("security"):
        yield from ((kind.status, kind.code) for kind in (Unauthorized, Forbidden))
        yield Forbidden.status, "role_missing"
    if any(each["in"] == "path" for each in parameters):
        yield NotFound.status, NotFound.code
    yield from ((kind.status, kind.code) for kind in (Malformed, HeadTooSlow))
    if "requestBody" in operation:
        yield 400, "http_400"
        yield from ((kind.status, kind.code) for kind in (BodyTooSlow, BodyTooLarge))
    if "requestBody" in operation or parameters:
        yield 422, "invalid_request"
    yield Problem.status, Problem.code
    if path not in ALWAYS:
        yield from ((kind.status, kind.code) for kind in (TooBusy, Unavailable))


def _make_exact(schema: Any) -> None:
    """Whole bounds as whole numbers: FastAPI makes floats of them, and 2^256 written as a float is read as more."""
    if isinstance(schema, list):
        for item in schema:
            _make_exact(item)
    elif isinstance(schema, dict):
        for name, value in schema.items():
            if name in _BOUNDS and isinstance(value, float) and value.is_integer():
                schema[name] = int(value)
            else:
                _make_exact(value)
