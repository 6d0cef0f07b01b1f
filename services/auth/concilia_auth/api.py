"""The auth service over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from concilia_kit import web
from concilia_kit.describing import problems
from concilia_kit.problems import Unauthorized
from concilia_kit.roles import Role
from concilia_kit.signing import Address
from concilia_kit.tokens import Principal
from concilia_kit.wire.auth import (
    AccessToken,
    Application,
    BrokerCredential,
    BrowserSession,
    Challenge,
    ChallengeRequest,
    FiledApplication,
    Session,
    SessionView,
    SignIn,
    TokenRequest,
)
from fastapi import APIRouter, Cookie, Depends, Header, Request, Response
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from concilia_auth import browser, devices, session_api
from concilia_auth.broker import BrokerUsers
from concilia_auth.errors import (
    ApplicationNotYours,
    ApplicationsFull,
    ApplicationUnknown,
    ChainMismatch,
    ChainUnavailable,
    CrossSite,
    CsrfTokenInvalid,
    DomainMismatch,
    MessageExpired,
    MessageMalformed,
    MessageNotYetValid,
    NonceUnknown,
    RateLimited,
    SessionUnknown,
    SignatureInvalid,
    StoreUnavailable,
    UriMismatch,
)
from concilia_auth.limits import source_of
from concilia_auth.service import Applications, AuthService

_bearer = HTTPBearer(auto_error=False, scheme_name="session", description="session token of POST /v1/sessions")
_cookie = APIKeyCookie(
    name=browser.COOKIE,
    auto_error=False,
    scheme_name="browser session",
    description="cookie of POST /v1/browser-sessions; what changes something carries its csrf_token in X-CSRF-Token",
)

Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def _service(request: Request) -> AuthService:
    service: AuthService = request.app.state.service
    return service


def _applications(request: Request) -> Applications:
    applications: Applications = request.app.state.applications
    return applications


def _broker_users(request: Request) -> BrokerUsers:
    users: BrokerUsers = request.app.state.broker_users
    return users


def _source(request: Request) -> str:
    """Where a request comes from; who a trusted proxy names was put in the peer's place before."""
    return source_of(request.client.host if request.client else None)


def _sent(
    origin: Annotated[str | None, Header()] = None,
    sec_fetch_site: Annotated[str | None, Header()] = None,
    x_csrf_token: Annotated[str | None, Header()] = None,
) -> browser.Sent:
    return browser.Sent(origin, sec_fetch_site, x_csrf_token)


def _device(user_agent: Annotated[str | None, Header(include_in_schema=False)] = None) -> str:
    return devices.described(user_agent)


Service = Annotated[AuthService, Depends(_service)]
Device = Annotated[str, Depends(_device)]
Sent = Annotated[browser.Sent, Depends(_sent)]
Source = Annotated[str, Depends(_source)]


def _session_token(credentials: Bearer) -> str:
    if credentials is None:
        raise Unauthorized(
            "a session token is needed: 'Authorization: Bearer …'", headers={"WWW-Authenticate": "Bearer"}
        )
    return credentials.credentials


def _cookie_token(cookie: Annotated[str | None, Depends(_cookie)]) -> str:
    if not cookie:
        raise Unauthorized("nobody is signed in with this browser")
    return cookie


def _same_site(sent: Sent, service: Service) -> None:
    browser.check_site(sent, service.origin)


def _changing_token(cookie: Annotated[str | None, Depends(_cookie)], sent: Sent, service: Service) -> str:
    """The cookie's session, for a request that changes something."""
    browser.check_site(sent, service.origin)
    token = _cookie_token(cookie)
    browser.check_csrf(sent, token)
    return token


def _any_token(
    credentials: Bearer, cookie: Annotated[str | None, Depends(_cookie)], sent: Sent, service: Service
) -> str:
    """The bearer's session, else the cookie's. No browser sends a bearer by itself: it needs no further proof."""
    if credentials is not None or not cookie:
        return _session_token(credentials)
    return _changing_token(cookie, sent, service)


async def _body(request: Request) -> bytes:
    return await request.body()  # bounded by the application


SessionToken = Annotated[str, Depends(_session_token)]
CookieToken = Annotated[str, Depends(_cookie_token)]
ChangingToken = Annotated[str, Depends(_changing_token)]
AnyToken = Annotated[str, Depends(_any_token)]
FormerToken = Annotated[str | None, Cookie(alias=browser.COOKIE, include_in_schema=False)]
Caller = Annotated[Principal, Depends(web.principal)]
Administrator = Annotated[Principal, Depends(web.require(Role.ADMIN))]
Hospital = Annotated[Principal, Depends(web.require(Role.HOSPITAL))]
Filed = Annotated[Applications, Depends(_applications)]
Users = Annotated[BrokerUsers, Depends(_broker_users)]

router = APIRouter(prefix="/v1")
router.include_router(session_api.router)
well_known = APIRouter(prefix="/.well-known", tags=["keys"])

