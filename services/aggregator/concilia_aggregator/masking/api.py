"""The routes of secure rounds' rooms: parse, call, return."""

from __future__ import annotations

from typing import Annotated, Any

import anyio.to_thread
from concilia_kit.admission import only_waits
from concilia_kit.describing import problems
from concilia_kit.digests import JobId
from concilia_kit.signing import Address
from concilia_kit.wire.masking import Consent, MaskingView, Revealed, Shares, SignedKeys
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from concilia_aggregator.api import Hospital, Waking, own
from concilia_aggregator.errors import (
    JobNotFound,
    MaskingConflict,
    MaskingInvalid,
    MaskingNotReady,
    MaskingStageOver,
    NotYours,
    RoundNotFound,
)
from concilia_aggregator.masking.receiving import Receiving
from concilia_aggregator.watching import MAX_WAIT

router = APIRouter(prefix="/v1/jobs/{job}/rounds/{round_number}/masking")


async def _receiving(request: Request) -> Receiving:
    receiving: Receiving = request.app.state.masking
    return receiving


Taking = Annotated[Receiving, Depends(_receiving)]
RoundNumber = Annotated[int, Path(ge=1, lt=2**32)]

_REFUSED = problems(
    NotYours, JobNotFound, RoundNotFound, MaskingConflict, MaskingStageOver, MaskingNotReady, MaskingInvalid
)


async def _own(address: Address, caller: Hospital) -> str:
    own(address, caller)
    return caller.address


Own = Annotated[str, Depends(_own)]


@router.get(
    "",
    response_model=MaskingView,
    dependencies=[Depends(only_waits)],
    responses={
        304: {"description": "the room is at the stage that the `ETag` in `If-None-Match` stands for"},
        **problems(JobNotFound, RoundNotFound),
    },
)
async def show_masking(
    job: JobId,
    round_number: RoundNumber,
    caller: Hospital,
    receiving: Taking,
    wait: Annotated[int, Query(ge=0, le=MAX_WAIT, description="seconds to wait for another stage than the known")] = 0,
    if_none_match: Annotated[str, Header(max_length=100)] = "",
) -> Any:
    """A secure round's masking as the caller's node needs it at the stage that it is at."""
    known = if_none_match.removeprefix("W/").strip('"')
    if wait and known:
        await receiving.wait(job, round_number, known.partition("-")[0], wait)
    tag, view = await anyio.to_thread.run_sync(_told, receiving, job, round_number, caller.address)
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-store"}
    if tag == known:
        return Response(status_code=304, headers=headers)
    return Response(view, headers=headers, media_type="application/json")


def _told(receiving: Receiving, job: str, round_: int, hospital: str) -> tuple[str, str]:
    """A view's tag and its JSON, which is a kilobyte for each hospital of the round: not for the event loop."""
    view = receiving.view(job, round_, hospital)
    return f"{view.stage}-{len(view.consents)}", view.model_dump_json()  # all else is the same at one stage


@router.put("/keys/{address}", status_code=204, responses=_REFUSED)
def put_keys(
    job: JobId, round_number: RoundNumber, hospital: Own, message: SignedKeys, receiving: Taking, wakeup: Waking
) -> None:
    """Advertise a hospital's keys of a round, made for it alone; the same again is fine, others are refused."""
    receiving.keys(job, round_number, hospital, message)
    wakeup.wake(job)


@router.put("/shares/{address}", status_code=204, responses=_REFUSED)
def put_shares(
    job: JobId, round_number: RoundNumber, hospital: Own, message: Shares, receiving: Taking, wakeup: Waking
) -> None:
    """Hand out shares of a hospital's two secrets, each sealed to who shall hold it."""
    receiving.shares(job, round_number, hospital, message)
    wakeup.wake(job)


@router.put("/consents/{address}", status_code=204, responses=_REFUSED)
def put_consent(
    job: JobId, round_number: RoundNumber, hospital: Own, message: Consent, receiving: Taking, wakeup: Waking
) -> None:
    """Agree to who is in a round's sum."""
    receiving.consent(job, round_number, hospital, message)
    wakeup.wake(job)


@router.put("/reveals/{address}", status_code=204, responses=_REFUSED)
def put_reveal(
    job: JobId, round_number: RoundNumber, hospital: Own, message: Revealed, receiving: Taking, wakeup: Waking
) -> None:
    """Reveal shares that unmask the sum which enough hospitals agreed to."""
    receiving.reveal(job, round_number, hospital, message)
    wakeup.wake(job)
