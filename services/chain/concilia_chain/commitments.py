"""Updates of Merkle rounds: checked as the contract would, collected, and shown to be under their commitment.

The contract sees none of these updates. What it checks of a recorded one is checked here when the update arrives, so
that a hospital hears at once what is wrong, by what the contract's events say; what counts is what a verifier finds
under the committed root. Updates that come together are kept together, and nobody is told before.
Source of trees and proofs: RFC 9162, section 2.1; see `concilia_kit.merkle`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from concilia_kit import merkle, signing
from concilia_kit.database import reading
from concilia_kit.signing import Domain, Update
from concilia_kit.together import Together
from concilia_kit.wire.chain import InclusionProof, RoundStatus, UpdateSubmission

from concilia_chain.errors import NothingCollected, Refused, UpdateUnknown
from concilia_chain.ledger import LedgerContract
from concilia_chain.refusals import Refusal
from concilia_chain.rounds import KnownRound
from concilia_chain.tables import leaves as _leaves
from concilia_chain.tables import put_metrics


@dataclass(frozen=True, slots=True)
class Leaf:
    """A collected update; `index` is its leaf's once it was put into a commitment."""

    submission: UpdateSubmission
    leaf: str
    received_at: float
    index: int | None

    @property
    def hospital(self) -> str:
        """Whose it is."""
        return self.submission.update.hospital


@dataclass(frozen=True, slots=True)
class Commitment:
    """What is to be written on the chain: a root over so many leaves."""

    base: str
    root: str
    count: int


