"""What the aggregator's description says, which Schemathesis holds against its answers (tests/security)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from concilia_aggregator import api
from concilia_kit import web
from concilia_kit.classification import FEWEST, MOST
from concilia_kit.roles import Role
from concilia_kit.tokens import Principal
from concilia_kit.wire.changes import Change
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.training import SCORE_BINS, EvaluationReport
from fastapi import FastAPI

ADDRESS = "0x" + 20 * "11"
JOB = "a" * 64
COUNTS = ("training_lesions", "held_out_lesions", "overlapping_lesions", "skipped_images")
NODE = {"site": "west", "source": "drawn", "training_images": [1] * 7, "held_out_images": [1] * 7} | dict.fromkeys(
    COUNTS, 1
)


class Anybody:
    """A verifier for which every token is a hospital's and an administrator's."""

    def verify_at_once(self, _token: str) -> Principal:
        return Principal(ADDRESS, frozenset(Role))


@pytest.fixture
def app() -> FastAPI:
    app = web.application("Concilia aggregator", ready={}, verifier=Anybody())  # type: ignore[arg-type]
    app.include_router(api.router)
    app.state.store = app.state.jobs = app.state.wakeup = None  # nothing gets as far
    return app


async def code(app: FastAPI, method: str, path: str, body: Any, headers: dict[str, str] | None = None) -> str:
    headers = {"Authorization": "Bearer x", **(headers or {})}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        answer = await http.request(method, f"/v1{path}", json=body, headers=headers)
    return str(answer.json()["code"])


@pytest.mark.parametrize("wrong", [False, True, "1", 1.5, -1, 2**53])
@pytest.mark.parametrize("count", COUNTS)
async def test_a_count_is_a_whole_number(app: FastAPI, count: str, wrong: Any) -> None:
    assert await code(app, "PUT", f"/nodes/{ADDRESS}", NODE | {count: wrong}) == "invalid_request"


@pytest.mark.parametrize("wrong", [False, "0.5", 1.1])
async def test_a_fraction_is_a_number(app: FastAPI, wrong: Any) -> None:
    told = {"stage": "training", "fraction": wrong}
    assert await code(app, "POST", f"/jobs/{JOB}/rounds/1/progress", told) == "invalid_request"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/jobs", {"name": "a\x00", "initial": JOB}),
        ("PUT", f"/nodes/{ADDRESS}", NODE | {"site": "\x00"}),
        ("PUT", f"/nodes/{ADDRESS}", NODE | {"source": "\x00"}),
        ("POST", f"/jobs/{JOB}/rounds/1/progress", {"stage": "training", "fraction": 0, "detail": "\x00"}),
    ],
)
async def test_text_that_postgresql_does_not_store_is_refused(app: FastAPI, method: str, path: str, body: Any) -> None:
    assert await code(app, method, path, body) == "invalid_request"


@pytest.mark.parametrize("key", ["short", "with blanks in it", "x" * 129])
async def test_a_key_is_of_visible_characters(app: FastAPI, key: str) -> None:
    spec = JobSpec(name="j", initial=JOB).model_dump(mode="json")
    assert await code(app, "POST", "/jobs", spec, {"Idempotency-Key": key}) == "invalid_request"


def test_orders_have_no_answer_and_the_stream_has_events(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    for order in ("stop", "pause", "resume"):
        assert "content" not in paths[f"/v1/jobs/{{job}}/{order}"]["post"]["responses"]["202"]
    stream = paths["/v1/jobs/{job}/stream"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    assert stream["itemSchema"]["properties"]["event"]["enum"] == [change.value for change in Change]


def test_the_shapes_of_a_report_are_described() -> None:
    members = EvaluationReport.model_json_schema()["properties"]
    classes, bins = (FEWEST, MOST), (SCORE_BINS, SCORE_BINS)
    for name, columns in (("confusion", classes), ("positives", bins), ("negatives", bins)):
        rows = members[name]
        assert (rows["minItems"], rows["maxItems"]) == classes
        assert (rows["items"]["minItems"], rows["items"]["maxItems"]) == columns
        assert rows["items"]["items"] == {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**53}
