"""What the auth service alone asks over HTTP: whether somebody signed, contract wallets included."""

from __future__ import annotations

from typing import Annotated

from concilia_kit import web
from concilia_kit.problems import Forbidden
from concilia_kit.tokens import ISSUER, Principal
from concilia_kit.wire.chain import SignatureCheck, SignatureVerdict
from fastapi import APIRouter, Depends, Request

from concilia_chain.signatures import Signatures


async def _signatures(request: Request) -> Signatures:
    signatures: Signatures = request.app.state.signatures
    return signatures


async def _auth_itself(caller: Annotated[Principal, Depends(web.principal)]) -> Principal:
    """Tokens name an address as their subject, except those that the auth service makes for itself."""
    if caller.address != ISSUER:
        raise Forbidden("only the auth service asks for this")
    return caller


router = APIRouter(tags=["node"])


@router.post("/signatures", dependencies=[Depends(_auth_itself)])
def check_signature(check: SignatureCheck, signatures: Annotated[Signatures, Depends(_signatures)]) -> SignatureVerdict:
    """Whether an address signed 32 bytes: with its own key, or as a contract wallet (ERC-1271, ERC-6492)."""
    return SignatureVerdict(valid=signatures.is_valid(check))
