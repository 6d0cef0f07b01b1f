"""Puts the model service together; the only place that constructs things."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import sqlalchemy as sa
from concilia_kit import database, health, http, keystore, metrics, web
from concilia_kit.sealing import Keyring
from concilia_kit.sessions import SessionsEnded
from concilia_kit.standing import CurrentRoll
from concilia_kit.tokens import Ended, Standing, TokenVerifier
from concilia_kit.wire.auth import Audience
from fastapi import FastAPI

from concilia_model.api import Services, router
from concilia_model.artifacts import DirectoryStore
from concilia_model.integrity import Integrity
from concilia_model.ledger import HttpLedger, Ledger
from concilia_model.ledgerindex import LedgerIndex
from concilia_model.metrics import ModelMetrics, show_storage
from concilia_model.network_process import NetworkProcess
from concilia_model.references import References
from concilia_model.releases import Releases
from concilia_model.retention import DAY, Policy
from concilia_model.service import ArtifactService, ModelService, PredictionService
from concilia_model.settings import ModelSettings
from concilia_model.storage import StorageService
from concilia_model.store import MIGRATIONS, Store
from concilia_model.upkeep import DirectoryUpkeep
from concilia_model.uploads import UploadService


def build(settings: ModelSettings) -> FastAPI:
    """The service as it runs, beside the auth and chain services.

    Raises `KeystoreError`, `KeyFileError`, `OSError` for the artifact folder, and `sqlalchemy.exc.SQLAlchemyError`.
    """
    account = keystore.load(settings.keystore, settings.password_file)
    auth = http.client(settings.auth_url)
    chain = http.client(settings.chain_url)
    ledger = http.client(settings.chain_url, http.WalletAuth(auth, account, Audience.CHAIN))
    downloads = http.client("")
    networks = NetworkProcess(
        threads=settings.threads,
        models_in_memory=settings.models_in_memory,
        max_pixels=settings.max_image_pixels,
        at_once=settings.predictions_at_once,
        idle_seconds=settings.networks_idle_seconds,
        sealing=(settings.sealing_key_file, settings.sealing_keys_before),
    )

    def keys() -> dict[str, Any]:
        answer: dict[str, Any] = http.call(auth, "GET", "/.well-known/jwks.json", retry_seconds=2).json()
        return answer

    return assemble(
        settings,
        address=account.address,
        ledger=HttpLedger(ledger),
        networks=networks,
        releases=Releases(downloads, networks.release),
        fetch_keys=keys,
        standing=CurrentRoll(chain),
        ended=SessionsEnded(auth),
        ready={"auth": keys, "chain": lambda: http.call(chain, "GET", "/healthz", retry_seconds=0)},
        closing=[networks.close, *(client.close for client in (auth, chain, ledger, downloads))],
    )


def assemble(
    settings: ModelSettings,
    *,
    address: str,
    ledger: Ledger,
    networks: NetworkProcess,
    releases: Releases,
    fetch_keys: Callable[[], dict[str, Any]],
    standing: Standing | None = None,
    ended: Ended | None = None,
    ready: dict[str, health.Check],
    closing: list[Callable[[], None]],
) -> FastAPI:
    """The service on its own disk and database, with what it needs of others given."""
    engine: sa.Engine = database.engine(settings.database_url)
    sealing = Keyring.read(settings.sealing_key_file, settings.sealing_keys_before)
    files = DirectoryStore(settings.directory, settings.max_artifact_bytes, settings.reserve_bytes, sealing)
    files.prepare()
    database.migrate(engine, MIGRATIONS)

    registry = metrics.registry()
    measured = ModelMetrics(registry)
    store, upkeep, references = Store(engine), DirectoryUpkeep(settings.directory, sealing), References(engine)
    artifacts = ArtifactService(files, store, metrics=measured)
    uploads = UploadService(
        artifacts, files, at_once=settings.uploads_at_once, keep_seconds=settings.upload_keep_seconds
    )
    models = ModelService(artifacts, networks, releases, ledger, address)
    turns = anyio.CapacityLimiter(settings.predictions_at_once)
    integrity = Integrity(files, upkeep, store, scrub_rate=settings.scrub_megabytes_per_second, metrics=measured)
    storage = StorageService(
        files,
        upkeep,
        store,
        references,
        LedgerIndex(ledger, references),
        Policy(_seconds(settings.keep_updates_days), _seconds(settings.keep_orphans_days)),
        metrics=measured,
    )
    show_storage(registry, storage.stored, upkeep.free)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        background = [
            asyncio.create_task(uploads.sweep_for_ever(settings.upload_sweep_seconds)),
            asyncio.create_task(storage.sweep_for_ever(settings.storage_sweep_seconds)),
            asyncio.create_task(integrity.scrub_for_ever()),
        ]
        yield
        integrity.stop()
        for task in background:
            task.cancel()
        for close in closing:
            close()
        engine.dispose()

    app = web.application(
        "Concilia model",
        ready={"database": lambda: database.answer(engine), "disk": files.check, "networks": networks.ready, **ready},
        verifier=TokenVerifier(Audience.MODEL, fetch_keys, standing=standing, ended=ended),
        lifespan=lifespan,
        streamed=("/v1/artifacts/", "/v1/uploads", "/v1/predictions"),
        registry=registry,
    )
    app.state.services = Services(
        artifacts,
        uploads,
        models,
        PredictionService(models, networks, integrity, turns, measured),
        integrity,
        storage,
        settings.max_image_bytes,
        settings.max_artifact_bytes,
    )
    app.include_router(router)
    return app


def _seconds(days: float | None) -> float | None:
    return None if days is None else days * DAY
