"""The REST interface: parse, call, return. A first effect is 201, a repetition of the same call 200."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Annotated, TypeVar

from concilia_kit import web
from concilia_kit.admission import TooBusy, only_waits
from concilia_kit.describing import Responses, problems
from concilia_kit.digests import JobId
from concilia_kit.roles import Role
from concilia_kit.signing import Address
from concilia_kit.tokens import Principal
from concilia_kit.wire.chain import (
    AccountRoles,
    Acknowledgement,
    ContractInfo,
    EventPage,
    Holders,
    InclusionProof,
    LedgerEvent,
    LedgerJob,
    LedgerRound,
    Member,
    Publication,
    Receipt,
    Rejection,
    RoleRecord,
    Roll,
    RoundClosure,
    RoundOpening,
    RoundStanding,
    SignedRoleChange,
    Transaction,
    UpdateSubmission,
)
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import StringConstraints

from concilia_chain import pages, rpc_api, signature_api
from concilia_chain.errors import (
    ChainUnavailable,
    CursorMalformed,
    GatewayStandby,
    JobUnknown,
    LedgerNotFollowed,
    ReceiptTimeout,
    RoundUnknown,
    UpdateUnknown,
)
from concilia_chain.pages import Wanted
from concilia_chain.reading import Reading
from concilia_chain.service import ChainService, Collecting, Ordered

_T = TypeVar("_T")


async def _service(request: Request) -> ChainService:
    service: ChainService = request.app.state.service
    return service


async def _reading(request: Request) -> Reading:
    reading: Reading = request.app.state.reading
    return reading


Writing = Annotated[ChainService, Depends(_service)]
Chain = Annotated[Reading, Depends(_reading)]
Coordinator = Annotated[Principal, Depends(web.require(Role.COORDINATOR))]
Submitter = Annotated[Principal, Depends(web.require(Role.HOSPITAL, Role.COORDINATOR))]
Reader = Annotated[Principal, Depends(web.require())]
RoundNumber = Annotated[int, Path(alias="round", ge=1, lt=2**32)]

Height = Annotated[int | None, Query(ge=0, lt=2**63)]


async def _wanted(
    name: Annotated[
        list[Annotated[str, StringConstraints(pattern="^[A-Za-z]{1,64}$")]],
        Query(max_length=20, description="an event's name; may be given several times"),
    ] = [],  # noqa: B006  (FastAPI copies it)
    job: Annotated[JobId | None, Query()] = None,
    number: Annotated[int | None, Query(alias="round", ge=1, lt=2**32)] = None,
    account: Annotated[Address | None, Query(description="the hospital or the role's holder")] = None,
    from_block: Height = None,
    to_block: Height = None,
) -> Wanted:
    return Wanted(tuple(name), job, number, account, from_block, to_block)


class _Ends:
    """Waits for what was ordered without a thread of its own: a thousand hospitals may wait at once."""

    def __init__(self, chain: ChainService, request: Request, response: Response, patience: float) -> None:
        self._chain = chain
        self._request = request
        self._response = response
        self._patience = patience

    async def taken(self, order: Callable[[ChainService], _T]) -> _T:
        """Order something, which asks node and database."""
        return await run_in_threadpool(order, self._chain)

    async def told(self, ordered: Ordered) -> Receipt:
        """What became of an order; 200 where the same was asked before. Raises `ReceiptTimeout`, `Problem`."""
        with contextlib.suppress(TooBusy):  # it was taken on, and keeps its place where there is no other
            await only_waits(self._request)
        answer = asyncio.shield(asyncio.wrap_future(ordered.answer))  # others may wait for the same
        try:
            outcome = await asyncio.wait_for(answer, self._patience)
        except TimeoutError:
            raise ReceiptTimeout(f"not on the chain after {self._patience:g} s; it is kept, ask again") from None
        if outcome.standing is None:  # somebody else's transaction, which the node is asked about
            relayed = await run_in_threadpool(self._chain.told, outcome, ordered.repeated)
        else:
            relayed = self._chain.told(outcome, ordered.repeated)
        if relayed.repeated:
            self._response.status_code = 200
        return relayed.receipt

    async def of(self, order: Callable[[ChainService], Ordered]) -> Receipt:
        """Order something, and wait for what becomes of it."""
        return await self.told(await self.taken(order))


async def _ends(request: Request, response: Response, chain: Writing) -> _Ends:
    return _Ends(chain, request, response, request.app.state.patience)


Ends = Annotated[_Ends, Depends(_ends)]
router = APIRouter(prefix="/v1")
router.include_router(signature_api.router)
router.include_router(rpc_api.router)
_REFUSED = "the contract refused: its error's name in snake_case, as `contract_error` has it in its own words"
_RELAYS: Responses = {
    200: {"description": "the same call had this effect before", "model": Receipt},
    403: {"description": _REFUSED},
    404: {"description": _REFUSED},
    409: {"description": _REFUSED},
    422: {"description": _REFUSED},
    **problems(GatewayStandby, ReceiptTimeout, ChainUnavailable),
}
_TAGGED: Responses = {
    304: {"description": "nobody's role changed since the answer with this entity tag"},
    **problems(LedgerNotFollowed),
}


@router.get("/contract", tags=["contract"], responses=problems(ChainUnavailable))
async def contract(chain: Chain) -> ContractInfo:
    """The ledger and its chain: what a signature must name."""
    return chain.contract()


@router.get("/members/{address}", tags=["members"], responses=problems(ChainUnavailable))
def member(address: Address, chain: Chain) -> Member:
    """An address and the roles that it holds now."""
    return chain.member(address)


@router.get("/members/{address}/roles", tags=["members"], responses=problems(LedgerNotFollowed))
async def account_roles(address: Address, chain: Chain) -> AccountRoles:
    """The roles that an address holds by the events read so far, up to `block`: cheap enough to ask every second.

    503 `ledger_not_followed` while the events are not read up to the newest block after a start.
    """
    known = chain.account_roles_at_once(address)
    return await run_in_threadpool(chain.account_roles, address) if known is None else known


@router.get(
    "/roles",
    tags=["members"],
    response_model=Roll,
    responses=_TAGGED,
)
def roll(chain: Chain, if_none_match: Annotated[str | None, Header(max_length=400)] = None) -> Response:
    """The roles of all by the events read so far, for services with many callers; 503 as for one address."""
    document, tag = chain.roll()
    return _tagged(lambda: document, tag, if_none_match)


@router.get("/members", tags=["members"])
def members(role: Annotated[Role, Query()], chain: Chain, _: Reader) -> list[Member]:
    """All who hold a role now."""
    return chain.members(role)


@router.get(
    "/holders/{role}",
    tags=["members"],
    response_model=Holders,
    responses=_TAGGED,
)
def holders(
    role: Role, chain: Chain, _: Reader, if_none_match: Annotated[str | None, Header(max_length=400)] = None
) -> Response:
    """All who hold a role by the events read so far, as `/members/{address}/roles` tells each of them.

    With an entity tag: whoever asks often is told that nothing changed, however many there are.
    """
    found, tag = chain.holders(role)
    return _tagged(lambda: found().model_dump_json().encode(), tag, if_none_match)


@router.get("/role-records", tags=["members"])
def role_records(
    chain: Chain,
    _: Reader,
    account: Annotated[Address | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[RoleRecord]:
    """Who granted or took which role, newest first. `admin` is the signer where the change was signed and relayed."""
    return chain.role_records(account, limit)


@router.post("/role-changes", tags=["members"], status_code=201, responses=_RELAYS)
async def change_role(order: SignedRoleChange, ends: Ends) -> Receipt:
    """Relay a role change; the administrator's signature in it is the authority, no token is needed."""
    return await ends.of(lambda chain: chain.change_role(order))


