"""The aggregator's REST interface: parse, call, return."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from concilia_kit.admission import only_waits
from concilia_kit.describing import problems
from concilia_kit.digests import JobId
from concilia_kit.roles import Role
from concilia_kit.signing import Address
from concilia_kit.tokens import Principal
from concilia_kit.web import bearer, require
from concilia_kit.wire.changes import Change
from concilia_kit.wire.jobs import JobSpec, JobView
from concilia_kit.wire.nodes import Node, NodeRegistration
from concilia_kit.wire.progress import Progress
from concilia_kit.wire.training import Assignment, EvaluationReport
from concilia_kit.wire.verification import Verification
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials
from fastapi.sse import EventSourceResponse

from concilia_aggregator import views
from concilia_aggregator.assignments import Assignments
from concilia_aggregator.card.facts import gather
from concilia_aggregator.card.page import card
from concilia_aggregator.errors import (
    EventsUnavailable,
    InitialMissing,
    JobEnded,
    JobNotFound,
    KeyReused,
    NothingPublished,
    NotYours,
    ReportMismatch,
    RoundNotFound,
    StrategyMissing,
    TooManyStreams,
    VerificationNotFound,
)
from concilia_aggregator.feed import Feed, Feeds
from concilia_aggregator.jobs import Jobs
from concilia_aggregator.store import Store
from concilia_aggregator.verification.records import Verifications, shown
from concilia_aggregator.wakeup import Wakeup
from concilia_aggregator.watching import MAX_WAIT

router = APIRouter(prefix="/v1")


class Markdown(PlainTextResponse):
    """RFC 7763; the charset, which it requires, is added."""

    media_type = "text/markdown"


async def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


async def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def _wakeup(request: Request) -> Wakeup:
    wakeup: Wakeup = request.app.state.wakeup
    return wakeup


async def _verifications(request: Request) -> Verifications:
    verifications: Verifications = request.app.state.verifications
    return verifications


async def _assignments(request: Request) -> Assignments:
    assignments: Assignments = request.app.state.assignments
    return assignments


Asking = Annotated[Jobs, Depends(_jobs)]
Stored = Annotated[Store, Depends(_store)]
Assigning = Annotated[Assignments, Depends(_assignments)]
Waking = Annotated[Wakeup, Depends(_wakeup)]
Verifying = Annotated[Verifications, Depends(_verifications)]
Admin = Annotated[Principal, Depends(require(Role.ADMIN))]
Hospital = Annotated[Principal, Depends(require(Role.HOSPITAL))]
Auditing = Annotated[Principal, Depends(require(Role.ADMIN, Role.AUDITOR))]
Member = Annotated[Principal, Depends(require())]
RoundNumber = Annotated[int, Path(ge=0, lt=2**32)]
_VISIBLE = "^[!-~]{8,128}$"  # what is sent around a header's value is not part of it
VerificationId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


def _known(job: JobId, store: Stored) -> str:
    store.job(job)
    return job


async def _feed(
    request: Request,
    caller: Member,
    job: Annotated[str, Depends(_known)],
    credentials: Annotated[HTTPAuthorizationCredentials, Depends(bearer)],
    last_event_id: Annotated[str, Header(max_length=100)] = "",
) -> AsyncIterator[Feed]:
    feeds: Feeds = request.app.state.feeds
    again = partial(request.app.state.verifier.verify, credentials.credentials)
    async with feeds.open(job, last_event_id, caller, again) as feed:
        yield feed


Watching = Annotated[Feed, Depends(_feed)]


@router.post("/jobs", status_code=201, responses=problems(KeyReused, InitialMissing, StrategyMissing))
def create_job(
    spec: JobSpec,
    caller: Admin,
    jobs: Asking,
    store: Stored,
    wakeup: Waking,
    idempotency_key: Annotated[str, Header(pattern=_VISIBLE)] = "",
) -> JobView:
    """Create a job; it starts as soon as enough hospitals are there. A request that comes again with the same
    `Idempotency-Key` finds the job that the first one made."""
    job = jobs.create(spec, caller.address, idempotency_key or None)
    wakeup.wake(job)
    return views.job(store, store.job(job))


@router.get("/jobs")
def list_jobs(_caller: Member, store: Stored) -> list[JobView]:
    """All jobs, newest first."""
    return views.jobs(store)


@router.get("/jobs/{job}", responses=problems(JobNotFound))
def show_job(job: JobId, _caller: Member, store: Stored) -> JobView:
    """One job with its rounds."""
    return views.job(store, store.job(job))


@router.get("/jobs/{job}/card", response_class=Markdown, responses=problems(JobNotFound, NothingPublished))
def show_card(job: JobId, _caller: Member, request: Request, store: Stored, verifications: Verifying) -> Markdown:
    """The published model's card, in Markdown: what it is for, what it was made of, how good it is, and where not."""
    return Markdown(card(gather(store, verifications, request.app.state.ledger, job)))


@router.post("/jobs/{job}/stop", status_code=202, response_class=Response, responses=problems(JobNotFound, JobEnded))
def stop_job(job: JobId, _caller: Admin, jobs: Asking, wakeup: Waking) -> Response:
    """Ask a job to stop; an open round is given up on the chain."""
    jobs.stop(job)
    wakeup.wake(job)
    return Response(status_code=202)


