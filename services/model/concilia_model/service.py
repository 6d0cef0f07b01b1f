"""Where the model service's parts work together: uploads, initial weights, registration, prediction."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
from concilia_kit.lesions import CLASSES, FULL_NAMES
from concilia_kit.metrics import outcome_of
from concilia_kit.problems import Problem
from concilia_kit.tensorfile import TensorFile, TensorSpec, layout
from concilia_kit.tokens import Principal
from concilia_kit.wire.models import (
    Artifact,
    AttentionMap,
    ClassProbability,
    InitialModel,
    InitialModelRequest,
    ModelRegistration,
    ModelVersion,
    Prediction,
    Weights,
)

from concilia_model import access, architectures, images, lineage, weights
from concilia_model.artifacts import ArtifactStore, Chunk
from concilia_model.errors import (
    AlreadyRegistered,
    ArtifactNotFound,
    DigestMismatch,
    NoModel,
    NotPublished,
)
from concilia_model.ledger import Ledger
from concilia_model.metrics import ModelMetrics
from concilia_model.predictor import Predictor
from concilia_model.pretrained import Pretrained
from concilia_model.store import Store

_DECIMALS = 3  # of an attention map's values: more than any screen shows
_BATCH = 2**20  # bytes handed to a worker thread at one time

Clock = Callable[[], float]


@dataclass(frozen=True)
class ArtifactService:
    """Uploads and reads of artifacts. An upload is not seen before it is whole, checked and on disk."""

    files: ArtifactStore
    store: Store
    clock: Clock = time.time
    metrics: ModelMetrics = field(default_factory=ModelMetrics)

    async def receive(
        self, digest: str, announced: int, chunks: AsyncIterator[bytes], caller: Principal
    ) -> tuple[Artifact, bool]:
        """Store an upload under `digest`; whether it is new.

        Bytes that the caller brought before are not read again. Bytes somebody else brought are: naming a digest, which
        is public, must not be enough to own what it names.
        Raises `ArtifactTooLarge`, `DigestMismatch`, `ArtifactMalformed` and `NoSpace`.
        """
        if (known := await anyio.to_thread.run_sync(self._known, digest, caller)) is not None:
            return known, False
        incoming = await anyio.to_thread.run_sync(self.files.create, announced)
        with incoming:
            async for batch in _batches(chunks):
                await anyio.to_thread.run_sync(incoming.write, batch)
            if incoming.digest() != digest:
                raise DigestMismatch(f"the bytes received hash to {incoming.digest()}, not to {digest}")
            header = await anyio.to_thread.run_sync(incoming.header)
            await anyio.to_thread.run_sync(incoming.commit)
        self.metrics.bytes.labels("in").inc(incoming.size)
        artifact = Artifact(digest=digest, size=incoming.size, owner=caller.address, tensors=len(header.tensors))
        shared = access.uploads_are_shared(caller)
        return await anyio.to_thread.run_sync(lambda: self.store.record(artifact, shared=shared, now=self.clock()))

    def keep(self, tensors: dict[str, weights.Array], origin: str, owner: str) -> Artifact:
        """Store tensors as an artifact of the service itself, readable to every hospital. Raises `NoSpace`.

        The same tensors and origin give the same bytes.
        """
        specs = {name: TensorSpec(array.dtype, array.shape) for name, array in tensors.items()}
        header, order = layout(specs, {"origin": origin})
        with self.files.create(len(header) + sum(spec.nbytes for spec in specs.values())) as incoming:
            incoming.write([header])
            for name in order:
                incoming.write([tensors[name].reshape(-1).view(np.uint8).data])
            digest = incoming.digest()
            incoming.commit()
        artifact = Artifact(digest=digest, size=incoming.size, owner=owner, tensors=len(specs), origin=origin)
        return self.store.record(artifact, shared=True, now=self.clock())[0]

    def info(self, digest: str, caller: Principal) -> Artifact:
        """An artifact's record. Raises `ArtifactNotFound`, also where the caller may not know of it."""
        artifact = self.store.artifact(digest)
        readable = artifact is not None and (
            access.reads_everything(caller) or self.store.brought(digest, caller.address) or self.store.shared(digest)
        )
        if artifact is None or not readable or not self.files.exists(digest):
            raise ArtifactNotFound(f"there is no artifact {digest}")
        return artifact

    def path(self, digest: str, caller: Principal) -> Path:
        """An artifact's file. Raises `ArtifactNotFound`."""
        return self.files.path(self.info(digest, caller).digest)

    def sent(self, size: int) -> None:
        """Bytes of an artifact went out."""
        self.metrics.bytes.labels("out").inc(size)

    def _known(self, digest: str, caller: Principal) -> Artifact | None:
        if self.store.brought(digest, caller.address) and self.files.exists(digest):
            return self.store.artifact(digest)
        return None


