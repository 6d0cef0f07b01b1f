"""Updates of Merkle rounds: checked as the contract would, collected, and shown to be under their commitment.

The contract sees none of these updates. What it checks of a recorded one is checked here when the update arrives, so
that a hospital hears at once what is wrong; what counts is what a verifier finds under the committed root.
Source of trees and proofs: RFC 9162, section 2.1; see `concilia_kit.merkle`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from concilia_kit import merkle, signing
from concilia_kit.roles import Role
from concilia_kit.signing import Domain, Update
from concilia_kit.wire.chain import InclusionProof, RoundStatus, UpdateSubmission

from concilia_chain.errors import NothingCollected, Refused, UpdateUnknown
from concilia_chain.ledger import LedgerContract
from concilia_chain.refusals import Refusal
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
        holds: Callable[[str], bool],
    ) -> None:
        self._database = database
        self._deployment = deployment
        self._ledger = ledger
        self._domain = domain
        self._holds = holds
        self._lock = threading.Lock()

    def collect(self, submission: UpdateSubmission) -> Leaf:
        """Check and keep a hospital's update; keeping it again changes nothing.

        Raises `Refused` with the name of the contract's error that says what is wrong.
        """
        update = submission.update
        known = self.leaf(update.job, update.round, update.hospital)
        if known is not None and known.submission.update == update:
            return known
        self._check(submission)
        data = merkle.update_data(update, self._domain, submission.signature)
        leaf = Leaf(submission, merkle.leaf(data).hex(), time.time(), None)
        if known is not None:
            raise _refused("AlreadySubmitted", job=update.job, round=update.round, hospital=update.hospital)
        taken = sa.select(_leaves.c.leaf).where(*self._place(update.job, update.round), _leaves.c.index.is_not(None))
        try:
            with self._lock, self._database.begin() as connection:
                if connection.execute(taken.limit(1)).first() is not None:
                    raise _refused("AlreadyCommitted", job=update.job, round=update.round)
                connection.execute(
                    sa.insert(_leaves).values(
                        deployment=self._deployment,
                        job=update.job,
                        round=update.round,
                        hospital=update.hospital,
                        leaf=leaf.leaf,
                        document=submission.model_dump(mode="json"),
                        received_at=leaf.received_at,
                    )
                )
                put_metrics(connection, update.metrics, submission.metrics)
        except sa.exc.IntegrityError:  # the hospital's two requests at once
            again = self.leaf(update.job, update.round, update.hospital)
            if again is None or again.submission.update != update:
                raise _refused(
                    "AlreadySubmitted", job=update.job, round=update.round, hospital=update.hospital
                ) from None
            return again
        return leaf

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
                for index, each in enumerate(counted):
                    mine = _leaves.c.hospital == each.hospital
                    connection.execute(sa.update(_leaves).where(*place, mine).values(index=index))
            return _commitment(base, counted)

    def leaves(self, job: str, number: int) -> list[Leaf]:
        """A round's collected updates, in ascending order of hospital address."""
        return sorted(self._select(*self._place(job, number)), key=lambda each: bytes.fromhex(each.hospital[2:]))

    def leaf(self, job: str, number: int, hospital: str) -> Leaf | None:
        """A hospital's collected update."""
        found = self._select(*self._place(job, number), _leaves.c.hospital == hospital)
        return found[0] if found else None

    def collected(self, job: str, number: int) -> list[str]:
        """The hospitals of a round's collected updates."""
        with self._database.begin() as connection:
            return sorted(connection.execute(sa.select(_leaves.c.hospital).where(*self._place(job, number))).scalars())

    def committed(self, job: str, number: int) -> list[Leaf]:
        """A round's committed updates by index; empty where none were put into a commitment."""
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
        with self._database.begin() as connection:
            rows = connection.execute(sa.select(_leaves).where(*wanted)).mappings().all()
        return [
            Leaf(UpdateSubmission.model_validate(row["document"]), row["leaf"], row["received_at"], row["index"])
            for row in rows
        ]

    def _check(self, submission: UpdateSubmission) -> None:
        """What `submitUpdates` checks, in its order. Raises `Refused`."""
        update = submission.update
        job, number, hospital = update.job, update.round, update.hospital
        stored = self._ledger.round_of(job, number)
        if stored.status is not RoundStatus.OPEN:
            raise _refused("RoundNotOpen", job=job, round=number)
        if update.base != stored.base:
            raise _refused("BaseMismatch", expected=stored.base, given=update.base)
        if self._ledger.root_of(job, number) is not None:
            raise _refused("AlreadyCommitted", job=job, round=number)
        if time.time() > stored.deadline:
            raise _refused("DeadlinePassed", deadline=stored.deadline, timestamp=int(time.time()))
        if not any(bytes.fromhex(update.digest)):
            raise _refused("EmptyValue")
        if update.samples == 0:
            raise _refused("NoSamples", hospital=hospital)
        if not self._signed(update, submission.signature):
            raise _refused("InvalidSignature", claimed=hospital)
        if not self._ledger.has_role(Role.HOSPITAL, hospital):
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


def _commitment(base: str, leaves: list[Leaf]) -> Commitment:
    return Commitment(base, merkle.root(bytes.fromhex(each.leaf) for each in leaves).hex(), len(leaves))


def _refused(name: str, **arguments: str | int | bool) -> Refused:
    return Refused(Refusal(name, arguments))
