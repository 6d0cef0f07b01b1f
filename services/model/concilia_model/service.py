"""Where the model service's parts work together: uploads, initial weights, registration, prediction."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from concilia_kit.admission import TooBusy
from concilia_kit.classification import Classification
from concilia_kit.metrics import outcome_of
from concilia_kit.problems import Problem
from concilia_kit.tokens import Principal
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.calibration import AS_IT_IS
from concilia_kit.wire.metadata import CONFIDENTIAL
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

from concilia_model import access, lineage, reading
from concilia_model.artifacts import ArtifactStore, Incoming
from concilia_model.errors import (
    AlreadyRegistered,
    ArtifactCorrupt,
    ArtifactMalformed,
    ArtifactNotFound,
    DigestMismatch,
    NoModel,
    NotPublished,
)
from concilia_model.integrity import Found, Integrity, absent
from concilia_model.ledger import Ledger
from concilia_model.metrics import ModelMetrics
from concilia_model.network_process import InitialWeights, NetworkProcess
from concilia_model.pouring import Pours
from concilia_model.releases import Releases
from concilia_model.store import Store

PICTURES_AT_ONCE = 32
"""Pictures that are read, wait or are looked at, of some MB each; what is beyond is refused before it is read."""
_DECIMALS = 3  # of an attention map's values: more than any screen shows

Clock = Callable[[], float]


@dataclass(frozen=True)
class ArtifactService:
    """Uploads and reads of artifacts. An upload is not seen before it is whole, checked and on disk."""

    files: ArtifactStore
    store: Store
    clock: Clock = time.time
    metrics: ModelMetrics = field(default_factory=ModelMetrics)
    pours: Pours = field(default_factory=Pours)

    async def receive(
        self, digest: str, announced: int, chunks: AsyncIterator[bytes], caller: Principal
    ) -> tuple[Artifact, bool]:
        """Store an upload under `digest`; whether it is new.

        Bytes that the caller brought before are not read again. Bytes somebody else brought are: naming a digest, which
        is public, must not be enough to own what it names.
        Raises `ArtifactTooLarge`, `DigestMismatch`, `ArtifactMalformed` and `NoSpace`.
        """
        if (known := await anyio.to_thread.run_sync(self.known, digest, caller)) is not None:
            return known, False
        async with put_away(await anyio.to_thread.run_sync(self.files.create, announced)) as incoming:
            await self.pours.pour(chunks, incoming.write)
            return await anyio.to_thread.run_sync(self.take, incoming, digest, caller)

    def take(self, incoming: Incoming, digest: str, caller: Principal) -> tuple[Artifact, bool]:
        """Check what has come whole, store it under `digest` and record it; whether it is new.

        Raises `DigestMismatch`, `ArtifactMalformed` and `NoSpace`.
        """
        if incoming.digest() != digest:
            raise DigestMismatch(f"the bytes received hash to {incoming.digest()}, not to {digest}")
        header, shared = incoming.header(), access.uploads_are_shared(caller)
        try:
            said = Adapter.of(header.metadata)
        except ValueError as error:
            raise ArtifactMalformed(f"no acceptable adapter: {error}") from error
        self.store.bring(digest, self.clock())
        if said is not None and shared:
            self.store.bring(said.trunk, self.clock())  # from here on it is needed
        incoming.commit()
        self.metrics.bytes.labels("in").inc(incoming.size)
        artifact = Artifact(
            digest=digest,
            size=incoming.size,
            owner=caller.address,
            tensors=len(header.tensors),
            trunk=None if said is None else said.trunk,
            adapter=None if said is None else said.kind,
            secret=CONFIDENTIAL in header.metadata,
        )
        return self.store.record(artifact, shared=shared, now=self.clock())

    def keep(self, path: Path, made: InitialWeights, owner: str, over: Adapter | None = None) -> Artifact:
        """Store a file that this service made as an artifact readable to every hospital; `over` says what an adapter is
        over. Raises `NoSpace`."""
        self.store.bring(made.digest, self.clock())
        self.files.adopt(path, made.digest)
        artifact = Artifact(
            digest=made.digest,
            size=made.size,
            owner=owner,
            tensors=made.loaded + made.fresh,
            origin=made.origin,
            trunk=None if over is None else over.trunk,
            adapter=None if over is None else over.kind,
        )
        return self.store.record(artifact, shared=True, now=self.clock())[0]

    def info(self, digest: str, caller: Principal) -> Artifact:
        """An artifact's record. Raises `ArtifactNotFound`, also where the caller may not know of it, `ArtifactRemoved`
        and `ArtifactQuarantined`."""
        artifact = self.store.artifact(digest)
        readable = artifact is not None and (
            access.reads_everything(caller) or self.store.brought(digest, caller.address) or self.store.shared(digest)
        )
        if artifact is None or not readable:
            raise ArtifactNotFound(f"there is no artifact {digest}")
        if not self.files.exists(digest):
            raise absent(self.store, digest)
        return artifact

    def path(self, digest: str, caller: Principal) -> Path:
        """An artifact's file. Raises as `info`."""
        return self.file(self.info(digest, caller).digest)

    def file(self, digest: str) -> Path:
        """An artifact's file, whoever asks. Raises as `info`."""
        try:
            return self.files.path(digest)
        except FileNotFoundError as error:
            raise absent(self.store, digest) from error

    def trunk(self, digest: str) -> Path | None:
        """The file of an adapter's trunk, None for what is no adapter. Raises as `info` where it is not there."""
        artifact = self.store.artifact(digest)
        return None if artifact is None or artifact.trunk is None else self.file(artifact.trunk)

    def sent(self, size: int) -> None:
        """Bytes of an artifact went out."""
        self.metrics.bytes.labels("out").inc(size)

    def known(self, digest: str, caller: Principal) -> Artifact | None:
        """An artifact that the caller brought before, and that is there; from here on it counts as brought now."""
        if not self.store.brought(digest, caller.address):
            return None
        self.store.bring(digest, self.clock())  # before the look, so that what is seen stays
        if not self.files.exists(digest):
            return None
        self.store.keep(digest)
        return self.store.artifact(digest)


