"""The model service's REST interface: parse, call, return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from concilia_kit.describing import problems
from concilia_kit.digests import Digest
from concilia_kit.roles import Role
from concilia_kit.tokens import Principal
from concilia_kit.web import require
from concilia_kit.wire.models import (
    Artifact,
    ArtifactCheck,
    InitialModel,
    InitialModelRequest,
    ModelRegistration,
    ModelVersion,
    Prediction,
    StorageReport,
)
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from concilia_model import access, bodies, uploads_api
from concilia_model.errors import (
    AlreadyRegistered,
    ArchitectureUnavailable,
    ArtifactCorrupt,
    ArtifactMalformed,
    ArtifactNotFound,
    ArtifactQuarantined,
    ArtifactRemoved,
    ArtifactTooLarge,
    ClassCountsUnfit,
    DigestMismatch,
    ImageTooLarge,
    ImageUnreadable,
    NetworksUnavailable,
    NoModel,
    NoSpace,
    NotPublished,
    RangeNotSatisfiable,
    SealingKeyUnknown,
    UploadInterrupted,
    UploadStalled,
    WeightsDoNotFit,
    WeightsUnavailable,
)
from concilia_model.integrity import Integrity
from concilia_model.service import ArtifactService, ModelService, PredictionService
from concilia_model.storage import StorageService
from concilia_model.uploads import UploadService

router = APIRouter(prefix="/v1")
router.include_router(uploads_api.router)


@dataclass(frozen=True)
class Services:
    """What the handlers call; `app.state.services`."""

    artifacts: ArtifactService
    uploads: UploadService
    models: ModelService
    predictions: PredictionService
    integrity: Integrity
    storage: StorageService
    max_image_bytes: int
    max_artifact_bytes: int


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Using = Annotated[Services, Depends(_services)]
Uploader = Annotated[Principal, Depends(require(*access.UPLOADERS))]
Reader = Annotated[Principal, Depends(require(*access.READERS))]
Maker = Annotated[Principal, Depends(require(Role.ADMIN, Role.COORDINATOR))]
Coordinator = Annotated[Principal, Depends(require(Role.COORDINATOR))]

_ABSENT = (ArtifactNotFound, ArtifactQuarantined, ArtifactRemoved)
_BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_PICTURE: dict[str, Any] = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "format": "binary", "description": "JPEG or PNG"}},
        }
    }
}


@router.put(
    "/artifacts/{digest}",
    status_code=201,
    responses={
        200: {"model": Artifact, "description": "it was there already"},
        **problems(UploadInterrupted, UploadStalled, ArtifactTooLarge, DigestMismatch, ArtifactMalformed, NoSpace),
    },
    openapi_extra={"requestBody": {"description": "not read of what the caller brought before", "content": _BINARY}},
    tags=["artifacts"],
)
async def put_artifact(
    digest: Digest, request: Request, response: Response, using: Using, caller: Uploader
) -> Artifact:
    """Store a safetensors file under the SHA-256 of its bytes. Repeating it changes nothing."""
    body = bodies.upload(request)
    artifact, new = await using.artifacts.receive(digest, bodies.announced(request), body, caller)
    response.status_code = 201 if new else 200
    return artifact


@router.head("/artifacts/{digest}", response_class=Response, tags=["artifacts"])
@router.get(
    "/artifacts/{digest}",
    response_class=Response,
    responses={
        200: {"content": _BINARY},
        206: {"content": _BINARY, "description": "the range asked for"},
        304: {"description": "the caller has it, as its `If-None-Match` says"},
        404: {"description": "`artifact_not_found`, or `artifact_quarantined`: its file had changed, bring it again"},
        410: {
            "description": "`artifact_removed`: its file was deleted by policy, `removed_at`; `artifact` is its record"
        },
        **problems(RangeNotSatisfiable, SealingKeyUnknown),
    },
    tags=["artifacts"],
)
def get_artifact(digest: Digest, request: Request, using: Using, caller: Reader) -> Response:
    """An artifact's bytes; `Range` and `If-None-Match` are honoured."""
    using.artifacts.info(digest, caller)
    if bodies.is_held(request, digest):
        return Response(status_code=304, headers=bodies.validators(digest))
    return bodies.ArtifactResponse(digest, using.artifacts.files.open, using.artifacts.sent)