@dataclass(frozen=True)
class ModelService:
    """Initial weights, and the register of published models."""

    artifacts: ArtifactService
    pretrained: Pretrained
    ledger: Ledger
    address: str
    """The service's own address, owner of what it makes."""

    def make_initial(self, request: InitialModelRequest, caller: Principal) -> InitialModel:
        """Make initial weights and keep them; the same request gives the same bytes.

        Raises `ArtifactNotFound`, `WeightsDoNotFit`, `WeightsUnavailable` and `NoSpace`.
        """
        architecture, seed = request.architecture, request.seed
        initial = architectures.fresh(architecture, seed)
        if request.weights is Weights.RANDOM:
            fitted, source = weights.Fitted(initial, 0, len(initial), None), "random"
        else:
            if request.file is not None:
                offered = _tensors(self.artifacts.path(request.file, caller))
                source = f"file {request.file[:8]}…"
            else:
                offered, source = self.pretrained.tensors(architecture), "torchvision's ImageNet weights"
            fitted = weights.fit(
                offered, architectures.expected(architecture), initial, architectures.HEADS[architecture]
            )
        origin = f"{source}: {fitted.loaded} tensors loaded, {fitted.fresh} fresh (seed {seed})"
        if fitted.replaced_head is not None:
            origin += f", head for {fitted.replaced_head} classes replaced"
        artifact = self.artifacts.keep(dict(fitted.tensors), origin, self.address)
        return InitialModel(
            digest=artifact.digest,
            architecture=architecture,
            origin=origin,
            loaded_tensors=fitted.loaded,
            fresh_tensors=fitted.fresh,
        )

    def register(self, request: ModelRegistration, caller: Principal) -> ModelVersion:
        """Register what a job published, with its lineage from the ledger. Repeating it changes nothing.

        Raises `NotPublished`, `ArtifactNotFound`, `WeightsDoNotFit`, `AlreadyRegistered` and `Unavailable`.
        """
        try:
            recorded = self.ledger.job(request.job)
        except Problem as problem:
            if problem.problem_status != 404:
                raise
            raise NotPublished("the ledger knows no such job") from problem
        line = lineage.of(recorded, request.digest)
        weights.check(
            _tensors(self.artifacts.path(request.digest, caller)), architectures.expected(request.architecture)
        )
        store = self.artifacts.store
        initial = store.artifact(line.initial)
        standing = store.register(
            ModelVersion(
                **request.model_dump(),
                initial=line.initial,
                initial_origin=None if initial is None else initial.origin,
                rounds=len(line.models),
                contributors=line.contributors,
                lineage=line.models,
                published_at=datetime.fromtimestamp(self.artifacts.clock(), UTC),
            )
        )
        if (standing.architecture, standing.image_size) != (request.architecture, request.image_size):
            raise AlreadyRegistered(
                f"this job's model is registered as {standing.architecture} of {standing.image_size} pixels"
            )
        return standing

    def versions(self) -> tuple[ModelVersion, ...]:
        """Registered models, the newest first."""
        return self.artifacts.store.versions()

    def version(self, digest: str | None) -> ModelVersion:
        """A registered model, or the newest. Raises `NoModel`."""
        store = self.artifacts.store
        found = store.latest() if digest is None else store.version(digest)
        if found is None:
            raise NoModel("no model is published yet" if digest is None else f"no published model is {digest}")
        return found


@dataclass(frozen=True)
class PredictionService:
    """Pictures in, probabilities out; a picture lives in memory as long as its request and is not logged."""

    models: ModelService
    predictor: Predictor
    max_pixels: int
    turns: anyio.CapacityLimiter
    """Bounds memory: a decoded picture is far larger than its file."""
    metrics: ModelMetrics = field(default_factory=ModelMetrics)

    async def predict(self, content: bytes, model: str | None, *, attention: bool = False) -> Prediction:
        """Classify a picture, with attention maps where they are asked for.

        Raises `NoModel`, `ImageTooLarge`, `ImageUnreadable` and `ArtifactCorrupt`.
        """
        began = time.perf_counter()
        try:
            prediction = await anyio.to_thread.run_sync(self._predict, content, model, attention, limiter=self.turns)
        except Exception as error:
            self.metrics.predictions.labels(outcome_of(error)).inc()
            raise
        self.metrics.predictions.labels("ok").inc()
        self.metrics.prediction_seconds.observe(time.perf_counter() - began)
        return prediction

    def _predict(self, content: bytes, model: str | None, attention: bool) -> Prediction:
        began = time.perf_counter()
        version = self.models.version(model)
        batch = images.prepare(images.decode(content, self.max_pixels), version.image_size)
        asked = version.digest, version.architecture, batch
        maps = None
        if attention:
            shares, maps = self.predictor.look(*asked)
        else:
            shares = self.predictor.probabilities(*asked)
        return Prediction(
            model=version.digest,
            job=version.job,
            probabilities=tuple(
                ClassProbability(code=code, name=FULL_NAMES[code], probability=share)
                for code, share in zip(CLASSES, shares, strict=True)
            ),
            attention=None if maps is None else _rounded(maps),
            milliseconds=(time.perf_counter() - began) * 1000,
        )


def _rounded(maps: list[list[list[float]]]) -> tuple[AttentionMap, ...]:
    return tuple(
        AttentionMap(code=code, grid=tuple(tuple(round(value, _DECIMALS) for value in row) for row in grid))
        for code, grid in zip(CLASSES, maps, strict=True)
    )


def _tensors(path: Path) -> dict[str, weights.Array]:
    file = TensorFile.open(path)
    return {name: file.tensor(name) for name in file}


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[Chunk]]:
    """Chunks as they come from a socket, gathered until a trip to another thread is worth it. Copies nothing."""
    batch: list[Chunk] = []
    size = 0
    async for chunk in chunks:
        batch.append(chunk)
        size += len(chunk)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