@dataclass(frozen=True)
class ModelService:
    """Initial weights, and the register of published models."""

    artifacts: ArtifactService
    networks: NetworkProcess
    releases: Releases
    ledger: Ledger
    address: str
    """The service's own address, owner of what it makes."""

    def make_initial(self, request: InitialModelRequest, caller: Principal) -> InitialModel:
        """Make initial weights and keep them, and an adapter over them where that is asked for; the same request gives
        the same bytes.

        Raises `ArtifactNotFound`, `WeightsDoNotFit`, `WeightsUnavailable`, `NetworksUnavailable` and `NoSpace`.
        """
        architecture, seed = request.architecture, request.seed
        with ExitStack() as stack:
            target = stack.enter_context(self.artifacts.files.scratch())
            source: dict[str, Any] = {}
            if request.file is not None:
                offered, trunk = self.artifacts.path(request.file, caller), self.artifacts.trunk(request.file)
                source = {"offered": offered, "trunk": trunk, "named": f"file {request.file[:8]}…"}
            elif request.weights is Weights.IMAGENET:
                url, folder = stack.enter_context(self.releases.downloaded(architecture))
                source = {"offered": folder, "named": "torchvision's ImageNet weights", "release": url}
            made = self.networks.make_initial(architecture, seed, target, **source, classes=request.classes)
            artifact = self.artifacts.keep(target, made, self.address)
        if request.adapter is not None:
            made, artifact = self._make_adapter(request, request.adapter, artifact.digest)
        return InitialModel(
            digest=artifact.digest,
            architecture=architecture,
            origin=made.origin,
            loaded_tensors=made.loaded,
            fresh_tensors=made.fresh,
            adapter=artifact.adapter,
            trunk=artifact.trunk,
        )

    def _make_adapter(self, request: InitialModelRequest, kind: str, trunk: str) -> tuple[InitialWeights, Artifact]:
        with self.artifacts.files.scratch() as target:
            made = self.networks.make_adapter(
                request.architecture,
                request.seed,
                target,
                trunk=self.artifacts.file(trunk),
                digest=trunk,
                kind=kind,
                classes=request.classes,
            )
            return made, self.artifacts.keep(target, made, self.address, Adapter(trunk, kind))

    def register(self, request: ModelRegistration, caller: Principal) -> ModelVersion:
        """Register what a job published, with its lineage from the ledger. Repeating it changes nothing.

        Raises `NotPublished`, `ArtifactNotFound`, `WeightsDoNotFit`, `AlreadyRegistered`, `NetworksUnavailable` and
        `Unavailable`.
        """
        try:
            recorded = self.ledger.job(request.job)
        except Problem as problem:
            if problem.problem_status != 404:
                raise
            raise NotPublished("the ledger knows no such job") from problem
        line = lineage.of(recorded, request.digest)
        path = self.artifacts.path(request.digest, caller)
        classes = len(request.classification.classes)
        self.networks.check(request.architecture, path, self.artifacts.trunk(request.digest), classes)
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
        # A hospital that reports late changes how the outputs would be read; what was registered first stands.
        told = ModelRegistration.model_fields.keys() - {"use"}
        if any(getattr(standing, name) != getattr(request, name) for name in told):
            raise AlreadyRegistered(
                f"this job's model is registered as {standing.architecture} of {standing.image_size} pixels for "
                f"{standing.classification.name}"
            )
        return standing

    def made_of(self, digest: str) -> tuple[str, ...]:
        """The artifacts that a model is read from: its own, and an adapter's trunk."""
        artifact = self.artifacts.store.artifact(digest)
        return (digest,) if artifact is None or artifact.trunk is None else (digest, artifact.trunk)

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
    networks: NetworkProcess
    integrity: Integrity
    turns: anyio.CapacityLimiter
    """Bounds memory: a decoded picture is far larger than its file."""
    metrics: ModelMetrics = field(default_factory=ModelMetrics)
    places: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(PICTURES_AT_ONCE))

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one picture, from before it is read until it is answered. Raises `TooBusy`."""
        mine = object()
        try:
            self.places.acquire_on_behalf_of_nowait(mine)
        except anyio.WouldBlock as error:
            raise TooBusy(f"{PICTURES_AT_ONCE} pictures are being looked at; send this one again") from error
        try:
            yield
        finally:
            self.places.release_on_behalf_of(mine)

    async def predict(
        self, content: bytes, model: str | None, *, attention: bool = False, class_counts: tuple[int, ...] | None = None
    ) -> Prediction:
        """Classify a picture, with attention maps where they are asked for, and by how often each class comes where it
        is from, where that is given.

        Raises `NoModel`, `ClassCountsUnfit`, `ImageTooLarge`, `ImageUnreadable`, `NetworksUnavailable`;
        `ArtifactCorrupt` where the model's file has changed, and `ArtifactQuarantined` from then on.
        """
        began = time.perf_counter()
        try:
            prediction = await anyio.to_thread.run_sync(
                self._predict, content, model, attention, class_counts, limiter=self.turns
            )
        except Exception as error:
            self.metrics.predictions.labels(outcome_of(error)).inc()
            raise
        self.metrics.predictions.labels("ok").inc()
        self.metrics.prediction_seconds.observe(time.perf_counter() - began)
        return prediction

    def _predict(
        self, content: bytes, model: str | None, attention: bool, class_counts: tuple[int, ...] | None
    ) -> Prediction:
        began = time.perf_counter()
        version = self.models.version(model)
        use = reading.by_counts(version.use or AS_IT_IS, class_counts)
        try:
            seen = self.networks.predict(
                version.digest,
                self.models.artifacts.file(version.digest),
                version.architecture,
                version.image_size,
                content,
                attention=attention,
                trunk=self.models.artifacts.trunk(version.digest),
                classification=version.classification,
                use=use,
            )
        except ArtifactCorrupt:
            for digest in self.models.made_of(version.digest):
                self.integrity.inspect(digest, Found.ASKED)
            raise
        return Prediction(
            model=version.digest,
            job=version.job,
            probabilities=tuple(
                ClassProbability(code=each.code, name=each.name, probability=share)
                for each, share in zip(version.classification.classes, seen.shares, strict=True)
            ),
            attention=None if seen.maps is None else _rounded(seen.maps, version.classification),
            milliseconds=(time.perf_counter() - began) * 1000,
            critical=reading.critical(use, seen),
            unusual=reading.unusual(use, seen, version.classification),
        )


def _rounded(maps: list[list[list[float]]], classification: Classification) -> tuple[AttentionMap, ...]:
    return tuple(
        AttentionMap(code=code, grid=tuple(tuple(round(value, _DECIMALS) for value in row) for row in grid))
        for code, grid in zip(classification.codes, maps, strict=True)
    )


@asynccontextmanager
async def put_away(incoming: Incoming) -> AsyncIterator[Incoming]:
    """`incoming` as a context; leaving it may wait for the disk, and does so in another thread."""
    try:
        yield incoming
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(incoming.close)
