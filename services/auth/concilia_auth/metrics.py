"""What the auth service counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class AuthMetrics:
    """Sign-ins, tokens, refusals and reports; without a registry they are counted and shown nowhere."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.sign_ins = Counter(
            "concilia_sign_ins", "Attempts to sign in: 'ok', or why not.", ("outcome",), registry=registry
        )
        self.tokens = Counter(
            "concilia_tokens", "Access tokens issued, by the service they are for.", ("audience",), registry=registry
        )
        self.rate_limited = Counter(
            "concilia_rate_limited",
            "Requests refused as too many of one kind, by whose limit it was: an address's or a source's.",
            ("kind", "by"),
            registry=registry,
        )
        self.csp_reports = Counter(
            "concilia_csp_reports",
            "Violations of the content security policy that browsers reported, and requests that were no report.",
            ("outcome",),
            registry=registry,
        )
