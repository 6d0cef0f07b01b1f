"""A run of Schemathesis against a service: every phase, every check, from one seed.

`SCHEMA_EXAMPLES` is how many cases are drawn for an operation in each phase that draws them (and scenarios when several
operations are asked in turn); what the phases `examples` and `coverage` ask is given by the description alone.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import schemathesis
from concilia_aggregator.watching import MAX_WAIT
from concilia_kit.signing import ADDRESS_FORMAT
from concilia_model import tus
from eth_utils.address import to_checksum_address
from hypothesis import strategies as st
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.engine import Status, events
from schemathesis.hooks import HookContext

from tests.security import schema_callers, schema_examples, schema_exemptions
from tests.security.schema_callers import Caller
from tests.security.schema_stack import Stack

EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "4"))
SEED = int(os.environ.get("SCHEMA_SEED", "9110"))
_ANSWER_SECONDS = 30.0
_STREAM_SECONDS = 1.0
_WAIT_SECONDS = 1
_KNOWN_SHARE = 0.5
"""How often a parameter is something that there is: what there is not is answered by 404 alone."""

schemathesis.openapi.format(ADDRESS_FORMAT, st.binary(min_size=20, max_size=20).map(to_checksum_address))
schemathesis.serializer.alias(tus.MEDIA_TYPE, "application/octet-stream")

_KEPT = "/v1/artifacts/{digest}"
"""The one path whose answers a caller may keep: its bytes are those of the name for ever."""


@schemathesis.check
def answers_are_kept_by_nobody(_context: Any, response: Response, case: schemathesis.Case) -> None:
    """Of personal data, and of what depends on a role, no cache has a copy (`Cache-Control: no-store`)."""
    said = response.headers.get("cache-control", [""])[0]
    if said != "no-store" and not (case.operation.path == _KEPT and said.startswith("private, ")):
        raise AssertionError(f"a cache may keep this answer of {response.status_code}: Cache-Control is {said!r}")


@dataclass
class Run:
    """What was asked, and what was not as the description and RFC 9110 have it."""

    service: str
    operations: int = 0
    tested: set[str] = field(default_factory=set)
    let_in: set[str] = field(default_factory=set)
    """Operations that the caller was let in to: of others little was seen."""
    effective: set[str] = field(default_factory=set)
    """Operations that did what was asked (2xx)."""
    cases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """How to send each again, by check, operation and what is wrong."""
    exempted: Counter[str] = field(default_factory=Counter)
    """How often what Schemathesis calls a failure was none, by reason."""
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """What is told at the end."""
        phases = ", ".join(f"{count:,} in {phase}" for phase, count in self.cases.items())
        answers = ", ".join(f"{count:,} × {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"schemas, {self.service}: {len(self.tested)} of {self.operations} operations "
            f"({len(self.effective)} did something), "
            f"{self.cases.total():,} cases ({phases}), {len(self.failures)} failures, "
            f"{self.exempted.total():,} exempted, {self.seconds:.0f} s; answers: {answers}"
        )

    def exemptions(self) -> list[str]:
        """What was called a failure and is none, and why."""
        return [f"schemas, {self.service}: {count:,} × none: {why}" for why, count in sorted(self.exempted.items())]


def run(stack: Stack, service: str) -> Run:
    """Ask for everything that a service's description has."""
    done = Run(service)
    described = httpx.get(f"{stack.url(service)}/openapi.json", timeout=60).raise_for_status().json()
    with Caller(stack) as caller:
        schema_examples.add(described, stack, service, caller)
        schema = schemathesis.openapi.from_dict(described, config=_config(stack, service))
        if service != "client-node":  # whose port has nobody's secrets
            schema.auth(refresh_interval=None)(schema_callers.provider(service, caller))

        @schema.hook
        def filter_failure(context: HookContext, failure: Failure, case: schemathesis.Case, response: Response) -> bool:
            exemption = schema_exemptions.exempt(service, failure, case, response)
            if exemption is not None:
                done.exempted[exemption.reason] += 1
            return exemption is None

        @schema.hook
        def map_query(context: HookContext, query: dict[str, Any]) -> dict[str, Any]:
            # A question that stays open is as good after a second as after thirty.
            if str(wait := (query or {}).get("wait")).isdigit() and _WAIT_SECONDS < int(wait) <= MAX_WAIT:
                return {**query, "wait": _WAIT_SECONDS}
            return query

        done.operations = schema.statistic.operations.selected
        began = time.monotonic()
        for event in engine.from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                _count(done, event)
            elif isinstance(event, (events.NonFatalError, events.FatalError)):
                done.errors.append(repr(event))
        done.seconds = time.monotonic() - began
    return done


def _count(done: Run, event: events.ScenarioFinished) -> None:
    for case, checks in event.recorder.checks.items():
        for check in checks:
            failure = check.failure_info
            if check.status is Status.FAILURE and failure is not None:
                label = event.recorder.cases[case].value.operation.label
                key = (check.name, label, failure.failure.message.split("\n\n")[0])
                done.failures.setdefault(key, failure.code_sample)
    for case, interaction in event.recorder.interactions.items():
        done.cases[event.phase.value] += 1
        node = event.recorder.cases.get(case)
        label = (
            node.value.operation.label if node is not None and interaction.request.method == node.value.method else ""
        )
        done.tested.add(label)
        if (answer := interaction.response) is not None:
            done.statuses[answer.status_code] += 1
            if answer.status_code not in {401, 403, 405}:
                done.let_in.add(label)
            if answer.status_code < 300:
                done.effective.add(label)
    for labels in (done.tested, done.let_in, done.effective):
        labels.discard("")


def _config(stack: Stack, service: str) -> SchemathesisConfig:
    """Schemathesis's own configuration file, as a document."""
    known = schema_examples.known(stack)
    missing = schema_exemptions.MISSING_HEADER
    document: dict[str, Any] = {
        "seed": SEED,
        "base-url": stack.url(service),
        "request-timeout": _ANSWER_SECONDS,
        "generation": {"max-examples": EXAMPLES, "database": "none", "mode": "all", "no-shrink": True},
        "dictionaries": {name: {"values": [value]} for name, value in known.items()},
        "parameters": {
            f"{place}.{name}": {"dictionary": name, "probability": _KNOWN_SHARE}
            for name in known
            for place in ("path", "query")
        },
        "operations": [
            {"include-path-regex": "/stream$", "max-stream-events": 1, "request-timeout": _STREAM_SECONDS},
            *(
                {
                    "include-path-regex": f"^{path}",
                    "checks": {"missing_required_header": {"expected-statuses": expected}},
                }
                for path, expected in missing.items()
            ),
        ],
        "checks": {"enabled": True, "negative_data_rejection": {"expected-statuses": schema_exemptions.REFUSALS}},
        "phases": {phase: {"enabled": True} for phase in ("examples", "coverage", "fuzzing", "stateful")},
    }
    return SchemathesisConfig.from_dict(document)
