"""One class for the one contract: typed reads, calls ready to be sent, logs and refusals decoded."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from concilia_kit.roles import Role
from concilia_kit.signing import NAME, VERSION, Domain, Update
from concilia_kit.wire.chain import (
    EventName,
    InclusionProof,
    Member,
    Publication,
    Rejection,
    RoundClosure,
    RoundOpening,
    RoundStatus,
    SignedRoleChange,
    UpdateSubmission,
)
from eth_abi.abi import encode
from eth_utils.address import to_checksum_address
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import BlockNotFound, ContractLogicError, TransactionNotFound, Web3Exception, Web3RPCError

from concilia_chain import membership
from concilia_chain.calls import Call, Effect
from concilia_chain.errors import ChainUnavailable, Refused
from concilia_chain.events import Event, EventReader, RawLog, SignedChange
from concilia_chain.refusals import RefusalReader

_IS_VALID_SIGNATURE = bytes.fromhex("1626ba7e")
_STATUS = (None, RoundStatus.OPEN, RoundStatus.CLOSED, RoundStatus.ABORTED)


class Block(NamedTuple):
    """A block's place in the chain; hashes as 0x-prefixed hexadecimal, `timestamp` in Unix seconds."""

    number: int
    hash: str
    parent: str
    timestamp: int
    empty: bool


class StoredRound(NamedTuple):
    """A round as the contract stores it."""

    base: str
    deadline: int
    quorum: int
    submitted: int
    rejected: int
    status: RoundStatus | None


class StoredJob(NamedTuple):
    """A job as the contract stores it; `round` is 0 where it does not exist."""

    head: str
    round: int
    published: bool


