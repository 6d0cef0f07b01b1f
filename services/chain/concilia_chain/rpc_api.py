"""The narrow door to the node over HTTP: JSON-RPC 2.0, as wallets speak it."""

from __future__ import annotations

import json
from typing import Annotated, Any

from concilia_kit.bodies import BodyTooLarge
from fastapi import APIRouter, Depends, Request, Response

from concilia_chain import rpc
from concilia_chain.door import Door

router = APIRouter()


async def _door(request: Request) -> Door:
    door: Door = request.app.state.door
    return door


async def _small_body(request: Request) -> bytes:
    body = await request.body()
    if len(body) > rpc.MAX_BODY:
        raise BodyTooLarge(f"a body has at most {rpc.MAX_BODY} bytes here")
    return body


_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["jsonrpc", "method"],
    "properties": {
        "jsonrpc": {"const": "2.0"},
        "id": {"type": ["string", "number", "null"], "maxLength": rpc.MAX_ID, "description": "without: no answer"},
        "method": {"enum": list(rpc.METHODS)},
        "params": {"type": "array"},
    },
}


_ONE_ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["jsonrpc", "id"],
    "properties": {
        "jsonrpc": {"const": "2.0"},
        "id": {"type": ["string", "number", "null"]},
        "result": {},
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "integer"}, "message": {"type": "string"}, "data": {"type": "string"}},
        },
    },
    "oneOf": [{"required": ["result"]}, {"required": ["error"]}],
}
_ANSWER: dict[str, Any] = {"oneOf": [_ONE_ANSWER, {"type": "array", "minItems": 1, "items": _ONE_ANSWER}]}


@router.post(
    "/rpc",
    tags=["node"],
    response_class=Response,
    responses={
        200: {"content": {"application/json": {"schema": _ANSWER}}},
        204: {"description": "only notifications came"},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"oneOf": [_REQUEST, {"type": "array", "items": _REQUEST, "maxItems": rpc.MAX_BATCH}]}
                }
            },
        }
    },
)
def node_rpc(body: Annotated[bytes, Depends(_small_body)], door: Annotated[Door, Depends(_door)]) -> Response:
    """JSON-RPC 2.0 for wallets that are given this chain: a few reads of the node, and no way to send anything.

    Errors are JSON-RPC's own, with status 200.
    """
    answer = door.answer(body)
    if answer is None:
        return Response(status_code=204)
    return Response(json.dumps(answer), media_type="application/json")