_SESSION = (SessionUnknown, StoreUnavailable, ChainUnavailable)
_CHANGING = (SessionUnknown, CrossSite, CsrfTokenInvalid, StoreUnavailable)
_SIGN_IN = (
    NonceUnknown,
    DomainMismatch,
    UriMismatch,
    ChainMismatch,
    MessageExpired,
    MessageNotYetValid,
    SignatureInvalid,
    MessageMalformed,
    RateLimited,
    StoreUnavailable,
    ChainUnavailable,
)


@router.post("/challenges", tags=["sign-in"], responses=problems(RateLimited, StoreUnavailable))
def create_challenge(request: ChallengeRequest, service: Service, source: Source) -> Challenge:
    """A message to sign, good once."""
    return service.challenge(request.address, source)


@router.post("/sessions", status_code=201, tags=["sign-in"], responses=problems(*_SIGN_IN))
def create_session(request: SignIn, service: Service, source: Source, device: Device) -> Session:
    """Sign in with a signed challenge."""
    return service.sign_in(request.message, request.signature, source, device)


@router.delete("/sessions", status_code=204, tags=["sign-in"], responses=problems(StoreUnavailable))
def delete_session(token: SessionToken, service: Service) -> None:
    """Sign out."""
    service.sign_out(token)


@router.get("/session", tags=["sign-in"], responses=problems(*_SESSION))
def read_session(token: SessionToken, service: Service) -> SessionView:
    """Who is signed in, and with which roles now."""
    return service.session(token)


@router.post(
    "/browser-sessions",
    status_code=201,
    tags=["browser"],
    dependencies=[Depends(_same_site)],
    responses=problems(*_SIGN_IN, CrossSite),
)
def create_browser_session(
    request: SignIn, service: Service, source: Source, device: Device, response: Response, former: FormerToken = None
) -> BrowserSession:
    """Sign in with a signed challenge; the session lies in a cookie, and ends the one that lay there."""
    session = service.browser_sign_in(request.message, request.signature, former, source, device)
    response.set_cookie(
        browser.COOKIE, session.token, service.session_seconds, path="/", secure=True, httponly=True, samesite="strict"
    )
    return BrowserSession(
        address=session.address,
        roles=session.roles,
        expires_at=session.expires_at,
        csrf_token=browser.csrf_token(session.token),
    )


@router.get("/browser-session", tags=["browser"], responses=problems(*_SESSION))
def read_browser_session(token: CookieToken, service: Service) -> BrowserSession:
    """Who is signed in with this browser, and with which roles now."""
    return service.browser_session(token)


@router.delete("/browser-session", status_code=204, tags=["browser"], responses=problems(*_CHANGING))
def delete_browser_session(token: ChangingToken, service: Service, response: Response) -> None:
    """Sign out, take the cookie back, and have the browser forget what it keeps of this site."""
    service.sign_out(token)
    response.headers["Clear-Site-Data"] = browser.FORGOTTEN
    response.delete_cookie(browser.COOKIE, path="/", secure=True, httponly=True, samesite="strict")


@router.post("/tokens", tags=["tokens"], responses=problems(*_CHANGING, RateLimited, ChainUnavailable))
def create_token(request: TokenRequest, token: AnyToken, service: Service, source: Source) -> AccessToken:
    """An access token for one service, for a session token or a browser's session."""
    return service.access_token(token, request.audience, source)


@router.post(
    "/applications",
    status_code=201,
    tags=["applications"],
    responses=problems(RateLimited, ApplicationsFull, StoreUnavailable),
)
def file_application(request: Application, caller: Caller, applications: Filed, source: Source) -> FiledApplication:
    """Ask for a role, in place of what the caller asked for before."""
    return applications.file(caller, request, source)


@router.get("/applications", tags=["applications"])
def read_applications(applications: Filed, _: Administrator) -> list[FiledApplication]:
    """Who waits for a role, newest first."""
    return applications.pending()


@router.delete(
    "/applications/{address}",
    status_code=204,
    tags=["applications"],
    responses=problems(ApplicationNotYours, ApplicationUnknown, StoreUnavailable),
)
def delete_application(address: Address, caller: Caller, applications: Filed) -> None:
    """Decline an application, or withdraw one's own."""
    applications.remove(caller, address)


@router.post("/broker-credentials", status_code=201, tags=["broker"])
def create_broker_credential(caller: Hospital, users: Users) -> BrokerCredential:
    """A password more for the caller's own user at the broker, which may work at the caller's own queue alone."""
    return users.issue(caller.address)


@router.post("/csp-reports", status_code=204, tags=["browser"])
def take_csp_report(body: Annotated[bytes, Depends(_body)], service: Service) -> None:
    """What a browser reports of the content security policy; nothing is answered to it, not even that it is wrong."""
    service.csp_report(body)


@well_known.get("/jwks.json")
async def read_keys(service: Service) -> dict[str, Any]:
    """The keys that access tokens verify with (RFC 7517)."""
    # Without a thread: all may wait for the chain service, which may wait for this.
    return service.published_keys()
