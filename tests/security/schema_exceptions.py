"""What Schemathesis is told not to look at, each with its reason; what is here is printed with every run."""

from __future__ import annotations

from dataclasses import dataclass

import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response


@dataclass(frozen=True)
class Exception_:
    """A failure that is none."""


def accepted(service: str, failure: Failure, case: schemathesis.Case, response: Response) -> str | None:
    """The reason why a failure is none; None where it is one."""
    return None
