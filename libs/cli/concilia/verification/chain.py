"""A job's evidence, read from a node: no Concilia service is asked.

From the block in which the contract was deployed (or one that is given) to the job's end, range by range. What is kept
is what the job and its hospitals' roles need; for a bundle, all events of the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from concilia_aggregator.verification.roles import ROLE_EVENTS
from concilia_kit import signing
from concilia_kit.roles import Role
from concilia_kit.wire.chain import EventName
from eth_abi.abi import encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from concilia.connection import UsageError
from concilia.verification import decoding
from concilia.verification.blocks import Blocks, encode_header, encode_receipt, may_hold, receipts_root
from concilia.verification.decoding import ChainEvent
from concilia.verification.evidence import Evidence, SignedUpdate
from concilia.verification.node import Node, NodeProblem, NodeRefusal

MOST_HEADERS = 20_000
"""Blocks from the contract's first event to the job's end up to which a bundle holds every header; of more, only those
of blocks with events."""

_IS_VALID = keccak(text="isValidSignature(bytes32,bytes)")[:4]

Progress = Callable[[float, str], None]


def read(
    node: Node, job: str, contract: str | None, from_block: int | None, progress: Progress, *, everything: bool = False
) -> Evidence:
    """What the chain holds of a job. Raises `NodeProblem`, and `UsageError` where it holds no such contract or job."""
    chain, head = node.chain_id(), node.head()
    before = node.block(head)["hash"]
    address = _find(node, job, head, from_block, progress) if contract is None else str(to_checksum_address(contract))
    if not node.code_exists(address):
        raise UsageError(f"there is no contract at {address} on chain {chain}")
    first = _deployed(node, address, head) if from_block is None else from_block
    events, over = [], False
    for end, logs in node.logs(first, head, (), address):
        for event in _events(logs):
            is_of_job = event.arguments.get("job") == job
            over = over or (is_of_job and event.name == EventName.MODEL_PUBLISHED)
            if everything or is_of_job or event.name in ROLE_EVENTS:
                events.append(event)
        progress((end - first + 1) / (head - first + 1), f"block {end} of {head}")
        if over:
            break
    last = max((event.block for event in events if event.arguments.get("job") == job), default=None)
    if last is None:
        raise UsageError(f"the contract {address} on chain {chain} has no job {job}")
    events = [event for event in events if event.block <= last]
    domain = signing.Domain(chain_id=chain, contract=address)
    calldata, updates = _submitted(node, domain, job, events, progress)
    if node.block(head)["hash"] != before:
        raise NodeProblem("the chain was reorganised while it was read; run this again")
    return Evidence(
        origin="node", domain=domain, job=job, events=tuple(events), updates=tuple(updates), calldata=calldata
    )


def about(
    node: Node, job: str, hospital: str, contract: str | None, from_block: int | None, progress: Progress
) -> tuple[signing.Domain, list[ChainEvent]]:
    """A job's events and those of a hospital's role, and nothing else: logs by topic, which nodes find fast.

    Raises `NodeProblem`, and `UsageError` where the chain holds no such contract or job.
    """
    chain, head = node.chain_id(), node.head()
    address = _find(node, job, head, from_block, progress) if contract is None else str(to_checksum_address(contract))
    if not node.code_exists(address):
        raise UsageError(f"there is no contract at {address} on chain {chain}")
    first = _deployed(node, address, head) if from_block is None else from_block
    account = "0x" + bytes.fromhex(hospital[2:]).rjust(32, b"\0").hex()
    events: list[ChainEvent] = []
    for topics in ((None, "0x" + job), (None, "0x" + Role.HOSPITAL.identifier.hex(), account)):
        for end, logs in node.logs(first, head, topics, address):
            events += _events(logs)
            progress((end - first + 1) / (head - first + 1), f"block {end} of {head}")
    if not any(event.arguments.get("job") == job for event in events):
        raise UsageError(f"the contract {address} on chain {chain} has no job {job}")
    return signing.Domain(chain_id=chain, contract=address), events


def with_wallets(node: Node, evidence: Evidence, progress: Progress) -> Evidence:
    """The evidence, and of each leaf that no account signed whether its contract wallet did, at the commitment's block.

    What the leaves themselves say about that is forgotten: the node is asked.
    """
    commitments, leaves = evidence.commitments(), evidence.leaves or ()
    asked = []
    for index, leaf in enumerate(leaves):
        event = commitments.get(leaf.update.round)
        wallet = (
            event is not None
            and _signer(leaf.update, evidence.domain, leaf.signature) != leaf.update.hospital
            and wallet_accepts(node, evidence.domain, leaf.update, leaf.signature, event.block)
        )
        asked.append(leaf.model_copy(update={"wallet": wallet}))
        progress(index / len(leaves), f"signature of {index + 1} of {len(leaves)} leaves")
    return evidence.model_copy(update={"leaves": tuple(asked)})


def with_blocks(node: Node, evidence: Evidence, progress: Progress) -> tuple[Evidence, str | None]:
    """The evidence with headers and receipts; without, and why, where the node's headers are not its blocks'."""
    holding = {event.block for event in evidence.events}
    first, last = min(holding), max(holding)
    wanted: Iterable[int] = range(first, last + 1) if last - first < MOST_HEADERS else sorted(holding)
    headers, receipts = [], {}
    for number in wanted:
        block = node.block(number)
        progress((number - first) / (last - first + 1), f"header of block {number}")
        try:
            header = encode_header(block)
            headers.append(header.hex())
            # a bloom may say so by chance: the receipts then show that it does not
            if number in holding or may_hold(header, evidence.domain.contract):
                raw = [encode_receipt(each) for each in node.receipts(block)]
                if receipts_root(raw).hex() != str(block["receiptsRoot"]).removeprefix("0x"):
                    raise ValueError(f"the receipts of block {number} do not hash to its header's receiptsRoot")
                receipts[number] = tuple(each.hex() for each in raw)
        except (KeyError, TypeError, ValueError) as error:
            return evidence, str(error)
    return evidence.model_copy(update={"blocks": Blocks(headers=tuple(headers), receipts=receipts)}), None


def _find(node: Node, job: str, head: int, from_block: int | None, progress: Progress) -> str:
    """The one contract that ever opened a round of the job."""
    topics = ["0x" + decoding.topic(EventName.ROUND_OPENED).hex(), "0x" + job]
    found = set()
    for end, logs in node.logs(from_block or 0, head, topics, None):
        found |= {str(to_checksum_address(log["address"])) for log in logs}
        progress(end / (head + 1), f"looking for the job's contract, block {end} of {head}")
    if not found:
        raise UsageError(f"no contract on this chain has a job {job}")
    if len(found) > 1:
        raise UsageError(f"several contracts have this job; name one with --contract: {', '.join(sorted(found))}")
    return found.pop()


def _deployed(node: Node, address: str, head: int) -> int:
    """The first block with the contract's code, by bisection; 0 where the node keeps no old states."""
    low, high = 0, head
    while low < high:
        middle = (low + high) // 2
        try:
            there = node.code_exists(address, middle)
        except NodeRefusal:
            return 0
        low, high = (low, middle) if there else (middle + 1, high)
    return low


