"""Constructs the aggregator: its API and its worker, from one set of settings."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import redis
import sqlalchemy as sa
from celery import Celery
from concilia_kit import database, http, keystore, logs, metrics, queue, web
from concilia_kit.standing import CurrentRoles
from concilia_kit.tokens import TokenVerifier
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.training import queue_of
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from concilia_aggregator import api, tasks, views
from concilia_aggregator.artifacts import Downloads, MountedArtifacts, RemoteArtifacts
from concilia_aggregator.changes import Changes
from concilia_aggregator.feed import Feeds
from concilia_aggregator.folder import Folder
from concilia_aggregator.ledger import ChainLedger
from concilia_aggregator.metrics import RoundMetrics, watch
from concilia_aggregator.screening import Limits
from concilia_aggregator.service import Coordinator
from concilia_aggregator.settings import AggregatorSettings
from concilia_aggregator.store import Store
from concilia_aggregator.verification.examiner import Examiner
from concilia_aggregator.verification.records import Verifications
from concilia_aggregator.verification.sources import FolderSource
from concilia_aggregator.wakeup import QUEUE, Listener, Wakeup

PACKAGE = "concilia-aggregator"
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
    verifications: Verifications
    examiner: Examiner
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
    is_mounted = mount.scheme == "file"
    artifacts = (
        MountedArtifacts(model, Path(mount.path))
        if is_mounted
        else RemoteArtifacts(model, settings.directory / "downloads")
    )
    store, ledger, changes = Store(engine), ChainLedger(chain), Changes(settings.redis_url)
    broker = queue.application("aggregator", settings.redis_url)
    client = redis.Redis.from_url(settings.redis_url)

    def send(hospital: str, name: str, task: dict[str, object]) -> None:
        broker.send_task(name, kwargs={"task": task}, queue=queue_of(hospital))

    limits = Limits(settings.max_samples, settings.max_norm_ratio)
    registry = metrics.registry()
    measured = RoundMetrics(registry)
    folder = Folder(artifacts, ledger, settings.directory, limits, measured)
    version = settings.code_version or importlib.metadata.version(PACKAGE)
    coordinator = Coordinator(
        store, ledger, artifacts, folder, send, settings.node_seconds, f"{PACKAGE} {version}", measured, changes
    )
    verifications = Verifications(engine, store, changes)
    source = FolderSource(Path(mount.path)) if is_mounted else Downloads(model)
    examiner = Examiner(verifications, ledger, source, client, settings.directory / "verifications")
    verifier = TokenVerifier(
        Audience.AGGREGATOR,
        lambda: dict(http.call(auth, "GET", "/.well-known/jwks.json").json()),
        standing=CurrentRoles(http.client(settings.chain_url)),
    )
    ready: dict[str, web.Check] = {"database": lambda: database.answer(engine), "redis": client.ping}
    return Parts(
        engine,
        store,
        client,
        broker,
        Wakeup(broker, client),
        coordinator,
        verifications,
        examiner,
        verifier,
        registry,
        ready,
    )


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
    app.state.verifications = parts.verifications
    app.state.feeds = Feeds(
        settings.redis_url,
        settings.max_streams,
        lambda job: views.job(parts.store, parts.store.job(job)),
        app.state.closing,
    )
    app.include_router(api.router)
    return app


class Worker(NamedTuple):
    """What moves jobs on, its health and metrics, and what verifies beside it."""

    celery: Celery
    health: FastAPI
    examiner: Examiner


def build_worker(settings: AggregatorSettings) -> Worker:
    """The worker. It consumes the aggregator's own queue only; nothing of it is started."""
    parts = assemble(settings)
    parts.broker.conf.task_default_queue = QUEUE
    pulse = tasks.Pulse()
    tasks.register(parts.broker, parts.coordinator, parts.wakeup, parts.redis, pulse)
    ready = {**parts.ready, "tasks": pulse.check, "verifications": parts.examiner.check}
    health = web.application("Concilia aggregator worker", ready=ready, registry=parts.registry)
    return Worker(parts.broker, health, parts.examiner)
