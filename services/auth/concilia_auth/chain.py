"""What this service asks the chain service: which roles an address holds, whether a contract wallet signed, and which
chain it is.

Constructing anything here opens no connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import httpx
from concilia_kit.http import call
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.wire.base import Wire
from concilia_kit.wire.chain import ContractInfo, Member, SignatureCheck, SignatureVerdict
from pydantic import ValidationError

from concilia_auth.errors import ChainUnavailable

_Model = TypeVar("_Model", bound=Wire)
_PATIENCE = 3.0  # seconds of retries, and of waiting for one answer: a person waits for it
_WALLET_SECONDS = 12.0  # more than the chain service gives a wallet's own code


class Roles(Protocol):
    """Who may do what, as of now."""

    def of(self, address: str) -> frozenset[Role]:
        """The roles an address (EIP-55) holds; empty for a stranger. Raises `ChainUnavailable`."""
        ...


class ChainRoles:
    """Roles as the contract has them, asked anew every time."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def of(self, address: str) -> frozenset[Role]:
        """The roles an address holds on the contract."""
        member = _ask(self._http, "GET", f"/v1/members/{address}", Member)
        if member.address != address:
            raise ChainUnavailable("the chain service answered for another address")
        return frozenset(member.roles)


class Wallets(Protocol):
    """Which signatures contract wallets accept."""

    def accept(self, address: str, digest: bytes, signature: str) -> bool:
        """Whether an address is, or is to be, a wallet that accepts a signature of 32 bytes; false for all others.

        Source: ERC-1271, ERC-6492. Raises `ChainUnavailable`.
        """
        ...


class ChainWallets:
    """Wallets as they stand on the chain. `token` makes the access token of this service itself."""

    def __init__(self, http: httpx.Client, token: Callable[[], str]) -> None:
        self._http = http
        self._token = token

    def accept(self, address: str, digest: bytes, signature: str) -> bool:
        """Whether an address is, or is to be, a wallet that accepts a signature of 32 bytes."""
        check = SignatureCheck(address=address, digest=digest.hex(), signature=signature)
        headers = {"Authorization": f"Bearer {self._token()}"}
        return _ask(
            self._http, "POST", "/v1/signatures", SignatureVerdict, _WALLET_SECONDS, check, headers=headers
        ).valid


class ChainId:
    """The EIP-155 chain id: as configured, or (0) as the chain service says when first asked."""

    def __init__(self, http: httpx.Client, configured: int = 0) -> None:
        self._http = http
        self._value = configured

    def __call__(self) -> int:
        """The chain id. Raises `ChainUnavailable`."""
        if self._value == 0:
            self._value = _ask(self._http, "GET", "/v1/contract", ContractInfo).chain_id
        return self._value


def answer(http: httpx.Client) -> None:
    """A readiness check. Raises `Problem`."""
    call(http, "GET", "/healthz", retry_seconds=0, timeout=_PATIENCE)


def _ask(
    http: httpx.Client,
    method: str,
    path: str,
    model: type[_Model],
    seconds: float = _PATIENCE,
    body: Wire | None = None,
    headers: dict[str, str] | None = None,
) -> _Model:
    asked = None if body is None else body.model_dump(mode="json")
    try:
        response = call(http, method, path, retry_seconds=_PATIENCE, timeout=seconds, json=asked, headers=headers)
        return model.model_validate_json(response.content)
    except (Problem, ValidationError) as error:
        # Whatever it is, the caller of this service did not cause it and cannot mend it.
        detail = error.detail if isinstance(error, Problem) else "its answer is not as agreed"
        raise ChainUnavailable(f"the chain service does not tell: {detail}") from error
