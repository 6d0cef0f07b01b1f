"""The one place that puts the auth service together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial

import anyio
import redis
from concilia_kit import http, metrics, web
from concilia_kit.standing import CurrentRoles, CurrentRoll
from concilia_kit.tokens import TokenVerifier
from concilia_kit.wire.auth import Audience
from fastapi import FastAPI

from concilia_auth import api, browser, chain, eip4361, keys, tokens
from concilia_auth.broker import BrokerUsers, Sweeper
from concilia_auth.limits import RateLimits
from concilia_auth.metrics import AuthMetrics
from concilia_auth.service import Applications, AuthService
from concilia_auth.sessions import Sessions
from concilia_auth.settings import AuthSettings
from concilia_auth.store import Store

_REDIS_SECONDS = 5.0
_KEYS_SECONDS = 10.0
_SERVICES = 4  # that ask at one moment which sessions ended
_ANYBODY = "0x" + 40 * "0"


def build(settings: AuthSettings) -> FastAPI:
    """The application. Makes the first signing key where there is none; opens no connection.

    Raises `KeyFileError` for keys that cannot be used, `ValueError` for a site that cannot be signed in to.
    """
    _check_site(settings)
    keys.ensure(settings.key_directory, _now())
    key_ring = keys.KeyRing(settings.key_directory, keys.SETTLE_SECONDS)
    key_ring.current()
    client, broker = _redis(settings.redis_url), _redis(settings.broker_url or settings.redis_url)
    store = Store(client)
    chain_http = http.client(settings.chain_url)
    standing = CurrentRoles(chain_http)
    sessions = Sessions(settings, store, _now)
    registry = metrics.registry()
    measured = AuthMetrics(registry)
    limits = RateLimits(client, settings.address_rate, settings.source_rate, measured)
    broker_users = BrokerUsers(broker, CurrentRoll(chain_http), _now, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        sweeper = Sweeper(broker_users)
        sweeper.start()
        yield
        sweeper.close()
        chain_http.close()
        client.close()
        broker.close()

    app = web.application(
        "Concilia auth",
        ready={"redis": store.answer, "chain": partial(chain.answer, chain_http)},
        verifier=TokenVerifier(
            Audience.AUTH,
            lambda: key_ring.current().published,
            refetch_seconds=0,  # its own keys cost a look at a directory
            max_age_seconds=_KEYS_SECONDS,
            standing=standing,
            ended=sessions.has_ended,
        ),
        lifespan=lifespan,
        registry=registry,
    )
    app.state.service = AuthService(
        settings,
        store,
        key_ring,
        chain.ChainRoles(chain_http),
        chain.ChainId(chain_http, settings.chain_id),
        _now,
        wallets=chain.ChainWallets(chain_http, lambda: tokens.own(key_ring.current().signing, Audience.CHAIN, _now())),
        limits=limits,
        metrics=measured,
        refusals=app.state.refusals,
    )
    app.state.sessions = sessions
    app.state.services_ask = anyio.CapacityLimiter(_SERVICES)
    app.state.broker_users = broker_users
    app.state.applications = Applications(store, standing, _now, limits=limits)
    app.include_router(api.router)
    app.include_router(api.well_known)
    return app


def _redis(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url, decode_responses=True, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS
    )


def _check_site(settings: AuthSettings) -> None:
    browser.origin_of(settings.uri)
    site = eip4361.Site(settings.domain, settings.uri, settings.statement)
    now = _now()
    try:
        text = eip4361.build(site, address=_ANYBODY, chain_id=2**64, nonce=17 * "0", issued_at=now, expires_at=now)
        eip4361.parse(text)
    except Exception as error:
        raise ValueError(
            "domain, uri and statement make no EIP-4361 message: the domain is a host with an optional port, the "
            "statement one line of printable ASCII"
        ) from error


def _now() -> datetime:
    return datetime.now(UTC)