@router.get("/artifacts/{digest}/info", tags=["artifacts"], responses=problems(*_ABSENT))
def get_artifact_info(digest: Digest, using: Using, caller: Reader) -> Artifact:
    """An artifact's size, owner, number of tensors and origin."""
    return using.artifacts.info(digest, caller)


@router.post("/artifacts/{digest}/check", tags=["artifacts"], responses=problems(*_ABSENT, SealingKeyUnknown))
async def check_artifact(digest: Digest, using: Using, caller: Reader) -> ArtifactCheck:
    """Hash an artifact's file again, for whoever was given other bytes. One that has changed is put aside: this answer
    says so once, from then on the artifact is 404 `artifact_quarantined` until somebody brings it again."""
    await run_in_threadpool(using.artifacts.info, digest, caller)
    return await using.integrity.check(digest)


@router.get("/storage", dependencies=[Depends(require(*access.OVERSEERS))], tags=["storage"])
def get_storage(
    using: Using,
    keep_updates_days: Annotated[
        float | None, Query(gt=0, le=36500, description="what would be due if updates were kept for so many days")
    ] = None,
) -> StorageReport:
    """What is stored, by kind, and what the policy deletes next. Nothing is deleted by asking."""
    return using.storage.report(keep_updates_days)


@router.post(
    "/initial-models",
    status_code=201,
    tags=["models"],
    responses=problems(
        *_ABSENT, ArchitectureUnavailable, WeightsDoNotFit, WeightsUnavailable, NoSpace, SealingKeyUnknown
    ),
)
def make_initial_model(asked: InitialModelRequest, using: Using, caller: Maker) -> InitialModel:
    """Make initial weights; the same request gives the same bytes."""
    return using.models.make_initial(asked, caller)


@router.post(
    "/models",
    status_code=201,
    tags=["models"],
    responses=problems(
        *_ABSENT, NotPublished, AlreadyRegistered, ArchitectureUnavailable, WeightsDoNotFit, SealingKeyUnknown
    ),
)
def register_model(asked: ModelRegistration, using: Using, caller: Coordinator) -> ModelVersion:
    """Register the model that a job published on the ledger."""
    return using.models.register(asked, caller)


@router.get("/models", tags=["models"], dependencies=[Depends(require())])
def list_models(using: Using) -> tuple[ModelVersion, ...]:
    """Registered models, the newest first."""
    return using.models.versions()


@router.get("/models/{digest}", tags=["models"], dependencies=[Depends(require())], responses=problems(NoModel))
def get_model(digest: Digest, using: Using) -> ModelVersion:
    """One registered model with its lineage."""
    return using.models.version(digest)


@router.post(
    "/predictions",
    openapi_extra={"requestBody": {"required": True, "content": _PICTURE}},
    dependencies=[Depends(require(Role.CLINICIAN, Role.ADMIN, Role.AUDITOR, Role.HOSPITAL))],
    tags=["predictions"],
    responses=problems(
        NoModel,
        ArchitectureUnavailable,
        ArtifactRemoved,
        ImageTooLarge,
        ImageUnreadable,
        ClassCountsUnfit,
        ArtifactCorrupt,
        NetworksUnavailable,
        SealingKeyUnknown,
    ),
)
async def predict(
    request: Request,
    using: Using,
    model: Digest | None = None,
    attention: bool = False,
    class_counts: Annotated[
        str | None,
        Query(
            pattern=r"^\d{1,12}(,\d{1,12}){1,99}$",
            description="pictures of each class where this one is from, in the order of the model's classes: for a "
            "model that was evaluated by each hospital's own class shares",
        ),
    ] = None,
) -> Prediction:
    """Seven probabilities for a dermoscopic picture, by the newest model or the one named; where the network looked for
    each class, if asked."""
    counts = None if class_counts is None else tuple(map(int, class_counts.split(",")))
    with using.predictions.place():
        content = await bodies.picture(request, "image", using.max_image_bytes)
        return await using.predictions.predict(content, model, attention=attention, class_counts=counts)
