"""What is under a Merkle round's commitment: its leaves, held against root, count and rejections on the ledger. Pure.

The ledger has a root and a number; the updates and their signatures come from anywhere, and are believed where they
are the very leaves of that root: every one of them, in ascending order of hospital address, each hospital once.
Source: RFC 9162, 2.1; the leaves as `concilia_kit.merkle.update_data` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from concilia_kit import merkle
from concilia_kit.signing import Domain
from concilia_kit.wire.chain import LedgerUpdate

from concilia_aggregator.verification.lineage import Commitment, RecordedUpdate, Round

_EMPTY = "0" * 64


class Fault(NamedTuple):
    """Something about a commitment that does not agree: whose leaf, which digest, and what is wrong."""

    hospital: str | None
    digest: str | None
    what: str


def unfold(job: str, of: Round, leaves: Sequence[LedgerUpdate], domain: Domain) -> list[Fault]:
    """Fill a committed round's `updates` in from its leaves, given by ascending index; returns what does not agree.

    Signatures, roles and files are not looked at: those updates are then checked like recorded ones. The tree is
    hashed as it is read, and never held.
    """
    commitment = of.commitment
    assert commitment is not None, "callers look first"
    if not leaves:
        needed = f"its leaves are needed: the ledger has only the root over its {commitment.count} updates"
        return [Fault(None, commitment.root, needed)]
    faults: list[Fault] = []
    root = merkle.root(_hashes(job, of, commitment, leaves, domain, faults)).hex()
    if len(leaves) != commitment.count:
        faults.append(Fault(None, commitment.root, f"{commitment.count} leaves are committed, {len(leaves)} are given"))
    if root != commitment.root:
        faults.append(Fault(None, commitment.root, f"its leaves have another root: {root}"))
    for index, (hospital, _reason) in commitment.rejected.items():
        if index < len(leaves) and (its := leaves[index].update.hospital) != hospital:
            faults.append(Fault(hospital, None, f"leaf {index}, which was rejected as its own, is {its}'s"))
    return faults


def _hashes(
    job: str, of: Round, commitment: Commitment, leaves: Sequence[LedgerUpdate], domain: Domain, faults: list[Fault]
) -> Iterator[bytes]:
    last = -1
    for place, leaf in enumerate(leaves):
        update = leaf.update
        _rejected_as, reason = commitment.rejected.get(place, (None, 0))
        said = list(_said(job, of, leaf, place, last))
        if not reason and (update.digest == _EMPTY or not update.samples):
            said.append("its update is empty")  # recorded ones the contract refuses
        faults += [Fault(update.hospital, update.digest, what) for what in said]
        last = int(update.hospital, 16)
        recorded = RecordedUpdate(
            update.hospital,
            update.digest,
            update.samples,
            update.metrics,
            commitment.transaction,
            commitment.block,
            commitment.log_index,
            reason,
        )
        of.updates.setdefault(update.hospital, recorded)
        yield merkle.leaf(merkle.update_data(update, domain, leaf.signature))


def _said(job: str, of: Round, leaf: LedgerUpdate, place: int, last: int) -> Iterator[str]:
    update = leaf.update
    if leaf.index != place:
        yield f"its leaf stands at {place}, and says that its index is {leaf.index}"
    if (number := int(update.hospital, 16)) == last:
        yield "it is committed twice"
    elif number < last:
        yield "its leaf is not in ascending order of hospital address"
    if (update.job, update.round, update.base) != (job, of.number, of.base):
        yield "its leaf is an update of another job, round or base model"
