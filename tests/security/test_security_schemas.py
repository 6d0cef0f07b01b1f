"""Every operation of every running service beside its own description (OpenAPI), by Schemathesis."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.security import schema_runs, schema_stack
from tests.security.schema_stack import Stack


@pytest.fixture(scope="module")
def stack(free_ports: Callable[[int], int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with schema_stack.running(tmp_path_factory.mktemp("schemas") / "stack", free_ports(8)) as running:
        yield running


# The node first: jobs that others are asked to make are none of its.
@pytest.mark.parametrize("service", ["client-node", "auth", "model", "chain", "aggregator"])
def test_a_service_answers_as_its_description_says(service: str, stack: Stack, tell: Callable[[str], None]) -> None:
    with schema_stack.node(stack) if service == "client-node" else contextlib.nullcontext():
        done = schema_runs.run(stack, service)
    for line in (done.line(), *done.exemptions()):
        tell(line)
    told = [f"{check}: {operation}: {what}\n  {again}" for (check, operation, what), again in done.failures.items()]
    assert not told + done.errors, "\n\n".join([done.line(), *told, *done.errors])
    assert len(done.tested) == done.operations
    assert not done.tested - done.let_in
