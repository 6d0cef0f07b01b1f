"""The auth service over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from concilia_kit.problems import Unauthorized
from concilia_kit.wire.auth import (
    AccessToken,
    Challenge,
    ChallengeRequest,
    Session,
    SessionView,
    SignIn,
    TokenRequest,
)
from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from concilia_auth.service import AuthService

_bearer = HTTPBearer(auto_error=False, scheme_name="session", description="session token of POST /v1/sessions")


def _service(request: Request) -> AuthService:
    service: AuthService = request.app.state.service
    return service


def _session_token(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    if credentials is None:
        raise Unauthorized(
            "a session token is needed: 'Authorization: Bearer …'", headers={"WWW-Authenticate": "Bearer"}
        )
    return credentials.credentials


def _no_store(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


Service = Annotated[AuthService, Depends(_service)]
SessionToken = Annotated[str, Depends(_session_token)]

router = APIRouter(prefix="/v1", dependencies=[Depends(_no_store)])
well_known = APIRouter(prefix="/.well-known", tags=["keys"])


@router.post("/challenges", tags=["sign-in"])
def create_challenge(request: ChallengeRequest, service: Service) -> Challenge:
    """A message to sign, good once."""
    return service.challenge(request.address)


@router.post("/sessions", status_code=201, tags=["sign-in"])
def create_session(request: SignIn, service: Service) -> Session:
    """Sign in with a signed challenge."""
    return service.sign_in(request.message, request.signature)


@router.delete("/sessions", status_code=204, tags=["sign-in"])
def delete_session(token: SessionToken, service: Service) -> None:
    """Sign out."""
    service.sign_out(token)


@router.get("/session", tags=["sign-in"])
def read_session(token: SessionToken, service: Service) -> SessionView:
    """Who is signed in, and with which roles now."""
    return service.session(token)


@router.post("/tokens", tags=["tokens"])
def create_token(request: TokenRequest, token: SessionToken, service: Service) -> AccessToken:
    """An access token for one service."""
    return service.access_token(token, request.audience)


@well_known.get("/jwks.json")
def read_keys(service: Service) -> dict[str, Any]:
    """The keys that access tokens verify with (RFC 7517)."""
    return service.published_keys()