class Commitments:
    """The collected updates of one ledger. Reads and writes of one round go one after another: one process collects."""

    def __init__(
        self,
        database: sa.Engine,
        deployment: int,
        ledger: LedgerContract,
        domain: Domain,
        known: Callable[[str, int], KnownRound],
        holds: Callable[[str], bool],
        told: Callable[[str, int], None] = lambda _job, _number: None,
    ) -> None:
        self._database = database
        self._reading = reading(database)
        self._deployment = deployment
        self._ledger = ledger
        self._domain = domain
        self._known = known
        self._holds = holds
        self._told = told
        self._lock = threading.Lock()
        self._keeping = Together(self._keep, "collector")

    def collect(self, submission: UpdateSubmission) -> Future[Leaf]:
        """Check a hospital's update, and have it kept with others that come now; keeping it again changes nothing.

        Its leaf comes once it is kept. Raises `Refused` with the name of the contract's error that says what is wrong.
        """
        update = submission.update
        try:
            self._check(submission)
        except Refused:
            known = self.leaf(update.job, update.round, update.hospital)
            if known is None or known.submission.update != update:
                raise
            kept: Future[Leaf] = Future()
            kept.set_result(known)
            return kept
        data = merkle.update_data(update, self._domain, submission.signature)
        return self._keeping.put(Leaf(submission, merkle.leaf(data).hex(), time.time(), None))

    def _keep(self, leaves: Sequence[Leaf]) -> list[Leaf | Exception]:
        """Keep checked updates, in one transaction: what each came to, in order."""
        by_round: dict[tuple[str, int], list[int]] = {}
        for at, leaf in enumerate(leaves):
            update = leaf.submission.update
            by_round.setdefault((update.job, update.round), []).append(at)
        outcomes: dict[int, Leaf | Exception] = {}
        with self._lock, self._database.begin() as connection:
            for (job, number), places in by_round.items():
                place = self._place(job, number)
                taken = sa.select(_leaves.c.leaf).where(*place, _leaves.c.index.is_not(None)).limit(1)
                committed = connection.execute(taken).first() is not None
                theirs = _leaves.c.hospital.in_({leaves[at].hospital for at in places})
                held = {each.hospital: each for each in _read(connection, sa.select(_leaves).where(*place, theirs))}
                for at in places:
                    leaf = leaves[at]
                    before = held.get(leaf.hospital)
                    if before is not None and before.submission.update == leaf.submission.update:
                        outcomes[at] = before
                    elif before is not None:
                        outcomes[at] = _refused("AlreadySubmitted", job=job, round=number, hospital=leaf.hospital)
                    elif committed:
                        outcomes[at] = _refused("AlreadyCommitted", job=job, round=number)
                    else:
                        outcomes[at] = held[leaf.hospital] = leaf
            fresh = [leaf for at, leaf in enumerate(leaves) if outcomes[at] is leaf]
            if fresh:
                connection.execute(sa.insert(_leaves), [self._row(leaf) for leaf in fresh])
                put_metrics(connection, {leaf.submission.update.metrics: leaf.submission.metrics for leaf in fresh})
        for job, number in by_round:
            self._told(job, number)
        return [outcomes[at] for at in range(len(leaves))]

    def _row(self, leaf: Leaf) -> dict[str, object]:
        update = leaf.submission.update
        return {
            "deployment": self._deployment,
            "job": update.job,
            "round": update.round,
            "hospital": update.hospital,
            "leaf": leaf.leaf,
            "document": leaf.submission.model_dump(mode="json"),
            "received_at": leaf.received_at,
        }

    def commit(self, job: str, number: int, again: Callable[[Commitment], bool]) -> Commitment:
        """What is collected, as a commitment: the same as before, unless that one came to nothing.

        Leaves of hospitals that lost their role meanwhile are left out. `again` says whether an earlier commitment is
        on its way or on the chain. Raises `NothingCollected`.
        """
        base = self._ledger.round_of(job, number).base
        with self._lock:
            held = self.leaves(job, number)
            before = [each for each in held if each.index is not None]
            if before:
                made = _commitment(base, before)
                if again(made) or self._ledger.root_of(job, number) is not None:
                    return made
            counted = [each for each in held if self._holds(each.hospital)]
            if not counted:
                raise NothingCollected("no update of this round was collected")
            with self._database.begin() as connection:
                place = self._place(job, number)
                connection.execute(sa.update(_leaves).where(*place).values(index=None))
                mine = _leaves.c.hospital == sa.bindparam("whose")
                connection.execute(
                    sa.update(_leaves).where(*place, mine).values(index=sa.bindparam("at")),
                    [{"whose": each.hospital, "at": index} for index, each in enumerate(counted)],
                )
            return _commitment(base, counted)

    def leaves(self, job: str, number: int) -> list[Leaf]:
        """A round's collected updates, in ascending order of hospital address."""
        return sorted(self._select(*self._place(job, number)), key=lambda each: bytes.fromhex(each.hospital[2:]))

    def leaf(self, job: str, number: int, hospital: str) -> Leaf | None:
        """A hospital's collected update."""
        found = self._select(*self._place(job, number), _leaves.c.hospital == hospital)
        return found[0] if found else None

    def count(self, job: str, number: int) -> int:
        """How many updates of a round were collected."""
        query = sa.select(sa.func.count()).select_from(_leaves).where(*self._place(job, number))
        with self._reading.begin() as connection:
            return int(connection.execute(query).scalar_one())

    def collected(self, job: str, number: int, hospital: str | None = None) -> list[str]:
        """The hospitals of a round's collected updates, or the one that is named if it is among them."""
        query = sa.select(_leaves.c.hospital).where(*self._place(job, number))
        if hospital is not None:
            query = query.where(_leaves.c.hospital == hospital)
        with self._reading.begin() as connection:
            return sorted(connection.execute(query).scalars())

    def committed(self, job: str, number: int, hospital: str | None = None) -> list[Leaf]:
        """A round's committed updates by index, or that of one hospital; empty where none were put into a
        commitment."""
        if hospital is not None:
            one = self.leaf(job, number, hospital)
            return [] if one is None or one.index is None else [one]
        return [each for each in self.leaves(job, number) if each.index is not None]

    def proof(self, job: str, number: int, hospital: str, transaction: str, block: int) -> InclusionProof:
        """Shows that a hospital's update is under the commitment of a transaction. Raises `UpdateUnknown`."""
        leaves = self.committed(job, number)
        index = next((at for at, each in enumerate(leaves) if each.hospital == hospital), None)
        if index is None:
            raise UpdateUnknown("the round's commitment has no update of this hospital")
        tree = merkle.Tree(bytes.fromhex(each.leaf) for each in leaves)
        return InclusionProof(
            update=leaves[index].submission.update,
            signature=leaves[index].submission.signature,
            index=index,
            count=len(leaves),
            leaf=leaves[index].leaf,
            root=tree.root.hex(),
            path=tuple(each.hex() for each in tree.proof(index)),
            transaction=transaction,
            block=block,
        )

    def _select(self, *wanted: sa.ColumnElement[bool]) -> list[Leaf]:
        with self._reading.begin() as connection:
            return _read(connection, sa.select(_leaves).where(*wanted))

    def _check(self, submission: UpdateSubmission) -> None:
        """What `submitUpdates` checks, in its order. Raises `Refused`."""
        update = submission.update
        job, number, hospital = update.job, update.round, update.hospital
        known = self._known(job, number)
        stored = known.stored
        if stored.status is not RoundStatus.OPEN:
            raise _refused("RoundNotOpen", job=job, round=number)
        if update.base != stored.base:
            raise _refused("BaseMismatch", expected=stored.base, given=update.base)
        if known.committed is not None:
            raise _refused("AlreadyCommitted", job=job, round=number)
        if time.time() > stored.deadline:
            raise _refused("DeadlinePassed", deadline=stored.deadline, timestamp=int(time.time()))
        if not any(bytes.fromhex(update.digest)):
            raise _refused("EmptyValue")
        if update.samples == 0:
            raise _refused("NoSamples", hospital=hospital)
        if not self._signed(update, submission.signature):
            raise _refused("InvalidSignature", claimed=hospital)
        if not self._holds(hospital):
            raise _refused("NotHospital", account=hospital)

    def _signed(self, update: Update, signature: str) -> bool:
        if signing.is_canonical(signature):
            try:
                if signing.signer(update, self._domain, signature) == update.hospital:
                    return True
            except ValueError:
                pass
        return self._ledger.wallet_accepts(update.hospital, signing.signed_hash(update, self._domain), signature)

    def _place(self, job: str, number: int) -> tuple[sa.ColumnElement[bool], ...]:
        return (_leaves.c.deployment == self._deployment, _leaves.c.job == job, _leaves.c.round == number)


def _read(connection: sa.Connection, query: sa.Select[Any]) -> list[Leaf]:
    return [
        Leaf(UpdateSubmission.model_validate(row["document"]), row["leaf"], row["received_at"], row["index"])
        for row in connection.execute(query).mappings()
    ]


def _commitment(base: str, leaves: list[Leaf]) -> Commitment:
    return Commitment(base, merkle.root(bytes.fromhex(each.leaf) for each in leaves).hex(), len(leaves))


def _refused(name: str, **arguments: str | int | bool) -> Refused:
    return Refused(Refusal(name, arguments))
