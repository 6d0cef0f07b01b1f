"""The aggregator's REST interface: parse, call, return."""

from __future__ import annotations

from typing import Annotated

from concilia_kit.digests import JobId
from concilia_kit.roles import Role
from concilia_kit.signing import Address
from concilia_kit.tokens import Principal
from concilia_kit.web import require
from concilia_kit.wire.jobs import JobSpec, JobView
from concilia_kit.wire.training import EvaluationReport, Node, NodeRegistration, Progress
from fastapi import APIRouter, Depends, Request, Response

from concilia_aggregator import views
from concilia_aggregator.errors import NotYours, ReportMismatch
from concilia_aggregator.service import Coordinator
from concilia_aggregator.store import Store
from concilia_aggregator.wakeup import Wakeup

router = APIRouter(prefix="/v1")


def _coordinator(request: Request) -> Coordinator:
    coordinator: Coordinator = request.app.state.coordinator
    return coordinator


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _wakeup(request: Request) -> Wakeup:
    wakeup: Wakeup = request.app.state.wakeup
    return wakeup


Coordinating = Annotated[Coordinator, Depends(_coordinator)]
Stored = Annotated[Store, Depends(_store)]
Waking = Annotated[Wakeup, Depends(_wakeup)]
Admin = Annotated[Principal, Depends(require(Role.ADMIN))]
Hospital = Annotated[Principal, Depends(require(Role.HOSPITAL))]
Member = Annotated[Principal, Depends(require())]


@router.post("/jobs", status_code=201)
def create_job(spec: JobSpec, caller: Admin, coordinator: Coordinating, store: Stored, wakeup: Waking) -> JobView:
    """Create a job; it starts as soon as enough hospitals are there."""
    job = coordinator.create(spec, caller.address)
    wakeup.wake(job)
    return views.job(store, store.job(job))


@router.get("/jobs")
def list_jobs(_caller: Member, store: Stored) -> list[JobView]:
    """All jobs, newest first."""
    return views.jobs(store)


@router.get("/jobs/{job}")
def show_job(job: JobId, _caller: Member, store: Stored) -> JobView:
    """One job with its rounds."""
    return views.job(store, store.job(job))


@router.post("/jobs/{job}/stop", status_code=202)
def stop_job(job: JobId, _caller: Admin, coordinator: Coordinating, wakeup: Waking) -> Response:
    """Ask a job to stop; an open round is given up on the chain."""
    coordinator.stop(job)
    wakeup.wake(job)
    return Response(status_code=202)


@router.get("/nodes")
def list_nodes(_caller: Member, store: Stored) -> list[Node]:
    """All nodes that ever registered."""
    return views.nodes(store)


@router.put("/nodes/{address}", status_code=204)
def register_node(address: Address, registration: NodeRegistration, caller: Hospital, store: Stored) -> None:
    """Register a node, or say that it is still there."""
    _own(address, caller)
    store.register(address, registration)


@router.post("/jobs/{job}/rounds/{round_number}/progress", status_code=204)
def report_progress(job: JobId, round_number: int, progress: Progress, caller: Hospital, store: Stored) -> None:
    """Say what a node is doing."""
    store.progress(job, round_number, caller.address, progress)


@router.put("/jobs/{job}/rounds/{round_number}/evaluations/{address}", status_code=204)
def report_evaluation(
    job: JobId,
    round_number: int,
    address: Address,
    report: EvaluationReport,
    caller: Hospital,
    coordinator: Coordinating,
    wakeup: Waking,
) -> None:
    """Hand in a site's counts for a round's model."""
    _own(address, caller)
    if (report.job, report.round) != (job, round_number):
        raise ReportMismatch("the report is about another round than its address")
    coordinator.report(address, report)
    wakeup.wake(job)


def _own(address: str, caller: Principal) -> None:
    if address != caller.address:
        raise NotYours("a node speaks for its own address only")
