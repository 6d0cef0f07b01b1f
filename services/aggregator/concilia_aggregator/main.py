"""Constructs the aggregator: its API and its worker, from one set of settings.

What only one of them needs is imported where it is constructed: each may be a process of its own, and the half that it
does not use would take as much memory as the half that it does.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import httpx
import redis
import sqlalchemy as sa
from celery import Celery
from concilia_kit import database, health, http, keystore, logs, metrics, queue
from concilia_kit.health import Check
from concilia_kit.sealing import Keyring
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.queues import queue_of
from eth_account.signers.local import LocalAccount
from prometheus_client import CollectorRegistry
from pydantic import JsonValue
from starlette.applications import Starlette

from concilia_aggregator.artifacts import Artifacts, MountedArtifacts, RemoteArtifacts
from concilia_aggregator.changes import Changes
from concilia_aggregator.ledger import ChainLedger
from concilia_aggregator.orders import Orders
from concilia_aggregator.settings import AggregatorSettings
from concilia_aggregator.store import Store
from concilia_aggregator.verification.records import Verifications
from concilia_aggregator.wakeup import QUEUE, Wakeup

if TYPE_CHECKING:
    from concilia_kit.consuming import ConsumingWatch
    from fastapi import FastAPI

    from concilia_aggregator.verification.examiner import Examiner

PACKAGE = "concilia-aggregator"
MIGRATIONS = Path(__file__).parent / "migrations"
MAX_BODY = 128 * 1024
"""Bytes of a request: of ten thousand hospitals each hands out some 320 parcels, a hundred kilobytes."""


@dataclass(frozen=True)
class Parts:
    """What API and worker are both made of."""

    database: sa.Engine
    store: Store
    redis: redis.Redis
    broker: Celery
    wakeup: Wakeup
    auth: httpx.Client
    model: httpx.Client
    account: LocalAccount
    orders: Orders
    artifacts: Artifacts
    changes: Changes
    verifications: Verifications
    registry: CollectorRegistry
    ready: dict[str, Check]
    code: str


def assemble(settings: AggregatorSettings) -> Parts:
    """Construct what both need and bring the database to its newest schema. Raises `KeystoreError`,
    `KeyFileError`."""
    logs.configure("aggregator", settings.log_format, settings.log_level)
    settings.directory.mkdir(parents=True, exist_ok=True)
    engine = database.engine(settings.database_url)
    database.migrate(engine, MIGRATIONS)
    account = keystore.load(settings.keystore, settings.password_file)
    auth = http.client(settings.auth_url)
    model = http.client(settings.model_url, http.WalletAuth(auth, account, Audience.MODEL))
    store, changes = Store(engine), Changes(settings.redis_url)
    broker = queue.application("aggregator", settings.redis_url)
    client = redis.Redis.from_url(settings.redis_url)
    version = settings.code_version or importlib.metadata.version(PACKAGE)
    return Parts(
        engine,
        store,
        client,
        broker,
        Wakeup(broker, client),
        auth,
        model,
        account,
        Orders(account, ChainLedger(http.client(settings.chain_url)).domain),
        _artifacts(settings, model, settings.directory / "downloads"),
        changes,
        Verifications(engine, store, changes),
        metrics.registry(),
        {"database": lambda: database.answer(engine), "redis": client.ping},
        f"{PACKAGE} {version}",
    )


def build_api(settings: AggregatorSettings) -> FastAPI:
    """The API; it also listens to the ledger's events and the clock."""
    from concilia_aggregator.metrics import RoundMetrics

    parts = assemble(settings)
    RoundMetrics(parts.registry)  # all zero here, and shown: a query takes the sum over instances
    return _api(settings, parts, parts.ready)