@router.post("/jobs/{job}/pause", status_code=202, response_class=Response, responses=problems(JobNotFound, JobEnded))
def pause_job(job: JobId, _caller: Admin, jobs: Asking, wakeup: Waking) -> Response:
    """Have a job end its open round and open no other until it is resumed; again is fine."""
    jobs.pause(job)
    wakeup.wake(job)
    return Response(status_code=202)


@router.post("/jobs/{job}/resume", status_code=202, response_class=Response, responses=problems(JobNotFound, JobEnded))
def resume_job(job: JobId, _caller: Admin, jobs: Asking, wakeup: Waking) -> Response:
    """Have a paused job go on; again is fine."""
    jobs.resume(job)
    wakeup.wake(job)
    return Response(status_code=202)


# One event as OpenAPI 3.2 describes them ("Sequential Media Types"), and FastAPI with 3.1.
_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": [change.value for change in Change]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


# FastAPI would take a handler with `response_class=EventSourceResponse` for a generator.
@router.get(
    "/jobs/{job}/stream",
    response_class=Response,
    responses={
        200: {"content": {EventSourceResponse.media_type: {"itemSchema": _EVENT}}},
        **problems(JobNotFound, TooManyStreams, EventsUnavailable),
    },
)
async def stream_job(feed: Watching) -> EventSourceResponse:
    """Server-sent events of a job as it happens (see `Change`), resumed by `Last-Event-ID`; ends with the token."""
    return EventSourceResponse(feed, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


@router.post(
    "/jobs/{job}/verifications",
    status_code=202,
    responses={200: {"model": Verification}, **problems(JobNotFound)},
)
def ask_verification(job: JobId, caller: Auditing, verifications: Verifying, response: Response) -> Verification:
    """Have a job recomputed in the background; 200 and the one under way where there is one."""
    asked, is_new = verifications.ask(job, caller.address)
    response.status_code = 202 if is_new else 200
    return shown(asked)


@router.get("/jobs/{job}/verifications", responses=problems(JobNotFound))
def list_verifications(job: JobId, _caller: Member, verifications: Verifying) -> list[Verification]:
    """A job's verifications, newest first."""
    return [shown(row) for row in verifications.of(job)]


@router.get("/verifications/{verification}", responses=problems(VerificationNotFound))
def show_verification(verification: VerificationId, _caller: Member, verifications: Verifying) -> Verification:
    """One verification: how far it is, or what it came to."""
    return shown(verifications.get(verification))


@router.get("/nodes")
def list_nodes(_caller: Member, store: Stored) -> list[Node]:
    """All nodes that ever registered."""
    return views.nodes(store)


@router.put("/nodes/{address}", status_code=204, responses=problems(NotYours))
def register_node(address: Address, registration: NodeRegistration, caller: Hospital, store: Stored) -> None:
    """Register a node, or say that it is still there."""
    own(address, caller)
    store.register(address, registration)


@router.get(
    "/nodes/{address}/tasks",
    response_model=list[Assignment],
    dependencies=[Depends(only_waits)],
    responses={304: {"description": "the same as the `ETag` in `If-None-Match` stands for"}, **problems(NotYours)},
)
async def list_tasks(
    address: Address,
    caller: Hospital,
    assignments: Assigning,
    wait: Annotated[int, Query(ge=0, le=MAX_WAIT, description="seconds to wait for other tasks than those known")] = 0,
    if_none_match: Annotated[str, Header(max_length=100)] = "",
) -> Any:
    """What a hospital is asked for now: the tasks of its queue, as long as they are to be done."""
    own(address, caller)
    known = if_none_match.removeprefix("W/").strip('"')
    told = await assignments.news(address, known, wait)
    headers = {"ETag": f'"{told.tag}"', "Cache-Control": "no-store"}
    if told.tag == known:
        return Response(status_code=304, headers=headers)
    return JSONResponse([each.model_dump(mode="json") for each in told.tasks], headers=headers)


@router.post(
    "/jobs/{job}/rounds/{round_number}/progress",
    status_code=204,
    responses=problems(JobNotFound, RoundNotFound, JobEnded),
)
def report_progress(job: JobId, round_number: RoundNumber, progress: Progress, caller: Hospital, jobs: Asking) -> None:
    """Say what a node is doing."""
    jobs.progress(job, round_number, caller.address, progress)


@router.put(
    "/jobs/{job}/rounds/{round_number}/evaluations/{address}",
    status_code=204,
    responses=problems(NotYours, JobNotFound, RoundNotFound, JobEnded, ReportMismatch),
)
def report_evaluation(
    job: JobId,
    round_number: RoundNumber,
    address: Address,
    report: EvaluationReport,
    caller: Hospital,
    jobs: Asking,
    wakeup: Waking,
) -> None:
    """Hand in a site's counts for a round's model."""
    own(address, caller)
    if (report.job, report.round) != (job, round_number):
        raise ReportMismatch("the report is about another round than its address")
    jobs.report(address, report)
    wakeup.wake(job)


def own(address: str, caller: Principal) -> None:
    """Raises `NotYours` where a node speaks for another address than its own."""
    if address != caller.address:
        raise NotYours("a node speaks for its own address only")