class LedgerContract:
    """The ledger at one address. Every method asks the node; all raise `ChainUnavailable` where it does not answer."""

    def __init__(self, client: Web3, address: str, abi: Sequence[Mapping[str, Any]], caller: str) -> None:
        self.address = str(to_checksum_address(address))
        self._client = client
        self._contract = client.eth.contract(address=to_checksum_address(address), abi=abi)
        self._caller = caller
        self._events = EventReader(abi)
        self._refusals = RefusalReader(abi)

    # reads

    def code_exists(self, block: int | None = None) -> bool:
        """Whether a contract lives at the address now, or lived there at a block."""
        with answered():
            return bool(self._client.eth.get_code(self._contract.address, "latest" if block is None else block))

    def domain_fits(self) -> bool:
        """Whether the contract is a Concilia ledger by its EIP-712 domain (ERC-5267)."""
        try:
            _fields, name, version, _chain, contract, *_ = self._view("eip712Domain")
        except (ChainUnavailable, Refused):
            return False
        return bool(name == NAME and version == VERSION and contract == self.address)

    def has_role(self, role: Role, address: str) -> bool:
        """Whether an address holds a role now."""
        return bool(self._view("hasRole", role.identifier, address))

    def member(self, address: str) -> Member:
        """An address with the roles it holds now."""
        return Member(
            address=address,
            roles=tuple(role for role in Role if self.has_role(role, address)),
            hospital_number=self._view("hospitalNumber", address),
            nonce=self._view("nonces", address),
        )

    def job_of(self, job: str) -> StoredJob:
        """A job as stored."""
        head, last, published = self._view("jobOf", bytes.fromhex(job))
        return StoredJob(head.hex(), last, published)

    def root_of(self, job: str, number: int) -> str | None:
        """The root of a round's committed updates; None before the commitment, and in a round that has none."""
        root, _count, _merkle = self._view("commitmentOf", bytes.fromhex(job), number)
        return str(root.hex()) if any(root) else None

    def wallet_accepts(self, account: str, digest: bytes, signature: str) -> bool:
        """Whether a contract wallet accepts a signature of 32 bytes now; false for an account. Source: ERC-1271."""
        wallet = to_checksum_address(account)
        with answered():
            if not self._client.eth.get_code(wallet):
                return False
        asked = _IS_VALID_SIGNATURE + encode(["bytes32", "bytes"], [digest, bytes.fromhex(signature[2:])])
        try:
            with answered():
                said = self._client.eth.call({"to": wallet, "data": HexBytes(asked)})
        except ContractLogicError:
            return False
        return bytes(said) == _IS_VALID_SIGNATURE.ljust(32, b"\0")

    def round_of(self, job: str, number: int) -> StoredRound:
        """A round as stored; `status` is None where it was never opened."""
        base, deadline, quorum, submitted, rejected, status = self._view("roundOf", bytes.fromhex(job), number)
        return StoredRound(base.hex(), deadline, quorum, submitted, rejected, _STATUS[status])

    # calls to send

    def open_round(self, order: RoundOpening) -> Call:
        """`openRound`, or `openMerkleRound`."""
        arguments = (bytes.fromhex(order.base), order.deadline, order.quorum)
        effect = Effect(
            EventName.ROUND_OPENED, {"base": order.base, "deadline": order.deadline, "quorum": order.quorum}
        )
        function = "openMerkleRound" if order.merkle else "openRound"
        return self._round_call(function, order.job, order.round, *arguments, effect=effect)

    def reject_update(self, job: str, number: int, order: Rejection) -> Call:
        """`rejectUpdate`."""
        arguments = (order.hospital, int(order.reason))
        return self._round_call(
            "rejectUpdate", job, number, *arguments, hospital=order.hospital, effect=_rejected(order)
        )

    def commit_updates(self, job: str, number: int, base: str, root: str, count: int) -> Call:
        """`commitUpdates`."""
        effect = Effect(EventName.UPDATES_COMMITTED, {"root": root, "count": count})
        arguments = (bytes.fromhex(base), bytes.fromhex(root), count)
        return self._round_call("commitUpdates", job, number, *arguments, effect=effect)

    def reject_committed(self, committed: InclusionProof, order: Rejection) -> Call:
        """`rejectCommitted`."""
        update = committed.update
        arguments = (
            _signed_update(update, committed.signature),
            committed.index,
            [bytes.fromhex(each) for each in committed.path],
            int(order.reason),
        )
        return self._round_call(
            "rejectCommitted",
            update.job,
            update.round,
            *arguments,
            hospital=order.hospital,
            effect=_rejected(order),
        )

    def close_round(self, job: str, number: int, order: RoundClosure) -> Call:
        """`closeRound`."""
        digests = (bytes.fromhex(order.global_digest), bytes.fromhex(order.contributions))
        effect = Effect(
            EventName.ROUND_CLOSED,
            {"globalDigest": order.global_digest, "contributions": order.contributions, "count": order.count},
        )
        return self._round_call("closeRound", job, number, *digests, order.count, effect=effect)

    def abort_round(self, job: str, number: int) -> Call:
        """`abortRound`."""
        return self._round_call("abortRound", job, number, effect=Effect(EventName.ROUND_ABORTED, {}))

    def publish_model(self, order: Publication) -> Call:
        """`publishModel`."""
        arguments = [bytes.fromhex(order.job), bytes.fromhex(order.digest)]
        effect = Effect(EventName.MODEL_PUBLISHED, {"digest": order.digest})
        return self._call("publishModel", arguments, job=order.job, effect=effect)

    def submit_updates(self, first: UpdateSubmission, *others: UpdateSubmission) -> Call:
        """`submitUpdates` with one batch; job, round and base are those of the first, and must be those of all."""
        update = first.update
        batch = [_signed_update(each.update, each.signature) for each in (first, *others)]
        alone: dict[str, Any] = {}
        if not others:
            effect = Effect(EventName.UPDATE_RECORDED, {"hospital": update.hospital, "digest": update.digest})
            alone = {"hospital": update.hospital, "effect": effect}
        return self._round_call("submitUpdates", update.job, update.round, bytes.fromhex(update.base), batch, **alone)

    def change_role(self, order: SignedRoleChange) -> Call:
        """`changeRole`."""
        change = order.change
        members = (change.role.identifier, change.account, change.granted, change.nonce, change.deadline)
        return self._call("changeRole", [members, order.admin, bytes.fromhex(order.signature[2:])])

    # what happened

    def head(self) -> int:
        """Number of the newest block."""
        with answered():
            return int(self._client.eth.block_number)

    def block(self, number: int) -> Block | None:
        """A block by its number; None where the chain does not reach so far."""
        try:
            with answered():
                found = self._client.eth.get_block(number)
        except BlockNotFound:
            return None
        return Block(
            number=int(found["number"]),
            hash=_hex(found["hash"]),
            parent=_hex(found["parentHash"]),
            timestamp=int(found["timestamp"]),
            empty=not found["transactions"],
        )

    def events_in(self, block: Block) -> list[Event] | None:
        """The contract's events of one block, in order; None where the chain has meanwhile another block there."""
        if block.empty:
            return []
        with answered():
            logs = self._client.eth.get_logs(
                {"address": self._contract.address, "fromBlock": block.number, "toBlock": block.number}
            )
        raw = [
            RawLog(
                topics=[bytes(topic) for topic in log["topics"]],
                data=bytes(log["data"]),
                block=int(log["blockNumber"]),
                block_hash=_hex(log["blockHash"]),
                log_index=int(log["logIndex"]),
                transaction=_hex(log["transactionHash"]),
                timestamp=block.timestamp,
            )
            for log in sorted(logs, key=lambda log: log["logIndex"])
        ]
        if any(log.block_hash != block.hash for log in raw):
            return None
        return self._with_calldata([event for log in raw if (event := self._events.event(log)) is not None])

    def _with_calldata(self, events: list[Event]) -> list[Event]:
        """Add what only calldata carries: the signatures of updates, the signers of role changes."""
        told: list[Event] = []
        for transaction, group in itertools.groupby(events, key=lambda event: event.transaction):
            of_one = list(group)
            if any(event.name in (EventName.UPDATE_RECORDED, *membership.ROLE_EVENTS) for event in of_one):
                try:
                    with answered():
                        found = self._client.eth.get_transaction(HexBytes(transaction))
                except TransactionNotFound as error:  # the chain was reorganised since it showed the logs
                    raise ChainUnavailable("the node lost a transaction whose logs it showed") from error
                calldata = bytes(found["input"])
                of_one = self._with_signatures(of_one, calldata)
                of_one = membership.signed(of_one, self._role_changes(found.get("to"), calldata))
            told += of_one
        return told

    def _with_signatures(self, events: list[Event], calldata: bytes) -> list[Event]:
        signatures = {(item.hospital, item.digest): item.signature for item in self._events.submissions(calldata)}
        return [
            replace(event, signature=signatures.get((str(event.account), str(event.arguments.get("digest")))))
            for event in events
        ]

    def _role_changes(self, to: str | None, calldata: bytes) -> list[SignedChange]:
        """The role changes that a transaction carried out, as far as its calldata tells."""
        changes = self._events.role_changes(calldata)
        if to == self.address and self._events.is_role_change(calldata):
            return changes[:1]  # the contract itself verified it, a contract wallet's too
        with answered():
            domain = Domain(chain_id=self._client.eth.chain_id, contract=self.address)
        return [change for change in changes if membership.genuine(change, domain)]

    # internal

    def _view(self, function: str, *arguments: Any) -> Any:
        try:
            with answered():
                return self._contract.get_function_by_name(function)(*arguments).call(
                    {"from": to_checksum_address(self._caller)}
                )
        except ContractLogicError as error:
            raise Refused(self._refusals.read_error(error.data)) from error

    def _round_call(self, function: str, job: str, number: int, *arguments: Any, **remembered: Any) -> Call:
        return self._call(function, [bytes.fromhex(job), number, *arguments], job=job, round=number, **remembered)

    def _call(self, function: str, arguments: list[Any], **remembered: Any) -> Call:
        data = self._contract.encode_abi(function, arguments)
        return Call(to=self.address, data=str(data), function=function, **remembered)


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Turn every failure of a node into `ChainUnavailable`, except what is an answer: a revert, or "not found"."""
    try:
        yield
    except (ContractLogicError, TransactionNotFound, BlockNotFound):
        raise
    except Web3RPCError as error:
        said = (error.rpc_response or {}).get("error", "")
        message = said.get("message") if isinstance(said, dict) else said
        raise ChainUnavailable(f"the node answers with an error: {str(message)[:200]}") from error
    except Web3Exception as error:
        raise ChainUnavailable(f"the node's answer makes no sense ({type(error).__name__})") from error


def _signed_update(update: Update, signature: str) -> tuple[str, bytes, int, bytes, bytes]:
    return (
        update.hospital,
        bytes.fromhex(update.digest),
        update.samples,
        bytes.fromhex(update.metrics),
        bytes.fromhex(signature[2:]),
    )


def _rejected(order: Rejection) -> Effect:
    return Effect(EventName.UPDATE_REJECTED, {"hospital": order.hospital, "reason": int(order.reason)})


def _hex(value: bytes) -> str:
    return "0x" + bytes(value).hex()
