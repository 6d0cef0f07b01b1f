"""An inclusion proof held against the ledger: is this very update under the commitment, and did its hospital sign it?

Pure: the proof says what it claims, the events what the ledger has; nothing is taken from the proof that the events
tell, and nothing that follows from update and signature is taken at all. Source: RFC 9162, 2.1.3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from concilia_aggregator.verification import roles
from concilia_kit import merkle, signing
from concilia_kit.digests import JobId
from concilia_kit.signing import Address, Domain
from concilia_kit.wire.base import Wire
from concilia_kit.wire.chain import EventName, InclusionProof, Reason

from concilia.verification import decoding
from concilia.verification.decoding import ChainEvent

AsksWallet = Callable[[InclusionProof, int], bool]
"""Whether the hospital's contract wallet accepts the proof's signature, asked as it was at a block (ERC-1271)."""


class Judgement(Wire):
    """What was found of a proof: it holds where there are no `faults`. `facts` are what is so, in words."""

    holds: bool
    job: JobId
    round: int
    hospital: Address
    faults: tuple[str, ...]
    facts: tuple[str, ...]


class _Told(NamedTuple):
    """The ledger's events of one round."""

    opened: ChainEvent | None
    committed: ChainEvent | None
    closed: ChainEvent | None
    aborted: bool
    rejected: dict[str, int]


def judge(
    proof: InclusionProof, domain: Domain, events: Iterable[ChainEvent], ask_wallet: AsksWallet | None = None
) -> Judgement:
    """Hold a proof against the events of its job and of its hospital's role, in any order.

    Without `ask_wallet` a signature that is no account's is a fault: there is nobody to ask.
    """
    faults: list[str] = []
    facts: list[str] = []
    update = proof.update
    own = sorted(
        (each for each in events if not decoding.fault(each.name, each.arguments)), key=lambda each: each.place
    )
    told = _of_round(own, update.job, update.round)
    if told.committed is None or told.opened is None:
        has = "no round" if told.opened is None else "no commitment in round"
        faults.append(f"the ledger has {has} {update.round} of job {update.job}")
    else:
        _included(proof, domain, told.committed, told.opened, faults, facts)
        if not roles.history(own).held(update.hospital, *told.committed.place):
            faults.append("the account did not hold the hospital role at the commitment")
        else:
            facts.append("the hospital held its role at the commitment")
        _signed(proof, domain, told.committed, ask_wallet, faults, facts)
        facts.append(_outcome(told, update.hospital))
    return Judgement(
        holds=not faults,
        job=update.job,
        round=update.round,
        hospital=update.hospital,
        faults=tuple(faults),
        facts=tuple(facts),
    )


def _of_round(events: Iterable[ChainEvent], job: str, number: int) -> _Told:
    found: dict[str, ChainEvent] = {}
    rejected: dict[str, int] = {}
    for event in events:
        if event.arguments.get("job") == job and event.round == number:
            found[event.name] = event
            if event.name == EventName.UPDATE_REJECTED:
                rejected[str(event.hospital)] = int(event.arguments["reason"])
    return _Told(
        found.get(EventName.ROUND_OPENED),
        found.get(EventName.UPDATES_COMMITTED),
        found.get(EventName.ROUND_CLOSED),
        EventName.ROUND_ABORTED in found,
        rejected,
    )


def _included(
    proof: InclusionProof,
    domain: Domain,
    committed: ChainEvent,
    opened: ChainEvent,
    faults: list[str],
    facts: list[str],
) -> None:
    root, count = str(committed.arguments["root"]), int(committed.arguments["count"])
    facts.append(
        f"the ledger commits {count} updates of round {committed.round} under root {root}, "
        f"in block {committed.block}, transaction {committed.transaction}"
    )
    leaf = merkle.leaf(merkle.update_data(proof.update, domain, proof.signature))
    if proof.update.base != opened.arguments["base"]:
        faults.append("the update is of another base model than the round's")
    if proof.leaf != leaf.hex():
        faults.append(f"the leaf of this update and signature is {leaf.hex()}, the proof says {proof.leaf}")
    if proof.root != root:
        faults.append(f"the proof says that the root is {proof.root}")
    if proof.count != count:
        faults.append(f"the proof says that {proof.count} updates are committed")
    if (proof.transaction, proof.block) != (committed.transaction, committed.block):
        faults.append(f"the proof names another transaction as the commitment: {proof.transaction}")
    path = [bytes.fromhex(each) for each in proof.path]
    if merkle.verify(leaf, proof.index, count, path, bytes.fromhex(root)):
        facts.append(
            f"update {proof.update.digest} ({proof.update.samples} samples) is leaf {proof.index} under it: "
            f"{len(path)} hashes lead from the one to the other"
        )
    else:
        faults.append(f"the proof does not lead from this leaf at index {proof.index} to the ledger's root")


def _signed(
    proof: InclusionProof,
    domain: Domain,
    committed: ChainEvent,
    ask_wallet: AsksWallet | None,
    faults: list[str],
    facts: list[str],
) -> None:
    update = proof.update
    try:
        signer = signing.signer(update, domain, proof.signature)
    except ValueError:
        signer = "nobody"
    if signer == update.hospital and signing.is_canonical(proof.signature):
        facts.append(f"hospital {update.hospital} signed it")
    elif signer == update.hospital:
        faults.append("its signature is in a form that the contract never accepts")
    elif ask_wallet is not None and ask_wallet(proof, committed.block):
        facts.append(f"the contract wallet {update.hospital} says that it signed it, asked as it was at that block")
    else:
        faults.append(f"its signature is {signer}'s")


def _outcome(told: _Told, hospital: str) -> str:
    if (reason := told.rejected.get(hospital)) is not None:
        known = reason in list(Reason)
        return f"it was left out afterwards, the reason on the ledger being {Reason(reason).name if known else reason}"
    if told.closed is not None:
        return f"it counts in the round's model {told.closed.arguments['globalDigest']}"
    return "the round was given up, and nothing of it counts" if told.aborted else "the round is open still"
