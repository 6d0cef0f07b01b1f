"""Resumable uploads over REST, as the tus protocol has them: parse, call, return."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from concilia_kit.describing import Responses, problems
from concilia_kit.problems import Problem
from concilia_kit.tokens import Principal
from concilia_kit.web import require
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.routing import APIRoute

from concilia_model import access, bodies, tus
from concilia_model.errors import (
    ArtifactMalformed,
    ArtifactTooLarge,
    DigestMismatch,
    NoSpace,
    OffsetMismatch,
    TooManyUploads,
    TusVersionUnsupported,
    UploadInterrupted,
    UploadLocked,
    UploadMalformed,
    UploadNotFound,
    UploadStalled,
    UploadTakenOver,
    UploadTooLong,
    UploadTypeUnsupported,
)
from concilia_model.uploads import UploadService

_BYTES: dict[str, Any] = {tus.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_WHOLE: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}


def _header(name: str, schema: dict[str, Any], *, required: bool = True, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": required, "schema": schema, **more}


_SPOKEN = _header("Tus-Resumable", {"enum": [tus.VERSION]})
_AT = _header("Upload-Offset", _WHOLE)
_METADATA = _header(
    "Upload-Metadata",
    {"type": "string", "maxLength": tus.MAX_METADATA},
    description="pairs of a name and base64, with commas between; `digest` is the whole's SHA-256 in hexadecimal",
    example=f"digest {base64.b64encode(hashlib.sha256(b'').hexdigest().encode()).decode()}",
)
_OFFSET: dict[str, Any] = {"headers": {"Upload-Offset": {"schema": {"type": "integer"}}}}
_BEGINS = (UploadMalformed, TusVersionUnsupported, ArtifactTooLarge, TooManyUploads)
_APPENDS = (
    UploadMalformed,
    UploadInterrupted,
    UploadNotFound,
    UploadStalled,
    OffsetMismatch,
    UploadTakenOver,
    TusVersionUnsupported,
    UploadTooLong,
    UploadTypeUnsupported,
    DigestMismatch,
    ArtifactMalformed,
    UploadLocked,
    NoSpace,
)
_FOUND: Responses = problems(UploadNotFound, TusVersionUnsupported, UploadLocked)
_OVERRIDDEN = frozenset({"PATCH", "DELETE", "HEAD"})


class TusRoute(APIRoute):
    """Asks for the protocol's version, and says it with every answer, a problem included."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()

        async def speaking(request: Request) -> Response:
            try:
                answer = await handle(request)
            except Problem as problem:
                problem.headers = {**tus.RESUMABLE, **problem.headers}
                raise
            answer.headers.update(tus.RESUMABLE)
            return answer

        return speaking


def _uploads(request: Request) -> UploadService:
    uploads: UploadService = request.app.state.services.uploads
    return uploads


Uploads = Annotated[UploadService, Depends(_uploads)]
Allowed = Annotated[Principal, Depends(require(*access.UPLOADERS))]


def _uploader(request: Request, caller: Allowed) -> Principal:
    tus.speak(request.headers)
    return caller


Uploader = Annotated[Principal, Depends(_uploader)]
UploadId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]

router = APIRouter(prefix="/uploads", route_class=TusRoute, tags=["uploads"])


@router.options("", status_code=204, response_class=Response)
def upload_options(request: Request, _caller: Allowed) -> Response:
    """What is spoken of the tus protocol, and the largest upload accepted."""
    return Response(status_code=204, headers=tus.options(request.app.state.services.max_artifact_bytes))


@router.post(
    "",
    status_code=201,
    response_class=Response,
    responses={
        201: {**_OFFSET, "description": "begun, or found again; `Location` is relative to this address"},
        **problems(*_BEGINS, *_APPENDS),
    },
    openapi_extra={
        "parameters": [_SPOKEN, _header("Upload-Length", _WHOLE), _METADATA],
        "requestBody": {"content": _BYTES},
    },
)
async def create_upload(request: Request, uploads: Uploads, caller: Uploader) -> Response:
    """Begin an upload of the file whose SHA-256 `Upload-Metadata` has as `digest`, with its first bytes if they come
    along. One that the caller began before is found again, one of bytes it brought before is finished at once."""
    headers = request.headers
    brings_bytes = bool(tus.announced(headers)) or "transfer-encoding" in headers
    if brings_bytes:
        tus.check_type(headers)
    standing = await uploads.create(tus.creation(headers), caller)
    upload = standing.upload.id
    if brings_bytes and standing.offset == 0:
        standing = await uploads.append(upload, tus.Part(0, tus.announced(headers)), bodies.upload(request), caller)
    # Relative, because a proxy may show the service below another path.
    return Response(status_code=201, headers={"Location": f"uploads/{upload}", **standing.headers()})


@router.head(
    "/{upload}",
    response_class=Response,
    responses={200: _OFFSET, **_FOUND},
    openapi_extra={"parameters": [_SPOKEN]},
)
async def get_upload(upload: UploadId, uploads: Uploads, caller: Uploader) -> Response:
    """Where an upload of the caller stands."""
    return Response(status_code=200, headers=(await uploads.where(upload, caller)).headers())


@router.patch(
    "/{upload}",
    status_code=204,
    response_class=Response,
    responses={204: _OFFSET, **problems(*_APPENDS)},
    openapi_extra={"parameters": [_SPOKEN, _AT], "requestBody": {"required": True, "content": _BYTES}},
)
async def append_to_upload(upload: UploadId, request: Request, uploads: Uploads, caller: Uploader) -> Response:
    """Append bytes at `Upload-Offset`. The last one finishes the upload."""
    standing = await uploads.append(upload, tus.part(request.headers), bodies.upload(request), caller)
    return Response(status_code=204, headers=standing.headers())


@router.delete(
    "/{upload}",
    status_code=204,
    response_class=Response,
    responses=_FOUND,
    openapi_extra={"parameters": [_SPOKEN]},
)
async def end_upload(upload: UploadId, uploads: Uploads, caller: Uploader) -> Response:
    """Forget an upload."""
    await uploads.end(upload, caller)
    return Response(status_code=204)


@router.post(
    "/{upload}",
    status_code=204,
    response_class=Response,
    responses={200: _OFFSET, **problems(*_APPENDS)},
    openapi_extra={
        "parameters": [
            _SPOKEN,
            _header("X-HTTP-Method-Override", {"enum": sorted(_OVERRIDDEN)}),
            _header("Upload-Offset", _WHOLE, required=False),
        ],
        "requestBody": {"content": _BYTES},
    },
)
async def override_method(upload: UploadId, request: Request, uploads: Uploads, caller: Uploader) -> Response:
    """The other methods for senders behind a proxy that lets none but GET and POST pass: `X-HTTP-Method-Override`."""
    method = request.headers.get("x-http-method-override", "").upper()
    if method not in _OVERRIDDEN:
        raise UploadMalformed("'X-HTTP-Method-Override' must be PATCH, DELETE or HEAD")
    if method == "PATCH":
        return await append_to_upload(upload, request, uploads, caller)
    return await (end_upload if method == "DELETE" else get_upload)(upload, uploads, caller)
