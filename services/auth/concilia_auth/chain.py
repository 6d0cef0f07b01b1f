"""What this service asks the chain service: which roles an address holds, and which chain it is.

Constructing anything here opens no connection.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import httpx
from concilia_kit.http import call
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.wire.base import Wire
from concilia_kit.wire.chain import ContractInfo, Member
from pydantic import ValidationError

from concilia_auth.errors import ChainUnavailable

_Model = TypeVar("_Model", bound=Wire)
_PATIENCE = 3.0  # seconds of retries, and of waiting for one answer: a person waits for it


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
        member = _get(self._http, f"/v1/members/{address}", Member)
        if member.address != address:
            raise ChainUnavailable("the chain service answered for another address")
        return frozenset(member.roles)


class ChainId:
    """The EIP-155 chain id: as configured, or (0) as the chain service says when first asked."""

    def __init__(self, http: httpx.Client, configured: int = 0) -> None:
        self._http = http
        self._value = configured

    def __call__(self) -> int:
        """The chain id. Raises `ChainUnavailable`."""
        if self._value == 0:
            self._value = _get(self._http, "/v1/contract", ContractInfo).chain_id
        return self._value


def answer(http: httpx.Client) -> None:
    """A readiness check. Raises `Problem`."""
    call(http, "GET", "/healthz", retry_seconds=0, timeout=_PATIENCE)


def _get(http: httpx.Client, path: str, model: type[_Model]) -> _Model:
    try:
        response = call(http, "GET", path, retry_seconds=_PATIENCE, timeout=_PATIENCE)
        return model.model_validate_json(response.content)
    except (Problem, ValidationError) as error:
        # Whatever it is, the caller of this service did not cause it and cannot mend it.
        detail = error.detail if isinstance(error, Problem) else "its answer is not as agreed"
        raise ChainUnavailable(f"the chain service does not tell: {detail}") from error