def _api(settings: AggregatorSettings, parts: Parts, ready: dict[str, Check]) -> FastAPI:
    from concilia_kit import web
    from concilia_kit.sessions import SessionsEnded
    from concilia_kit.standing import CurrentRoll
    from concilia_kit.tokens import TokenVerifier

    from concilia_aggregator import api, views
    from concilia_aggregator.assignments import Assignments
    from concilia_aggregator.feed import Feeds
    from concilia_aggregator.jobs import Jobs
    from concilia_aggregator.masking import api as masking_api
    from concilia_aggregator.masking.receiving import Receiving
    from concilia_aggregator.metrics import watch
    from concilia_aggregator.wakeup import Listener

    watch(
        parts.registry,
        parts.store.phases,
        lambda: parts.store.presence(settings.node_seconds),
        lambda: parts.redis.llen(QUEUE),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        listener = Listener(parts.wakeup, parts.redis, parts.store, settings.tick_seconds)
        listener.start()
        yield
        listener.stop()

    verifier = TokenVerifier(
        Audience.AGGREGATOR,
        lambda: dict(http.call(parts.auth, "GET", "/.well-known/jwks.json").json()),
        standing=CurrentRoll(http.client(settings.chain_url)),
        ended=SessionsEnded(parts.auth),
    )
    app = web.application(
        "Concilia aggregator",
        ready=ready,
        verifier=verifier,
        lifespan=lifespan,
        registry=parts.registry,
        max_body=MAX_BODY,
    )
    app.state.jobs = Jobs(parts.store, parts.artifacts, parts.code, parts.changes)
    app.state.store, app.state.wakeup = parts.store, parts.wakeup
    app.state.verifications = parts.verifications
    app.state.assignments = Assignments(parts.store, parts.orders)
    app.state.masking = Receiving(parts.store, parts.orders.domain)
    app.state.ledger = parts.orders.domain
    app.state.feeds = Feeds(
        settings.redis_url,
        settings.max_streams,
        lambda job: views.job(parts.store, parts.store.job(job)),
        app.state.closing,
    )
    app.include_router(api.router)
    app.include_router(masking_api.router)
    return app


class Worker(NamedTuple):
    """What moves jobs on, its health and metrics, and what verifies beside it."""

    celery: Celery
    health: Starlette
    examiner: Examiner
    watch: ConsumingWatch


class Both(NamedTuple):
    """What moves jobs on, the API, and what verifies beside them."""

    celery: Celery
    api: FastAPI
    examiner: Examiner
    watch: ConsumingWatch


def build_worker(settings: AggregatorSettings) -> Worker:
    """The worker. It consumes the aggregator's own queue only; nothing of it is started."""
    parts = assemble(settings)
    examiner, ready = _worker(settings, parts)
    served = health.application("aggregator-worker", ready=ready, registry=parts.registry)
    return Worker(parts.broker, served, examiner, _watch(parts))


def build_both(settings: AggregatorSettings) -> Both:
    """API and worker of one process, made of the same parts: two thirds of the memory that they take apart."""
    parts = assemble(settings)
    examiner, ready = _worker(settings, parts)
    return Both(parts.broker, _api(settings, parts, ready), examiner, _watch(parts))


def _watch(parts: Parts) -> ConsumingWatch:
    from concilia_kit.consuming import ConsumingWatch

    return ConsumingWatch(parts.redis, QUEUE)


def _worker(settings: AggregatorSettings, parts: Parts) -> tuple[Examiner, dict[str, Check]]:
    """What moves jobs on, as tasks of the parts' broker; what verifies beside it; and whether both do."""
    from concilia_aggregator import tasks
    from concilia_aggregator.artifacts import Downloads
    from concilia_aggregator.folder import Folder
    from concilia_aggregator.metrics import RoundMetrics
    from concilia_aggregator.screening import Limits
    from concilia_aggregator.service import Coordinator
    from concilia_aggregator.summing import Summing
    from concilia_aggregator.verification.examiner import Examiner
    from concilia_aggregator.verification.sources import FolderSource

    chain = http.client(settings.chain_url, http.WalletAuth(parts.auth, parts.account, Audience.CHAIN))
    ledger = ChainLedger(chain)
    limits = Limits(settings.max_samples, settings.max_norm_ratio)
    measured = RoundMetrics(parts.registry)
    ahead = Summing(parts.broker, settings.partials, parts.artifacts.keys) if settings.partials is not None else None
    folder = Folder(parts.artifacts, ledger, settings.directory, limits, measured, ahead, parts.store.noise)

    def send(hospital: str, name: str, task: dict[str, JsonValue]) -> None:
        words = {"task": task, "signature": parts.orders.sign(name, task)}
        parts.broker.send_task(name, kwargs=words, queue=queue_of(hospital))

    coordinator = Coordinator(
        parts.store,
        ledger,
        parts.artifacts,
        folder,
        send,
        settings.node_seconds,
        parts.code,
        measured,
        parts.changes,
    )
    mount = _mount(settings)
    keys = parts.artifacts.keys
    source = Downloads(parts.model, keys) if mount is None else FolderSource(mount, keys)
    examiner = Examiner(parts.verifications, ledger, source, parts.redis, settings.directory / "verifications", keys)
    parts.broker.conf.task_default_queue = QUEUE
    pulse = tasks.Pulse()
    tasks.register(parts.broker, coordinator, parts.wakeup, parts.redis, pulse)
    return examiner, {**parts.ready, "tasks": pulse.check, "verifications": examiner.check}


def build_partials(settings: AggregatorSettings) -> tuple[Celery, Starlette]:
    """A worker that only makes sums ahead, and its health. It needs Redis, the artifacts and the shared folder.

    Raises `KeystoreError`, `KeyFileError`, `ValueError` where no folder is set.
    """
    from concilia_aggregator import summing

    logs.configure("aggregator-partials", settings.log_format, settings.log_level)
    if settings.partials is None:
        raise ValueError("CONCILIA_AGGREGATOR_PARTIALS names the folder that sums are shared in")
    downloads = settings.directory / f"partials-{socket.gethostname()}-{os.getpid()}"
    account = keystore.load(settings.keystore, settings.password_file)
    model = http.client(settings.model_url, http.WalletAuth(http.client(settings.auth_url), account, Audience.MODEL))
    broker = queue.application("aggregator", settings.redis_url)
    broker.conf.task_default_queue = summing.QUEUE
    summing.register(broker, _artifacts(settings, model, downloads), settings.partials)
    client = redis.Redis.from_url(settings.redis_url)
    served = health.application("aggregator-partials", ready={"redis": client.ping}, registry=metrics.registry())
    return broker, served


def _mount(settings: AggregatorSettings) -> Path | None:
    """Where the artifact store's volume is mounted, if it is."""
    mount = urlsplit(settings.artifacts_url)
    return Path(mount.path) if mount.scheme == "file" else None


def _artifacts(settings: AggregatorSettings, model: httpx.Client, downloads: Path) -> Artifacts:
    mount = _mount(settings)
    keys = Keyring.read(settings.sealing_key_file, settings.sealing_keys_before)
    return RemoteArtifacts(model, downloads, keys) if mount is None else MountedArtifacts(model, mount, keys)
