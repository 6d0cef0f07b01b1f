"""The REST interface: parse, call, return. A first effect is 201, a repetition of the same call 200."""

from __future__ import annotations

from typing import Annotated

from concilia_kit import web
from concilia_kit.digests import JobId
from concilia_kit.roles import Role
from concilia_kit.signing import Address
from concilia_kit.tokens import Principal
from concilia_kit.wire.chain import (
    ContractInfo,
    LedgerEvent,
    LedgerJob,
    LedgerRound,
    Member,
    Publication,
    Receipt,
    Rejection,
    RoundClosure,
    RoundOpening,
    SignedRoleChange,
    Transaction,
    UpdateSubmission,
)
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from concilia_chain.service import ChainService, Relayed


def _service(request: Request) -> ChainService:
    service: ChainService = request.app.state.service
    return service


Chain = Annotated[ChainService, Depends(_service)]
Coordinator = Annotated[Principal, Depends(web.require(Role.COORDINATOR))]
Submitter = Annotated[Principal, Depends(web.require(Role.HOSPITAL, Role.COORDINATOR))]
Reader = Annotated[Principal, Depends(web.require())]
RoundNumber = Annotated[int, Path(alias="round", ge=1, lt=2**32)]

router = APIRouter(prefix="/v1")
_relays = {200: {"description": "the same call had this effect before", "model": Receipt}}


@router.get("/contract", tags=["contract"])
def contract(chain: Chain) -> ContractInfo:
    """The ledger and its chain: what a signature must name."""
    return chain.contract()


@router.get("/members/{address}", tags=["members"])
def member(address: Address, chain: Chain) -> Member:
    """An address and the roles that it holds now."""
    return chain.member(address)


@router.get("/members", tags=["members"])
def members(role: Annotated[Role, Query()], chain: Chain, _: Reader) -> list[Member]:
    """All who hold a role now."""
    return chain.members(role)


@router.post("/role-changes", tags=["members"], status_code=201)
def change_role(order: SignedRoleChange, chain: Chain, response: Response) -> Receipt:
    """Relay a role change; the administrator's signature in it is the authority, no token is needed."""
    return _told(chain.change_role(order), response)


@router.post("/rounds", tags=["rounds"], status_code=201, responses=_relays)  # type: ignore[arg-type]
def open_round(order: RoundOpening, chain: Chain, response: Response, _: Coordinator) -> Receipt:
    """Open a job's next round."""
    return _told(chain.open_round(order), response)


@router.post("/rounds/{job}/{round}/rejections", tags=["rounds"], status_code=201, responses=_relays)  # type: ignore[arg-type]
def reject_update(
    job: JobId, number: RoundNumber, order: Rejection, chain: Chain, response: Response, _: Coordinator
) -> Receipt:
    """Leave a recorded update out, saying why."""
    return _told(chain.reject_update(job, number, order), response)


@router.post("/rounds/{job}/{round}/closure", tags=["rounds"], status_code=201, responses=_relays)  # type: ignore[arg-type]
def close_round(
    job: JobId, number: RoundNumber, order: RoundClosure, chain: Chain, response: Response, _: Coordinator
) -> Receipt:
    """Close a round on its new global model."""
    return _told(chain.close_round(job, number, order), response)


@router.post("/rounds/{job}/{round}/abort", tags=["rounds"], status_code=201, responses=_relays)  # type: ignore[arg-type]
def abort_round(job: JobId, number: RoundNumber, chain: Chain, response: Response, _: Coordinator) -> Receipt:
    """Give an open round up."""
    return _told(chain.abort_round(job, number), response)


@router.post("/publications", tags=["rounds"], status_code=201, responses=_relays)  # type: ignore[arg-type]
def publish_model(order: Publication, chain: Chain, response: Response, _: Coordinator) -> Receipt:
    """Publish a job's head, which ends the job."""
    return _told(chain.publish_model(order), response)


@router.post("/updates", tags=["updates"], status_code=201)
def submit_update(submission: UpdateSubmission, chain: Chain, response: Response, _: Submitter) -> Receipt:
    """Relay a hospital's signed update with its metrics."""
    return _told(chain.submit_update(submission), response)


@router.get("/jobs/{job}", tags=["ledger"])
def job(job: JobId, chain: Chain, _: Reader) -> LedgerJob:
    """A job as the ledger has it."""
    return chain.job(job)


@router.get("/jobs/{job}/rounds/{round}", tags=["ledger"])
def one_round(job: JobId, number: RoundNumber, chain: Chain, _: Reader) -> LedgerRound:
    """A round as the ledger has it, with its updates."""
    return chain.round(job, number)


@router.get("/jobs/{job}/events", tags=["ledger"])
def events(job: JobId, chain: Chain, _: Reader) -> list[LedgerEvent]:
    """A job's events in chain order."""
    return chain.events(job)


@router.get("/transactions", tags=["ledger"])
def transactions(
    chain: Chain,
    _: Reader,
    job: Annotated[JobId | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Transaction]:
    """The relay's newest transactions with their times, newest first."""
    return chain.transactions(job, limit)


def _told(relayed: Relayed, response: Response) -> Receipt:
    if relayed.repeated:
        response.status_code = 200
    return relayed.receipt