@router.post("/rounds", tags=["rounds"], status_code=201, responses=_RELAYS)
async def open_round(order: RoundOpening, ends: Ends, _: Coordinator) -> Receipt:
    """Open a job's next round."""
    return await ends.of(lambda chain: chain.open_round(order))


@router.post("/rounds/{job}/{round}/commitment", tags=["rounds"], status_code=201, responses=_RELAYS)
async def commit_updates(job: JobId, number: RoundNumber, ends: Ends, _: Coordinator) -> Receipt:
    """Commit what a Merkle round's hospitals sent under one root. 409 `nothing_collected` where nothing was."""
    return await ends.of(lambda chain: chain.commit_updates(job, number))


@router.post("/rounds/{job}/{round}/rejections", tags=["rounds"], status_code=201, responses=_RELAYS)
async def reject_update(job: JobId, number: RoundNumber, order: Rejection, ends: Ends, _: Coordinator) -> Receipt:
    """Leave a recorded or committed update out, saying why."""
    return await ends.of(lambda chain: chain.reject_update(job, number, order))


@router.post("/rounds/{job}/{round}/closure", tags=["rounds"], status_code=201, responses=_RELAYS)
async def close_round(job: JobId, number: RoundNumber, order: RoundClosure, ends: Ends, _: Coordinator) -> Receipt:
    """Close a round on its new global model."""
    return await ends.of(lambda chain: chain.close_round(job, number, order))


