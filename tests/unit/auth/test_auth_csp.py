"""Reports of the content security policy: what is kept of them, and that nothing else is."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from concilia_auth import csp, service
from concilia_auth.csp import Violation
from hypothesis import given
from hypothesis import strategies as st

LEGACY: dict[str, Any] = {
    "csp-report": {
        "document-uri": "https://concilia.example/diagnosis?patient=7",
        "referrer": "",
        "violated-directive": "script-src-elem",
        "effective-directive": "script-src-elem",
        "original-policy": "default-src 'none'; report-uri /api/auth/v1/csp-reports",
        "blocked-uri": "https://evil.example:8443/x.js?token=secret",
        "script-sample": "alert(secret)",
        "status-code": 200,
    }
}
MODERN: list[dict[str, Any]] = [
    {
        "type": "csp-violation",
        "age": 10,
        "url": "https://concilia.example/?token=secret",
        "user_agent": "Mozilla/5.0",
        "body": {
            "documentURL": "https://concilia.example/?token=secret",
            "effectiveDirective": "style-src-attr",
            "blockedURL": "inline",
            "sample": "secret",
            "disposition": "enforce",
            "lineNumber": 3,
        },
    },
    {"type": "deprecation", "body": {"id": "something else"}},
]


def legacy(**changes: Any) -> bytes:
    return json.dumps({"csp-report": {**LEGACY["csp-report"], **changes}}).encode()


@pytest.mark.parametrize(
    ("body", "violations"),
    [
        (json.dumps(LEGACY).encode(), (Violation("script-src-elem", "https://evil.example:8443"),)),
        (json.dumps(MODERN).encode(), (Violation("style-src-attr", "inline"),)),
        (json.dumps(2 * MODERN).encode(), 2 * (Violation("style-src-attr", "inline"),)),
        (legacy(**{"blocked-uri": "data"}), (Violation("script-src-elem", "data"),)),
        (legacy(**{"blocked-uri": ""}), (Violation("script-src-elem", "none"),)),
        (legacy(**{"blocked-uri": "data:text/html,secret"}), (Violation("script-src-elem", "data:"),)),
        (legacy(**{"blocked-uri": "https://u:secret@[::1]/s"}), (Violation("script-src-elem", "https://[::1]"),)),
        (
            legacy(**{"effective-directive": "", "violated-directive": "img-src 'self' https://x.example/secret"}),
            (Violation("img-src", "https://evil.example:8443"),),
        ),
    ],
)
def test_auth_csp_keeps_directive_and_origin(body: bytes, violations: tuple[Violation, ...]) -> None:
    assert csp.parse(body) == violations


MALFORMED = [
    b"",
    b"\xff",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b'{"csp-report": 1}',
    b'[{"type": "csp-violation"}]',
    b'[{"type": "csp-violation", "body": {}}]',
    b'[{"type": "deprecation", "body": {}}]',
    4000 * b"[",
    legacy(**{"effective-directive": "script-src\nforged line"}),
    legacy(**{"effective-directive": 41 * "a"}),
    legacy(**{"effective-directive": "<script>"}),
    legacy(**{"blocked-uri": "https://evil.example:99999/"}),
    legacy(**{"blocked-uri": "https://evil example/"}),
    legacy(**{"blocked-uri": "https://" + 300 * "a"}),
    legacy(**{"blocked-uri": "no address?secret"}),
]


@pytest.mark.parametrize("body", MALFORMED)
def test_auth_csp_refuses_what_is_no_report(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's and urllib's words differ
        csp.parse(body)


_word = st.text(max_size=50) | st.sampled_from(["https://a.example/?q", "inline", "script-src", "http://[", "x:y"])


@given(
    st.binary(max_size=200)
    | st.builds(lambda a, b: legacy(**{"effective-directive": a, "blocked-uri": b}), _word, _word)
    | st.builds(
        lambda a, b: json.dumps(
            [{"type": "csp-violation", "body": {"effectiveDirective": a, "blockedURL": b}}]
        ).encode(),
        st.just("script-src") | _word,
        _word,
    )
)
def test_auth_csp_keeps_bounded_words_or_refuses(body: bytes) -> None:
    try:
        violations = csp.parse(body)
    except ValueError:
        return
    for violation in violations:
        assert re.fullmatch(r"[a-z-]{1,40}", violation.directive)
        assert re.fullmatch(r"[a-z0-9+._:\[\]-]{1,45}(//[a-z0-9._:\[\]-]{1,270})?", violation.blocked)


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, sentence: str, **members: Any) -> None:
        self.lines.append((sentence, members))

    debug = info = error = warning


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Lines:
    lines = Lines()
    monkeypatch.setattr(service, "_log", lines)
    return lines


async def counted(site: httpx.AsyncClient) -> dict[str, float]:
    text = (await site.get("/metrics")).text
    found = re.findall(r'^concilia_csp_reports_total\{outcome="(\w+)"\} ([\d.]+)$', text, re.M)
    return {outcome: float(value) for outcome, value in found}


@pytest.mark.parametrize(
    ("content", "media_type", "violations", "reports"),
    [
        (json.dumps(LEGACY), "application/csp-report", ["script-src-elem https://evil.example:8443"], 1),
        (json.dumps(4 * MODERN), "application/reports+json", ["style-src-attr inline"], 4),
    ],
)
async def test_auth_csp_report_is_counted_and_logged_in_one_line(
    site: httpx.AsyncClient, log: Lines, content: str, media_type: str, violations: list[str], reports: int
) -> None:
    answer = await site.post("/v1/csp-reports", content=content, headers={"Content-Type": media_type})
    assert (answer.status_code, answer.content) == (204, b"")
    assert await counted(site) == {"reported": reports}
    assert log.lines == [("content security policy violated", {"violations": violations, "reports": reports})]
    assert "secret" not in str(log.lines)


async def test_auth_csp_malformed_report_is_counted_and_no_more(site: httpx.AsyncClient, log: Lines) -> None:
    too_long = json.dumps(LEGACY).encode() + csp.MAX_BODY * b" "
    for content in (*MALFORMED, too_long):
        answer = await site.post("/v1/csp-reports", content=content, headers={"Content-Type": "application/csp-report"})
        assert (answer.status_code, answer.content) == (204, b"")
    assert await counted(site) == {"malformed": len(MALFORMED) + 1}
    assert log.lines == []
