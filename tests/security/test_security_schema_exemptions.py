"""The exemptions of the schemas' tests let pass what they name, and nothing beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from schemathesis.core.failures import AcceptedNegativeData, Failure, ServerError
from schemathesis.openapi.checks import RejectedPositiveData

from tests.security import schema_exemptions


class Named:
    """Stands for a case, of which its operation's label is looked at."""

    def __init__(self, label: str) -> None:
        self.operation, self.label = self, label


class Answer:
    """Stands for an answer."""

    def __init__(
        self, status: int, document: Any, method: str = "POST", media: str = "application/problem+json"
    ) -> None:
        self.status_code, self.request, self.method = status, self, method
        self.headers = {"content-type": [media]}
        self.content = b"" if document is None else json.dumps(document).encode()

    def json(self) -> Any:
        return json.loads(self.content)


def invalid(*whats: str) -> dict[str, Any]:
    return {"code": "invalid_request", "errors": [{"where": "body", "what": what} for what in whats]}


SUMS = "Value error, confusion must sum to images"


@pytest.mark.parametrize(
    ("kind", "name", "answer", "passes"),
    [
        (RejectedPositiveData, "auth POST /v1/sessions", Answer(422, {"code": "message_malformed"}), True),
        (RejectedPositiveData, "auth POST /v1/sessions", Answer(422, {"code": "invalid_request"}), False),
        (RejectedPositiveData, "auth POST /v1/sessions", Answer(422, invalid(SUMS)), True),
        (RejectedPositiveData, "auth POST /v1/sessions", Answer(422, invalid(SUMS, "Field required")), False),
        (RejectedPositiveData, "auth POST /v1/sessions", Answer(400, {"code": "http_400"}), False),
        (RejectedPositiveData, "auth POST /v1/sessions", Answer(422, {"code": "x"}, media="application/json"), False),
        (RejectedPositiveData, "model HEAD /v1/uploads/{upload}", Answer(412, None, "HEAD"), True),
        (RejectedPositiveData, "model GET /v1/models", Answer(412, None, "GET"), False),
        (AcceptedNegativeData, "chain POST /v1/rpc", Answer(200, {"error": {}}), True),
        (AcceptedNegativeData, "chain POST /v1/rpc", Answer(200, [{"result": 1}, {"error": {}}]), True),
        (AcceptedNegativeData, "chain POST /v1/rpc", Answer(200, {"result": 1}), False),
        (AcceptedNegativeData, "chain POST /v1/rounds", Answer(200, {"error": {}}), False),
        (ServerError, "model POST /v1/initial-models", Answer(503, {"code": "weights_unavailable"}), True),
        (ServerError, "model POST /v1/initial-models", Answer(500, {"code": "internal_error"}), False),
        (ServerError, "model POST /v1/models", Answer(503, {"code": "weights_unavailable"}), False),
    ],
)
def test_an_exemption_is_of_what_it_names(kind: type[Failure], name: str, answer: Any, passes: bool) -> None:
    service, _, label = name.partition(" ")
    failure = kind.__new__(kind)
    case: Any = Named(label)
    assert (schema_exemptions.exempt(service, failure, case, answer) is not None) is passes
