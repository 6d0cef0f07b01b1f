"""EIP-712 messages: hospitals' and administrators', which the contract verifies; the coordinator's, which hospitals do.

The type strings must equal the contract's; an end-to-end test signs here and submits there.
Source: EIP-712 (typed structured data), EIP-55 (address checksum).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

from eth_account import Account
from eth_account.messages import SignableMessage, encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_utils.address import is_address, to_checksum_address
from eth_utils.crypto import keccak
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from concilia_kit.digests import Digest, JobId
from concilia_kit.roles import Role
from concilia_kit.strict import Integer, Truth

NAME = "Concilia"
VERSION = "1"

_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
"""Half the order of secp256k1: no accepted signature has a higher s."""

_UPDATE = [
    {"name": "hospital", "type": "address"},
    {"name": "job", "type": "bytes32"},
    {"name": "round", "type": "uint32"},
    {"name": "base", "type": "bytes32"},
    {"name": "digest", "type": "bytes32"},
    {"name": "samples", "type": "uint64"},
    {"name": "metrics", "type": "bytes32"},
]
_UPDATE_HASH = keccak(text="Update(" + ",".join(f"{each['type']} {each['name']}" for each in _UPDATE) + ")")
_ANY_UPDATE = {
    "hospital": "0x" + "00" * 20,
    **dict.fromkeys(("job", "base", "digest", "metrics"), bytes(32)),
    **dict.fromkeys(("round", "samples"), 0),
}
_TASK = [
    {"name": "name", "type": "string"},
    {"name": "digest", "type": "bytes32"},
]
_STATEMENT = [
    {"name": "name", "type": "string"},
    {"name": "digest", "type": "bytes32"},
]
_ROLE_CHANGE = [
    {"name": "role", "type": "bytes32"},
    {"name": "account", "type": "address"},
    {"name": "granted", "type": "bool"},
    {"name": "nonce", "type": "uint256"},
    {"name": "deadline", "type": "uint256"},
]


@lru_cache(maxsize=16_384)  # a service meets the same addresses again and again, and a checksum is a hash
def _checksummed(value: str) -> str:
    if not value.startswith("0x") or not is_address(value):
        raise ValueError("not an Ethereum address")
    checksummed = str(to_checksum_address(value))
    if value not in (checksummed, value.lower()):  # is_address does not look at the checksum
        raise ValueError("an Ethereum address with a wrong EIP-55 checksum")
    return checksummed


ADDRESS_FORMAT = "ethereum-address"
"""What a description (OpenAPI) calls the form, whose checksum no pattern can tell."""

Address = Annotated[
    str,
    AfterValidator(_checksummed),
    WithJsonSchema({"type": "string", "format": ADDRESS_FORMAT, "pattern": "^0x[0-9a-fA-F]{40}$"}),
]
"""An Ethereum address; accepted in lower case or with a right checksum, kept with its EIP-55 checksum."""

Signature = Annotated[str, StringConstraints(pattern=r"^0x([0-9a-fA-F]{2}){1,1024}$", strict=True)]
"""A signature as 0x-prefixed hexadecimal: 65 bytes for an account, up to 1,024 for a contract wallet."""

AnySignature = Annotated[str, StringConstraints(pattern=r"^0x([0-9a-fA-F]{2})*$", max_length=2 + 2 * 8192, strict=True)]
"""A signature that is verified and kept by nobody, as 0x-prefixed hexadecimal of up to 8,192 bytes: also one that
carries what makes its wallet (ERC-6492), or the empty one of a wallet that keeps what it signed."""


class Domain(BaseModel):
    """Where a signature is valid: one contract on one chain (EIP-712 `eip712Domain`)."""

    model_config = ConfigDict(frozen=True)

    chain_id: int = Field(ge=1)
    contract: Address

    def typed(self) -> dict[str, Any]:
        """The domain as EIP-712 spells it."""
        return {
            "name": NAME,
            "version": VERSION,
            "chainId": self.chain_id,
            "verifyingContract": self.contract,
        }


class Update(BaseModel):
    """A hospital's statement about its update of one round; what it signs.

    `digest` is SHA-256 of the update file's exact bytes, `metrics` that of its metrics in canonical JSON.
    """

    model_config = ConfigDict(frozen=True)

    hospital: Address
    job: JobId
    round: Integer = Field(ge=1, lt=2**32)
    base: Digest
    digest: Digest
    samples: Integer = Field(ge=0, lt=2**64)
    metrics: Digest

    def signable(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message to sign or to recover from.

        All members are of one word each: `hashStruct` is the hash of the type's hash and these words. Put together
        here, since the general encoder takes ten times as long, which a service that checks every update would notice.
        """
        body = keccak(
            _UPDATE_HASH
            + bytes.fromhex(self.hospital[2:]).rjust(32, b"\0")
            + bytes.fromhex(self.job)
            + self.round.to_bytes(32, "big")
            + bytes.fromhex(self.base)
            + bytes.fromhex(self.digest)
            + self.samples.to_bytes(32, "big")
            + bytes.fromhex(self.metrics)
        )
        return SignableMessage(b"\x01", _separator(domain.chain_id, domain.contract), body)


