"""The five roles of a consortium and their identifiers on the contract (OpenZeppelin AccessControl)."""

from __future__ import annotations

from enum import StrEnum

from eth_utils.crypto import keccak


class Role(StrEnum):
    """What an address may do. The contract decides who holds which."""

    ADMIN = "admin"
    COORDINATOR = "coordinator"
    HOSPITAL = "hospital"
    CLINICIAN = "clinician"
    AUDITOR = "auditor"

    @property
    def identifier(self) -> bytes:
        """The contract's `bytes32`: zero for ADMIN (AccessControl's default), else keccak-256 of the name."""
        return bytes(32) if self is Role.ADMIN else keccak(text=self.name)
