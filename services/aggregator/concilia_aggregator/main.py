"""Constructs the aggregator: its API and its worker, from one set of settings."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import redis
import sqlalchemy as sa
from celery import Celery
from concilia_kit import database, http, keystore, logs, metrics, queue, web
from concilia_kit.tokens import TokenVerifier
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.training import queue_of
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from concilia_aggregator import api, tasks
from concilia_aggregator.artifacts import MountedArtifacts, RemoteArtifacts
from concilia_aggregator.folder import Folder
from concilia_aggregator.ledger import ChainLedger
from concilia_aggregator.metrics import RoundMetrics, watch
from concilia_aggregator.screening import Limits
from concilia_aggregator.service import Coordinator
from concilia_aggregator.settings import AggregatorSettings
from concilia_aggregator.store import Store
from concilia_aggregator.wakeup import QUEUE, Listener, Wakeup

MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class Parts:
    """What API and worker are both made of."""

    database: sa.Engine
    store: Store
    redis: redis.Redis
    broker: Celery
    wakeup: Wakeup
    coordinator: Coordinator
    verifier: TokenVerifier
    registry: CollectorRegistry
    ready: dict[str, web.Check]


def assemble(settings: AggregatorSettings) -> Parts:
    """Construct everything and bring the database to its newest schema. Raises `KeystoreError`."""
    logs.configure("aggregator", settings.log_format, settings.log_level)
    settings.directory.mkdir(parents=True, exist_ok=True)
    engine = database.engine(settings.database_url)
    database.migrate(engine, MIGRATIONS)
    account = keystore.load(settings.keystore, settings.password_file)
    auth = http.client(settings.auth_url)
    chain = http.client(settings.chain_url, http.WalletAuth(auth, account, Audience.CHAIN))
    model = http.client(settings.model_url, http.WalletAuth(auth, account, Audience.MODEL))
    mount = urlsplit(settings.artifacts_url)
    artifacts = (
        MountedArtifacts(model, Path(mount.path))
        if mount.scheme == "file"
        else RemoteArtifacts(model, settings.directory / "downloads")
    )
    store, ledger = Store(engine), ChainLedger(chain)
    broker = queue.application("aggregator", settings.redis_url)
    client = redis.Redis.from_url(settings.redis_url)

    def send(hospital: str, name: str, task: dict[str, object]) -> None:
        broker.send_task(name, kwargs={"task": task}, queue=queue_of(hospital))

    limits = Limits(settings.max_samples, settings.max_norm_ratio)
    registry = metrics.registry()
    measured = RoundMetrics(registry)
    folder = Folder(artifacts, ledger, settings.directory, limits, measured)
    coordinator = Coordinator(store, ledger, artifacts, folder, send, settings.node_seconds, measured)
    verifier = TokenVerifier(Audience.AGGREGATOR, lambda: dict(http.call(auth, "GET", "/.well-known/jwks.json").json()))
    ready: dict[str, web.Check] = {"database": lambda: database.answer(engine), "redis": client.ping}
    return Parts(engine, store, client, broker, Wakeup(broker, client), coordinator, verifier, registry, ready)


def build_api(settings: AggregatorSettings) -> FastAPI:
    """The API; it also listens to the ledger's events and the clock."""
    parts = assemble(settings)
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

    app = web.application(
        "Concilia aggregator",
        ready=parts.ready,
        verifier=parts.verifier,
        lifespan=lifespan,
        registry=parts.registry,
    )
    app.state.coordinator, app.state.store, app.state.wakeup = parts.coordinator, parts.store, parts.wakeup
    app.include_router(api.router)
    return app


def build_worker(settings: AggregatorSettings) -> tuple[Celery, FastAPI]:
    """The worker that moves jobs on, and its health and metrics. It consumes the aggregator's own queue only."""
    parts = assemble(settings)
    parts.broker.conf.task_default_queue = QUEUE
    pulse = tasks.Pulse()
    tasks.register(parts.broker, parts.coordinator, parts.wakeup, parts.redis, pulse)
    ready = {**parts.ready, "tasks": pulse.check}
    return parts.broker, web.application("Concilia aggregator worker", ready=ready, registry=parts.registry)
