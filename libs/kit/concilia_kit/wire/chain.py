"""The ledger as the chain service tells it, and what it takes to relay."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from concilia_kit.digests import Digest, JobId
from concilia_kit.roles import Role
from concilia_kit.signing import Address, AnySignature, RoleChange, Signature, Update
from concilia_kit.strict import NO_TEXT, Integer, IntegerOrNone, Truth
from concilia_kit.wire.base import Wire
from concilia_kit.wire.training import UpdateMetrics


class RoundStatus(StrEnum):
    """Where a round stands on the ledger."""

    OPEN = "open"
    CLOSED = "closed"
    ABORTED = "aborted"


class Finality(StrEnum):
    """How sure it is that something stays on the chain.

    `seen`: broadcast, and in no block yet. `confirmed`: in a block, which a reorganisation may still drop. `final`: so
    many blocks deep as `ContractInfo.confirmations` says, from which on nothing is expected to drop it.
    """

    SEEN = "seen"
    CONFIRMED = "confirmed"
    FINAL = "final"


class Reason(IntEnum):
    """Why a recorded update was left out; the contract's `Reason`, number by number."""

    ARTIFACT_MISSING = 1
    DIGEST_MISMATCH = 2
    MALFORMED_FILE = 3
    NAME_MISMATCH = 4
    SHAPE_MISMATCH = 5
    DTYPE_MISMATCH = 6
    NON_FINITE = 7
    NORM_TOO_LARGE = 8
    SAMPLE_COUNT = 9


class EventName(StrEnum):
    """The contract's events that concern jobs."""

    ROUND_OPENED = "RoundOpened"
    UPDATE_RECORDED = "UpdateRecorded"
    UPDATE_REJECTED = "UpdateRejected"
    ROUND_CLOSED = "RoundClosed"
    ROUND_ABORTED = "RoundAborted"
    MODEL_PUBLISHED = "ModelPublished"
    MERKLE_ROUND_OPENED = "MerkleRoundOpened"
    UPDATES_COMMITTED = "UpdatesCommitted"
    LEAF_REJECTED = "LeafRejected"
    UPDATE_PROVEN = "UpdateProven"
    UPDATE_DISPUTED = "UpdateDisputed"


class ContractInfo(Wire):
    """The ledger this deployment writes to; `chain_id` and `address` make the EIP-712 domain.

    `confirmations` is how many blocks on top of its own make a transaction final; 0 where blocks are never dropped.
    """

    chain_id: int
    address: Address
    deployment_block: int
    confirmations: int = 0


class Member(Wire):
    """An address and the roles it holds now. `nonce` is the next of its signed role changes."""

    address: Address
    roles: tuple[Role, ...]
    hospital_number: int
    nonce: int


class AccountRoles(Wire):
    """The roles that the ledger's events up to `block` leave an address with: granted for good, and not revoked since.

    A grant counts once it is final, a revocation at once.
    """

    address: Address
    roles: tuple[Role, ...]
    block: int


class Roll(Wire):
    """The roles of all who hold any, as `AccountRoles` tells them one by one; addresses with their EIP-55 checksum."""

    roles: dict[str, tuple[Role, ...]]


class Holders(Wire):
    """Who holds a role by the ledger's events, in ascending order of address; what counts is as in `AccountRoles`."""

    role: Role
    addresses: tuple[str, ...]
    block: int


class RoleRecord(Wire):
    """A role granted or taken, as the ledger recorded it.

    `admin` is who decided: the signer of the role change, or the account that sent the transaction itself. `at` is the
    block's time, None for events followed before times were kept.
    """

    role: Role
    account: Address
    granted: bool
    admin: Address
    block: int
    log_index: int
    transaction: str
    at: AwareDatetime | None


class SignedRoleChange(Wire):
    """An administrator's signed role change, to be relayed."""

    change: RoleChange
    admin: Address
    signature: Signature


class RoundOpening(Wire):
    """Open the next round of a job. With `merkle` its updates are collected, and committed under one root.

    `expected` says how many updates may come, so that nobody waits for another one after the last; it binds nobody.
    """

    job: JobId
    round: Integer = Field(ge=1, lt=2**32)
    base: Digest
    deadline: Integer = Field(ge=0, lt=2**64)
    quorum: Integer = Field(ge=1, lt=2**32)
    merkle: Truth = False
    expected: IntegerOrNone = Field(default=None, ge=1, lt=2**32)


class Rejection(Wire):
    """Leave a recorded update out."""

    hospital: Address
    reason: Annotated[Reason, NO_TEXT]


class RoundClosure(Wire):
    """Close a round on its new global model; `count` updates went into it."""

    global_digest: Digest
    contributions: Digest
    count: Integer = Field(ge=1, lt=2**32)


class Publication(Wire):
    """Publish a job's head, which ends the job."""

    job: JobId
    digest: Digest


