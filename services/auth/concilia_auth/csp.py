"""Reports of browsers that a page broke the site's Content-Security-Policy, cut down to what may be logged. Pure.

A report repeats whole addresses, with their queries, and samples of scripts. All that is kept is which directive was
broken and by which scheme and host. Anybody may send anything as a report: every word kept is bounded.

Source: Content Security Policy Level 3, section 5 (reporting); Reporting API (`application/reports+json`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, TypeAdapter

MAX_BODY = 8 * 1024
"""Bytes of one request; a report takes about one thousand."""

_DIRECTIVE = re.compile(r"[a-z][a-z-]{0,39}")
_KEYWORD = re.compile(r"[a-z][a-z-]{0,39}")  # inline, eval, wasm-eval, data, trusted-types-sink, …
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]{0,39}:(//[a-z0-9._:\[\]-]{1,260})?")


@dataclass(frozen=True, slots=True)
class Violation:
    """The directive that was broken, and by what: a keyword ('inline'), or a scheme with its host and port."""

    directive: str
    blocked: str


class _Legacy(BaseModel):
    effective: str = Field(default="", alias="effective-directive")
    violated: str = Field(default="", alias="violated-directive")
    blocked: str = Field(default="", alias="blocked-uri")


class _LegacyReport(BaseModel):
    report: _Legacy = Field(alias="csp-report")


class _Report(BaseModel):
    type: str
    body: dict[str, Any]


class _Body(BaseModel):
    effective: str = Field(alias="effectiveDirective")
    blocked: str = Field(default="", alias="blockedURL")


_sent: TypeAdapter[_LegacyReport | list[_Report]] = TypeAdapter(_LegacyReport | list[_Report])


def parse(body: bytes) -> tuple[Violation, ...]:
    """The violations that a request's body reports, in either format. Raises `ValueError` where there is none."""
    sent = _sent.validate_json(body)
    if isinstance(sent, _LegacyReport):
        # Level 2 repeats the directive's whole value; its name is the first word.
        named = sent.report.effective or sent.report.violated.partition(" ")[0]
        return (Violation(_directive(named), _blocked(sent.report.blocked)),)
    found = [_Body.model_validate(report.body) for report in sent if report.type == "csp-violation"]
    if not found:
        raise ValueError("none of the reports is about a content security policy")
    return tuple(Violation(_directive(report.effective), _blocked(report.blocked)) for report in found)


def _directive(text: str) -> str:
    if _DIRECTIVE.fullmatch(text) is None:
        raise ValueError("no name of a directive")
    return text


def _blocked(text: str) -> str:
    if text == "" or _KEYWORD.fullmatch(text):
        return text or "none"
    parts = urlsplit(text)  # raises ValueError for an impossible host
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    port = "" if parts.port is None else f":{parts.port}"
    origin = f"{parts.scheme}:" + (f"//{host}{port}" if host else "")
    if _ORIGIN.fullmatch(origin) is None:
        raise ValueError("no address that could be blocked")
    return origin
