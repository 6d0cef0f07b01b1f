"""Sessions over HTTP: one's own are seen and ended, an administrator ends anybody's, services ask which were ended."""

from __future__ import annotations

import hashlib
from typing import Annotated

import anyio.to_thread
from concilia_kit import web
from concilia_kit.describing import problems
from concilia_kit.digests import Digest
from concilia_kit.signing import Address
from concilia_kit.tokens import Principal
from concilia_kit.wire.auth import EndedSessions, OpenSession
from fastapi import APIRouter, Depends, Header, Request, Response

from concilia_auth.errors import SessionNotFound, SessionNotYours, SignInAgain, StoreUnavailable
from concilia_auth.sessions import Sessions


async def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


Kept = Annotated[Sessions, Depends(_sessions)]
Caller = Annotated[Principal, Depends(web.principal)]

router = APIRouter(tags=["sessions"])


@router.get("/sessions", responses=problems(StoreUnavailable))
def read_sessions(caller: Caller, sessions: Kept) -> list[OpenSession]:
    """The caller's own sessions, newest first, a hundred at most."""
    return sessions.of(caller)


@router.delete(
    "/sessions/{address}", status_code=204, responses=problems(SessionNotYours, SignInAgain, StoreUnavailable)
)
def delete_sessions(address: Address, caller: Caller, sessions: Kept) -> None:
    """End all of an address's sessions but the one that asks, and every token that was taken with them."""
    sessions.end_all(caller, address)


@router.delete(
    "/sessions/{address}/{session}",
    status_code=204,
    responses=problems(SessionNotYours, SignInAgain, SessionNotFound, StoreUnavailable),
)
def delete_one_session(address: Address, session: Digest, caller: Caller, sessions: Kept) -> None:
    """End one of the caller's own sessions, and every token that was taken with it."""
    sessions.end(caller, address, session)


@router.get(
    "/ended-sessions",
    response_model=EndedSessions,
    responses={
        304: {"description": "the same as the `ETag` in `If-None-Match` stands for"},
        **problems(StoreUnavailable),
    },
)
async def read_ended_sessions(
    request: Request, sessions: Kept, if_none_match: Annotated[str, Header(max_length=100)] = ""
) -> Response:
    """Sessions that were ended while tokens with roles, taken with them, live on: no service takes these any more."""
    # Threads of its own: those that answer others may all wait for the chain service, which may wait for this.
    ended = await anyio.to_thread.run_sync(sessions.ended, limiter=request.app.state.services_ask)
    document = ended.model_dump_json().encode()
    headers = {"ETag": f'"{hashlib.sha256(document).hexdigest()}"'}
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(document, media_type="application/json", headers=headers)