@lru_cache(maxsize=64)
def _separator(chain_id: int, contract: str) -> bytes:
    """The domain separator, as the general encoder makes it: an update's header."""
    domain = Domain(chain_id=chain_id, contract=contract)
    return encode_typed_data(domain.typed(), {"Update": _UPDATE}, _ANY_UPDATE).header


class RoleChange(BaseModel):
    """An administrator's decision to grant or revoke a role; what they sign."""

    model_config = ConfigDict(frozen=True)

    role: Role
    account: Address
    granted: Truth
    nonce: Integer = Field(ge=0, lt=2**256)
    deadline: Integer = Field(ge=0, lt=2**256)

    def signable(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message to sign or to recover from."""
        message = {
            "role": self.role.identifier,
            "account": self.account,
            "granted": self.granted,
            "nonce": self.nonce,
            "deadline": self.deadline,
        }
        return encode_typed_data(domain.typed(), {"RoleChange": _ROLE_CHANGE}, message)


class TaskOrder(BaseModel):
    """A coordinator's word that it asks hospitals for a task; what it signs. The contract has no part in it.

    `name` is the task's, `digest` SHA-256 of its canonical JSON. One signature serves all hospitals that are asked.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(max_length=64)
    digest: Digest

    def signable(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message to sign or to recover from."""
        message = {"name": self.name, "digest": bytes.fromhex(self.digest)}
        return encode_typed_data(domain.typed(), {"Task": _TASK}, message)


class Statement(BaseModel):
    """A hospital's word on a document of a round's masking; what it signs. The contract has no part in it.

    `name` says what kind of document it is, `digest` is SHA-256 of its canonical JSON.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(max_length=64)
    digest: Digest

    def signable(self, domain: Domain) -> SignableMessage:
        """The EIP-712 message to sign or to recover from."""
        message = {"name": self.name, "digest": bytes.fromhex(self.digest)}
        return encode_typed_data(domain.typed(), {"Statement": _STATEMENT}, message)


Message = Update | RoleChange | TaskOrder | Statement


def signed_hash(message: Message, domain: Domain) -> bytes:
    """The 32 bytes that a signature is over: keccak-256 of 0x1901, domain separator and struct hash (EIP-712)."""
    signable = message.signable(domain)
    return keccak(b"\x19" + signable.version + signable.header + signable.body)


def sign(message: Message, domain: Domain, account: LocalAccount) -> str:
    """Sign a message for one contract on one chain; 65 bytes as 0x-prefixed hexadecimal."""
    return "0x" + account.sign_message(message.signable(domain)).signature.hex().removeprefix("0x")


def is_canonical(signature: str) -> bool:
    """Whether a signature is 65 bytes, s in the lower half, v 27 or 28: the one spelling that the contract takes.

    Source: EIP-2, and OpenZeppelin's ECDSA.
    """
    raw = bytes.fromhex(signature.removeprefix("0x"))
    return len(raw) == 65 and int.from_bytes(raw[32:64], "big") <= _HALF_ORDER and raw[64] in (27, 28)


def signer(message: Message, domain: Domain, signature: str) -> str:
    """The address that signed. Raises `ValueError` where no address can be recovered."""
    try:
        return str(Account.recover_message(message.signable(domain), signature=signature))
    except Exception as error:  # eth-keys raises its own family for malformed signatures
        raise ValueError("signature is malformed") from error