def _events(logs: Iterable[dict[str, Any]]) -> Iterator[ChainEvent]:
    for log in logs:
        try:
            topics = [bytes.fromhex(topic.removeprefix("0x")) for topic in log["topics"]]
            found = decoding.event(topics, bytes.fromhex(log["data"].removeprefix("0x")))
            if found is not None:
                yield ChainEvent(
                    name=found[0],
                    block=int(log["blockNumber"], 16),
                    log_index=int(log["logIndex"], 16),
                    transaction=log["transactionHash"],
                    arguments=found[1],
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NodeProblem("the node shows a log that makes no sense") from error


def _submitted(
    node: Node, domain: signing.Domain, job: str, events: list[ChainEvent], progress: Progress
) -> tuple[dict[str, str], list[SignedUpdate]]:
    """Calldata by transaction, and each recorded update's signature from it."""
    recorded = [e for e in events if e.name == EventName.UPDATE_RECORDED and e.arguments["job"] == job]
    opened = decoding.bases(event for event in events if event.arguments.get("job") == job)
    calldata: dict[str, str] = {}
    made: dict[str, list[decoding.Submission]] = {}
    updates: list[SignedUpdate] = []
    for index, event in enumerate(recorded):
        if event.transaction not in calldata:
            calldata[event.transaction] = node.calldata(event.transaction)
            raw = bytes.fromhex(calldata[event.transaction].removeprefix("0x"))
            made = {event.transaction: list(decoding.submissions(raw))}
        update = decoding.update_of(event, opened)
        candidates = [
            item.signature
            for item in made[event.transaction]
            if item.hospital == update.hospital
            and update == signing.Update(**{name: getattr(item, name) for name in signing.Update.model_fields})
        ]
        updates += _signature(node, domain, update, candidates, event.block)
        progress(index / len(recorded), f"calldata of {index + 1} of {len(recorded)} updates")
    return calldata, updates


def _signature(
    node: Node, domain: signing.Domain, update: signing.Update, candidates: list[str], block: int
) -> Iterator[SignedUpdate]:
    """The signature that calldata carries beside this very update; of several the hospital's own."""
    for signature in candidates:
        if _signer(update, domain, signature) == update.hospital:
            yield SignedUpdate(round=update.round, hospital=update.hospital, signature=signature)
            return
    if candidates:
        wallet = any(wallet_accepts(node, domain, update, signature, block) for signature in candidates)
        yield SignedUpdate(round=update.round, hospital=update.hospital, signature=candidates[0], wallet=wallet)


def _signer(update: signing.Update, domain: signing.Domain, signature: str) -> str | None:
    try:
        return signing.signer(update, domain, signature)
    except ValueError:
        return None


def wallet_accepts(node: Node, domain: signing.Domain, update: signing.Update, signature: str, block: int) -> bool:
    """Ask a contract wallet (ERC-1271) as it was at a block."""
    if not node.code_exists(update.hospital, block):
        return False
    hash_ = signing.signed_hash(update, domain)
    data = _IS_VALID + encode(["bytes32", "bytes"], [hash_, bytes.fromhex(signature.removeprefix("0x"))])
    try:
        answer = node.view(update.hospital, "0x" + data.hex(), block)
    except NodeRefusal:
        return False
    return answer == _IS_VALID.ljust(32, b"\0")  # the magic value is the function's own selector