class UpdateSubmission(Wire):
    """A hospital's signed update with the metrics whose digest it signed."""

    update: Update
    metrics: UpdateMetrics
    signature: Signature


class Receipt(Wire):
    """What was asked is on the chain. Times are the gateway's: asked, broadcast, confirmed.

    A transaction may carry what several asked, `orders` of them; `gas` is what it used in all.
    """

    transaction: str
    block: int
    gas: int
    received_at: AwareDatetime
    sent_at: AwareDatetime
    confirmed_at: AwareDatetime
    orders: int = 1
    finality: Finality = Finality.CONFIRMED

    @property
    def latency(self) -> float:
        """Seconds from the request to the confirmation."""
        return (self.confirmed_at - self.received_at).total_seconds()


class Acknowledgement(Wire):
    """A hospital's update was checked and collected, to be committed with the others of its Merkle round.

    `leaf` is its hash in the tree to come (RFC 9162), 64 hexadecimal characters.
    """

    job: JobId
    round: int
    hospital: Address
    leaf: Digest
    received_at: AwareDatetime


class Transaction(Receipt):
    """A receipt with what was asked; several may name the same transaction."""

    function: str
    job: JobId | None = None
    round: int | None = None
    hospital: Address | None = None


class LedgerUpdate(Wire):
    """An update as recorded; `reason` is set where it was rejected. `metrics` is None where the gateway lost them.

    In a Merkle round `index` is its leaf's, and `transaction` and `block` are the commitment's.
    """

    update: Update
    signature: Signature
    metrics: UpdateMetrics | None
    reason: Reason | None
    transaction: str
    block: int
    index: int | None = None
    finality: Finality = Finality.CONFIRMED


class LedgerRound(Wire):
    """A round as recorded. `submitted` and `rejected` are the contract's own counts.

    A `merkle` round has `collected` hospitals' updates until they are committed under `root`, from then on `updates`.
    """

    job: JobId
    round: int
    status: RoundStatus
    base: Digest
    deadline: int
    quorum: int
    submitted: int
    rejected: int
    global_digest: Digest | None
    contributions: Digest | None
    updates: tuple[LedgerUpdate, ...]
    merkle: bool = False
    collected: tuple[Address, ...] = ()
    root: Digest | None = None

    def accepted(self) -> tuple[LedgerUpdate, ...]:
        """The updates that count."""
        return tuple(item for item in self.updates if item.reason is None)


class RoundStanding(Wire):
    """How far a round is, without its updates: as small for ten thousand hospitals as for one.

    `updates` counts what was recorded or committed, before its commitment in a `merkle` round what was collected.
    """

    job: JobId
    round: int
    status: RoundStatus
    base: Digest
    deadline: int
    quorum: int
    updates: int
    rejected: int
    merkle: bool
    committed: bool


class Collected(Wire):
    """Updates of a Merkle round were collected: `updates` are there by now."""

    job: JobId
    round: int
    updates: int


class InclusionProof(Wire):
    """Shows that a signed update is under a Merkle round's commitment: RFC 9162, 2.1.3, with SHA-256.

    `path` leads from the leaf's sibling upwards. Whoever checks it recomputes the leaf from update and signature
    (`concilia_kit.merkle.update_data`), and takes root and count from the ledger's `UpdatesCommitted` in `transaction`.
    """

    update: Update
    signature: Signature
    index: int
    count: int
    leaf: Digest
    root: Digest
    path: tuple[Digest, ...]
    transaction: str
    block: int


class LedgerJob(Wire):
    """A job as recorded: its head, and its rounds in order."""

    job: JobId
    head: Digest
    published: bool
    rounds: tuple[LedgerRound, ...]


class LedgerEvent(Wire):
    """One event of a job in chain order; `arguments` as the contract names them, bytes32 as 64 hex characters."""

    name: EventName
    job: JobId
    round: int
    block: int
    log_index: int
    transaction: str
    arguments: dict[str, str | int]


class RecordedEvent(Wire):
    """Any event of the contract, membership included. `account` is the one it concerns, if there is one."""

    name: str
    job: JobId | None
    round: int | None
    account: Address | None
    block: int
    log_index: int
    transaction: str
    at: AwareDatetime | None
    arguments: dict[str, str | int]


class EventPage(Wire):
    """Events, the newest first, and what to ask for the ones before them: None where there are none."""

    events: tuple[RecordedEvent, ...]
    before: str | None


STREAM = "concilia:ledger"
"""The Redis stream on which the chain service puts every `LedgerEvent` as JSON under the field `event`."""

COLLECTED_STREAM = "concilia:collected"
"""The Redis stream on which it puts `Collected`, likewise: now and then while updates come, and once when they stop."""


class SignatureCheck(Wire):
    """Ask whether an address signed 32 bytes: with its own key, or as the contract wallet that it is or is to be."""

    address: Address
    digest: Digest
    signature: AnySignature


class SignatureVerdict(Wire):
    """Whether it did, as the chain stands now."""

    valid: bool
