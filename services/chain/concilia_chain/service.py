"""Where two things happen together: what is asked becomes an order, and its end becomes an answer."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import UTC, datetime
from typing import NamedTuple

from concilia_kit import digests
from concilia_kit.wire.chain import (
    Acknowledgement,
    Finality,
    Publication,
    Receipt,
    Rejection,
    RoundClosure,
    RoundOpening,
    SignedRoleChange,
    UpdateSubmission,
)

from concilia_chain.answers import Outcome
from concilia_chain.calls import Call
from concilia_chain.commitments import Commitment, Commitments, Leaf
from concilia_chain.errors import MetricsMismatch, ReceiptTimeout
from concilia_chain.expectations import Expectations
from concilia_chain.gateway import Gateway
from concilia_chain.ledger import LedgerContract
from concilia_chain.reading import Reading, receipt
from concilia_chain.relay import Relay


class Ordered(NamedTuple):
    """An answer to come, and whether the same was asked before."""

    answer: Future[Outcome]
    repeated: bool


class Collecting(NamedTuple):
    """An update of a Merkle round that is being kept: its leaf to come."""

    answer: Future[Leaf]


class Relayed(NamedTuple):
    """A receipt, and whether it is that of an earlier call with the same effect."""

    receipt: Receipt
    repeated: bool


class ChainService:
    """Everything the REST interface can ask to be written. What is ordered is kept, and raises `Refused` in its answer.

    The coordinator's orders are answered once they are final, so that nothing is built on what a reorganisation takes
    back; hospitals' and administrators' once they are in a block.
    """

    def __init__(
        self,
        ledger: LedgerContract,
        gateway: Gateway,
        relay: Relay,
        reading: Reading,
        commitments: Commitments,
        expectations: Expectations,
    ) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._relay = relay
        self._reading = reading
        self._commitments = commitments
        self._expectations = expectations

    # administrators

    def change_role(self, order: SignedRoleChange) -> Ordered:
        """Relay an administrator's signed role change."""
        return Ordered(*self._gateway.put(self._ledger.change_role(order), final=False))

    # the coordinator

    def open_round(self, order: RoundOpening) -> Ordered:
        """Open a job's next round."""
        if order.expected is not None:
            self._expectations.expect(order.job, order.round, order.expected)
        return self._coordinate(self._ledger.open_round(order))

    def commit_updates(self, job: str, number: int) -> Ordered:
        """Commit what a Merkle round's hospitals sent. Raises `NothingCollected`."""

        def call(made: Commitment) -> Call:
            return self._ledger.commit_updates(job, number, made.base, made.root, made.count)

        made = self._commitments.commit(job, number, lambda before: self._gateway.knows(call(before)))
        return self._coordinate(call(made))

    def reject_update(self, job: str, number: int, order: Rejection) -> Ordered:
        """Leave a recorded or committed update out. Raises `UpdateUnknown`."""
        if self._reading.commitment(job, number) is None:
            return self._coordinate(self._ledger.reject_update(job, number, order))
        committed = self._reading.proof(job, number, order.hospital)
        return self._coordinate(self._ledger.reject_committed(committed, order))

    def close_round(self, job: str, number: int, order: RoundClosure) -> Ordered:
        """Close a round on its new global model."""
        return self._coordinate(self._ledger.close_round(job, number, order))

    def abort_round(self, job: str, number: int) -> Ordered:
        """Give a round up."""
        return self._coordinate(self._ledger.abort_round(job, number))

    def publish_model(self, order: Publication) -> Ordered:
        """Publish a job's head."""
        return self._coordinate(self._ledger.publish_model(order))

    # hospitals

    def submit_update(self, submission: UpdateSubmission) -> Ordered | Collecting:
        """Take a hospital's signed update: to be relayed, or in a Merkle round to be committed with others.

        Raises `MetricsMismatch`, `Refused`.
        """
        update = submission.update
        digest = digests.of_json(submission.metrics.model_dump(mode="json"))
        if digest != update.metrics:
            raise MetricsMismatch(
                "the metrics' canonical JSON does not have the digest that was signed",
                extra={"expected": update.metrics, "given": digest},
            )
        if not self._reading.is_merkle(update.job, update.round):
            return Ordered(*self._gateway.put(self._ledger.submit_updates(submission), submission, final=False))
        return Collecting(self._commitments.collect(submission))

    @staticmethod
    def acknowledged(leaf: Leaf) -> Acknowledgement:
        """What a hospital is told once its update is kept."""
        update = leaf.submission.update
        return Acknowledgement(
            job=update.job,
            round=update.round,
            hospital=update.hospital,
            leaf=leaf.leaf,
            received_at=datetime.fromtimestamp(leaf.received_at, UTC),
        )

    def told(self, outcome: Outcome, repeated: bool) -> Relayed:
        """An order's end as its answer."""
        if outcome.standing is not None:
            return Relayed(receipt(outcome.standing), repeated)
        assert outcome.effect is not None, "an order ends on the chain, by itself or by its effect"
        return Relayed(self._receipt_of(outcome.effect.transaction), repeated=True)

    def _coordinate(self, call: Call) -> Ordered:
        return Ordered(*self._gateway.put(call, final=True))

    def _receipt_of(self, transaction: str) -> Receipt:
        """The receipt of a transaction that another sent, or this one before its database was lost.

        Raises `ReceiptTimeout`.
        """
        mined = self._relay.mined(transaction)
        if mined is None:  # its event was followed: the node is behind itself
            raise ReceiptTimeout("the node has no receipt of what it shows events of; ask again")
        moment = datetime.fromtimestamp(self._relay.time_of(mined.block), UTC)
        return Receipt(
            transaction=transaction,
            block=mined.block,
            gas=mined.gas,
            received_at=moment,
            sent_at=moment,
            confirmed_at=moment,
            finality=Finality.CONFIRMED,
        )
