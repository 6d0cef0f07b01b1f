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

import schemathesis
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.engine import Status, events
from schemathesis.hooks import HookContext

from tests.security import schema_callers, schema_exceptions
from tests.security.schema_callers import Caller
from tests.security.schema_stack import Stack

EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "4"))
SEED = int(os.environ.get("SCHEMA_SEED", "9110"))
_ANSWER_SECONDS = 30.0
_STREAM_SECONDS = 1.0
_KNOWN_SHARE = 0.5
"""How often a parameter is something that there is: what there is not is answered by 404 alone."""


@dataclass
class Run:
    """What was asked, and what was not as the description and RFC 9110 have it."""

    service: str
    operations: int = 0
    tested: set[str] = field(default_factory=set)
    cases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """How to send each again, by check, operation and what is wrong."""
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """What is told at the end."""
        phases = ", ".join(f"{count:,} in {phase}" for phase, count in self.cases.items())
        answers = ", ".join(f"{count:,} × {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"schemas, {self.service}: {len(self.tested)} of {self.operations} operations, {self.cases.total():,} cases "
            f"({phases}), {len(self.failures)} failures, {self.seconds:.0f} s; answers: {answers}"
        )


def run(stack: Stack, service: str) -> Run:
    """Ask for everything that a service's description has."""
    done = Run(service)
    schema = schemathesis.openapi.from_url(f"{stack.url(service)}/openapi.json", config=_config(stack), timeout=60)
    if service != "client-node":  # whose port has nobody's secrets
        schema.auth(refresh_interval=None)(schema_callers.provider(service, Caller(stack)))

    @schema.hook
    def filter_failure(context: HookContext, failure: Failure, case: schemathesis.Case, response: Response) -> bool:
        return schema_exceptions.accepted(service, failure, case, response) is None

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
        if (answer := interaction.response) is not None:
            done.statuses[answer.status_code] += 1
        if case in event.recorder.cases:
            done.tested.add(event.recorder.cases[case].value.operation.label)


def _config(stack: Stack) -> SchemathesisConfig:
    """Schemathesis's own configuration file, as a document."""
    state = stack.state
    known = {
        "job": [state.job],
        "digest": [state.digest],
        "address": [state.caller],
        "hospital": [state.caller],
        "round": [1],
        "round_number": [1],
    }
    document: dict[str, Any] = {
        "seed": SEED,
        "request-timeout": _ANSWER_SECONDS,
        "generation": {"max-examples": EXAMPLES, "database": "none", "mode": "all", "no-shrink": True},
        "dictionaries": {name: {"values": values} for name, values in known.items()},
        "parameters": {f"path.{name}": {"dictionary": name, "probability": _KNOWN_SHARE} for name in known},
        "operations": [
            {"include-path-regex": "/stream$", "max-stream-events": 1, "request-timeout": _STREAM_SECONDS},
        ],
        "checks": {"enabled": True},
        "phases": {phase: {"enabled": True} for phase in ("examples", "coverage", "fuzzing", "stateful")},
    }
    return SchemathesisConfig.from_dict(document)
