"""Puts the model service together; the only place that constructs things."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import sqlalchemy as sa
import torch
from concilia_kit import database, http, keystore, metrics, web
from concilia_kit.standing import CurrentRoles
from concilia_kit.tokens import Standing, TokenVerifier
from concilia_kit.wire.auth import Audience
from fastapi import FastAPI

from concilia_model.api import Services, router
from concilia_model.artifacts import DirectoryStore
from concilia_model.ledger import HttpLedger, Ledger
from concilia_model.metrics import ModelMetrics
from concilia_model.predictor import Predictor
from concilia_model.pretrained import Pretrained
from concilia_model.service import ArtifactService, ModelService, PredictionService
from concilia_model.settings import ModelSettings
from concilia_model.store import MIGRATIONS, Store


def build(settings: ModelSettings) -> FastAPI:
    """The service as it runs, beside the auth and chain services.

    Raises `KeystoreError`, `OSError` for the artifact folder, and `sqlalchemy.exc.SQLAlchemyError`.
    """
    account = keystore.load(settings.keystore, settings.password_file)
    auth = http.client(settings.auth_url)
    chain = http.client(settings.chain_url)
    ledger = http.client(settings.chain_url, http.WalletAuth(auth, account, Audience.CHAIN))
    releases = http.client("")

    def keys() -> dict[str, Any]:
        answer: dict[str, Any] = http.call(auth, "GET", "/.well-known/jwks.json", retry_seconds=2).json()
        return answer

    return assemble(
        settings,
        address=account.address,
        ledger=HttpLedger(ledger),
        pretrained=Pretrained(releases),
        fetch_keys=keys,
        standing=CurrentRoles(chain),
        ready={"auth": keys, "chain": lambda: http.call(chain, "GET", "/healthz", retry_seconds=0)},
        closing=[client.close for client in (auth, chain, ledger, releases)],
    )


def assemble(
    settings: ModelSettings,
    *,
    address: str,
    ledger: Ledger,
    pretrained: Pretrained,
    fetch_keys: Callable[[], dict[str, Any]],
    standing: Standing | None = None,
    ready: dict[str, web.Check],
    closing: list[Callable[[], None]],
) -> FastAPI:
    """The service on its own disk and database, with what it needs of others given."""
    torch.set_num_threads(settings.threads)
    engine: sa.Engine = database.engine(settings.database_url)
    files = DirectoryStore(settings.directory, settings.max_artifact_bytes, settings.reserve_bytes)
    files.prepare()
    database.migrate(engine, MIGRATIONS)

    registry = metrics.registry()
    measured = ModelMetrics(registry)
    artifacts = ArtifactService(files, Store(engine), metrics=measured)
    models = ModelService(artifacts, pretrained, ledger, address)
    turns = anyio.CapacityLimiter(settings.predictions_at_once)
    predictor = Predictor(files, settings.models_in_memory)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        for close in closing:
            close()
        engine.dispose()

    app = web.application(
        "Concilia model",
        ready={"database": lambda: database.answer(engine), "disk": files.check, **ready},
        verifier=TokenVerifier(Audience.MODEL, fetch_keys, standing=standing),
        lifespan=lifespan,
        streamed=("/v1/artifacts/", "/v1/predictions"),
        registry=registry,
    )
    app.state.services = Services(
        artifacts,
        models,
        PredictionService(models, predictor, settings.max_image_pixels, turns, measured),
        settings.max_image_bytes,
    )
    app.include_router(router)
    return app