@router.post("/rounds/{job}/{round}/abort", tags=["rounds"], status_code=201, responses=_RELAYS)
async def abort_round(job: JobId, number: RoundNumber, ends: Ends, _: Coordinator) -> Receipt:
    """Give an open round up."""
    return await ends.of(lambda chain: chain.abort_round(job, number))


@router.post("/publications", tags=["rounds"], status_code=201, responses=_RELAYS)
async def publish_model(order: Publication, ends: Ends, _: Coordinator) -> Receipt:
    """Publish a job's head, which ends the job."""
    return await ends.of(lambda chain: chain.publish_model(order))


@router.post(
    "/updates",
    tags=["updates"],
    status_code=201,
    responses={**_RELAYS, 202: {"description": "kept for its round's commitment", "model": Acknowledgement}},
)
async def submit_update(
    submission: UpdateSubmission, ends: Ends, response: Response, _: Submitter
) -> Receipt | Acknowledgement:
    """Relay a hospital's signed update with its metrics, or keep it for the commitment of its Merkle round."""
    taken = await ends.taken(lambda chain: chain.submit_update(submission))
    if isinstance(taken, Collecting):
        response.status_code = 202
        return ChainService.acknowledged(await asyncio.wrap_future(taken.answer))
    return await ends.told(taken)


@router.get("/jobs/{job}", tags=["ledger"], responses=problems(JobUnknown))
def job(job: JobId, chain: Chain, _: Reader) -> LedgerJob:
    """A job as the ledger has it."""
    return chain.job(job)


@router.get("/jobs/{job}/rounds/{round}", tags=["ledger"], responses=problems(RoundUnknown))
def one_round(
    job: JobId,
    number: RoundNumber,
    chain: Chain,
    _: Reader,
    hospital: Annotated[Address | None, Query(description="whose update alone is to be shown")] = None,
) -> LedgerRound:
    """A round as the ledger has it, with its updates, or with one hospital's: what a hospital needs does not grow with
    the number of the others."""
    return chain.round(job, number) if hospital is None else chain.round_for(job, number, hospital)


@router.get("/jobs/{job}/rounds/{round}/standing", tags=["ledger"], responses=problems(RoundUnknown))
def round_standing(job: JobId, number: RoundNumber, chain: Chain, _: Reader) -> RoundStanding:
    """How far a round is, without its updates."""
    return chain.standing(job, number)


@router.get(
    "/jobs/{job}/rounds/{round}/proofs/{hospital}", tags=["ledger"], responses=problems(RoundUnknown, UpdateUnknown)
)
def proof(job: JobId, number: RoundNumber, hospital: Address, chain: Chain, _: Reader) -> InclusionProof:
    """Shows that a hospital's update is under the commitment of a Merkle round."""
    return chain.proof(job, number, hospital)


@router.get("/jobs/{job}/events", tags=["ledger"])
def events(job: JobId, chain: Chain, _: Reader) -> list[LedgerEvent]:
    """A job's events in chain order."""
    return chain.events(job)


@router.get("/events", tags=["ledger"], responses=problems(CursorMalformed))
def event_page(
    chain: Chain,
    _: Reader,
    wanted: Annotated[Wanted, Depends(_wanted)],
    before: Annotated[str | None, Query(description="`before` of an earlier page: go on behind its last event")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> EventPage:
    """All the contract's events, membership included, newest first, page by page."""
    return chain.event_page(wanted, None if before is None else pages.place(before), limit)


@router.get("/transactions", tags=["ledger"])
def transactions(
    chain: Chain,
    _: Reader,
    job: Annotated[JobId | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Transaction]:
    """What was asked of the relay and is on the chain, newest first. Several rows may share a transaction."""
    return chain.transactions(job, limit)


def _tagged(document: Callable[[], bytes], tag: str, if_none_match: str | None) -> Response:
    """A document with its entity tag, or that it is the one that the caller has (RFC 9110, 13.1.2), who needs none."""
    headers = {"ETag": f'"{tag}"'}
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(document(), media_type="application/json", headers=headers)
