"""Where two things happen together: a call relayed and remembered, the contract's word joined with its events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from concilia_kit import digests, logs
from concilia_kit.roles import Role
from concilia_kit.signing import Update
from concilia_kit.wire.chain import (
    AccountRoles,
    ContractInfo,
    EventName,
    EventPage,
    LedgerEvent,
    LedgerJob,
    LedgerRound,
    LedgerUpdate,
    Member,
    Publication,
    Reason,
    Receipt,
    Rejection,
    RoleRecord,
    RoundClosure,
    RoundOpening,
    SignedRoleChange,
    Transaction,
    UpdateSubmission,
)

from concilia_chain import membership, pages
from concilia_chain.errors import JobUnknown, MetricsMismatch, Refused, RoundUnknown
from concilia_chain.events import Event
from concilia_chain.follower import Follower
from concilia_chain.ledger import Call, LedgerContract, StoredRound
from concilia_chain.metrics import CONFIRMED, FAILED, REFUSED, REPEATED, ChainMetrics
from concilia_chain.pages import Place, Wanted
from concilia_chain.sender import Confirmed, Sender
from concilia_chain.store import Store, ledger_event

_NO_SIGNATURE = "0x00"  # a wallet relayed the update in a form that hides it; it counts, and verifies nowhere
_log = logs.get(__name__)


class Relayed(NamedTuple):
    """A receipt, and whether it is that of an earlier call with the same effect."""

    receipt: Receipt
    repeated: bool


class ChainService:
    """Everything the REST interface can ask for. Methods that relay raise `Refused` with the contract's word."""

    def __init__(
        self,
        ledger: LedgerContract,
        sender: Sender,
        follower: Follower,
        store: Store,
        metrics: ChainMetrics | None = None,
    ) -> None:
        self._ledger = ledger
        self._sender = sender
        self._follower = follower
        self._store = store
        self._metrics = metrics or ChainMetrics()

    def contract(self) -> ContractInfo:
        """The ledger this service writes to."""
        known = self._store.deployment
        return ContractInfo(chain_id=known.chain_id, address=known.address, deployment_block=known.block)

    # membership

    def member(self, address: str) -> Member:
        """An address with the roles that it holds now, by the contract's word."""
        return self._ledger.member(address)

    def account_roles(self, address: str) -> AccountRoles:
        """The roles that the followed events leave an address with: no call to the node. Raises `LedgerNotFollowed`."""
        self._follower.require_current()
        block, events = self._store.role_events_of(address)
        return AccountRoles(address=address, roles=membership.held(events), block=block)

    def members(self, role: Role) -> list[Member]:
        """All who hold a role now: events tell whom to ask about, the contract decides."""
        self._follower.catch_up()
        known = self._store.accounts_granted(role.identifier.hex())
        return [self._ledger.member(address) for address in known if self._ledger.has_role(role, address)]

    def role_records(self, account: str | None, limit: int) -> list[RoleRecord]:
        """Who granted or took which role, newest first, of one account or of all."""
        self._follower.catch_up()
        wanted = Wanted(names=membership.ROLE_EVENTS, account=account)
        records: list[RoleRecord] = []
        before: Place | None = None
        while len(records) < limit:  # roles that nobody knows were left out
            events = self._store.newest(wanted, before, limit)
            records += [record for event in events if (record := membership.record(event)) is not None]
            if len(events) < limit:
                break
            before = Place(events[-1].block, events[-1].log_index)
        return records[:limit]

    def change_role(self, order: SignedRoleChange) -> Relayed:
        """Relay an administrator's signed role change."""
        return self._relay(self._ledger.change_role(order))

    # the coordinator's calls; a repetition gets the first one's receipt

    def open_round(self, order: RoundOpening) -> Relayed:
        """Open a job's next round."""
        arguments = {"base": order.base, "deadline": order.deadline, "quorum": order.quorum}
        effect = self._effect(EventName.ROUND_OPENED, order.job, order.round, arguments)
        return self._relay(self._ledger.open_round(order), effect)

    def reject_update(self, job: str, number: int, order: Rejection) -> Relayed:
        """Leave a recorded update out."""
        arguments = {"hospital": order.hospital, "reason": int(order.reason)}
        effect = self._effect(EventName.UPDATE_REJECTED, job, number, arguments)
        return self._relay(self._ledger.reject_update(job, number, order), effect)

    def close_round(self, job: str, number: int, order: RoundClosure) -> Relayed:
        """Close a round on its new global model."""
        arguments = {
            "globalDigest": order.global_digest,
            "contributions": order.contributions,
            "count": order.count,
        }
        effect = self._effect(EventName.ROUND_CLOSED, job, number, arguments)
        return self._relay(self._ledger.close_round(job, number, order), effect)

    def abort_round(self, job: str, number: int) -> Relayed:
        """Give a round up."""
        return self._relay(
            self._ledger.abort_round(job, number), self._effect(EventName.ROUND_ABORTED, job, number, {})
        )

    def publish_model(self, order: Publication) -> Relayed:
        """Publish a job's head."""
        effect = self._effect(EventName.MODEL_PUBLISHED, order.job, None, {"digest": order.digest})
        return self._relay(self._ledger.publish_model(order), effect)

    # hospitals

    def submit_update(self, submission: UpdateSubmission) -> Relayed:
        """Relay a hospital's signed update, and keep its metrics. Raises `MetricsMismatch`."""
        digest = digests.of_json(submission.metrics.model_dump(mode="json"))
        if digest != submission.update.metrics:
            raise MetricsMismatch(
                "the metrics' canonical JSON does not have the digest that was signed",
                extra={"expected": submission.update.metrics, "given": digest},
            )
        return self._relay(
            self._ledger.submit_updates(submission),
            before_sending=lambda: self._store.put_metrics(digest, submission.metrics),
        )

    # reading

    def job(self, job: str) -> LedgerJob:
        """A job with its rounds. Raises `JobUnknown`."""
        stored = self._ledger.job_of(job)
        if stored.round == 0:
            raise JobUnknown("the ledger has no such job")
        rounds = [(number, self._ledger.round_of(job, number)) for number in range(1, stored.round + 1)]
        # Asked before the events are brought up to date: events are never behind the contract's counts.
        self._follower.catch_up()
        events = self._store.events_of_job(job)
        return LedgerJob(
            job=job,
            head=stored.head,
            published=stored.published,
            rounds=tuple(
                self._round(job, number, entry, [event for event in events if event.round == number])
                for number, entry in rounds
            ),
        )

    def round(self, job: str, number: int) -> LedgerRound:
        """A round with its updates. Raises `RoundUnknown`."""
        stored = self._ledger.round_of(job, number)
        self._follower.catch_up()
        return self._round(job, number, stored, self._store.events_of_job(job, number))

    def events(self, job: str) -> list[LedgerEvent]:
        """A job's events in chain order; none for a job that the ledger does not know."""
        self._follower.catch_up()
        return [ledger_event(event) for event in self._store.events_of_job(job)]

    def event_page(self, wanted: Wanted, before: Place | None, limit: int) -> EventPage:
        """The newest events of those wanted, of those before a place where one is given."""
        self._follower.catch_up()
        found = self._store.newest(wanted, before, limit + 1)
        events = found[:limit]
        cursor = str(Place(events[-1].block, events[-1].log_index)) if len(found) > limit else None
        return EventPage(events=tuple(map(pages.recorded, events)), before=cursor)

    def transactions(self, job: str | None, limit: int) -> list[Transaction]:
        """The relay's newest transactions, newest first."""
        return self._store.transactions(job, limit)

    def _round(self, job: str, number: int, stored: StoredRound, events: list[Event]) -> LedgerRound:
        if stored.status is None:
            raise RoundUnknown("the ledger has no such round")
        closed = next((event.arguments for event in events if event.name == EventName.ROUND_CLOSED), None)
        reasons = {
            event.account: Reason(int(event.arguments["reason"]))
            for event in events
            if event.name == EventName.UPDATE_REJECTED
        }
        recorded = [event for event in events if event.name == EventName.UPDATE_RECORDED]
        metrics = self._store.metrics([str(event.arguments["metrics"]) for event in recorded])
        return LedgerRound(
            job=job,
            round=number,
            status=stored.status,
            base=stored.base,
            deadline=stored.deadline,
            quorum=stored.quorum,
            submitted=stored.submitted,
            rejected=stored.rejected,
            global_digest=None if closed is None else str(closed["globalDigest"]),
            contributions=None if closed is None else str(closed["contributions"]),
            updates=tuple(
                LedgerUpdate(
                    # The contract took no update whose base was not its round's.
                    update=Update.model_validate({**event.arguments, "base": stored.base}),
                    signature=event.signature or _NO_SIGNATURE,
                    metrics=metrics.get(str(event.arguments["metrics"])),
                    reason=reasons.get(event.account),
                    transaction=event.transaction,
                    block=event.block,
                )
                for event in recorded
            ),
        )

    # relaying

    def _relay(
        self,
        call: Call,
        effect: Callable[[], Event | None] | None = None,
        before_sending: Callable[[], None] | None = None,
    ) -> Relayed:
        """Dry run, send, remember, and bring the events up to date; a refusal may turn out to be a repetition."""
        received_at = time.time()
        try:
            self._sender.dry_run(call)
            if before_sending is not None:
                before_sending()
            confirmed = self._sender.send(call)
        except Refused:
            event = None if effect is None else effect()
            if event is None:
                self._metrics.transactions.labels(call.function, REFUSED).inc()
                raise
            self._metrics.transactions.labels(call.function, REPEATED).inc()
            return Relayed(self._receipt_of(event.transaction), repeated=True)
        except Exception:
            self._metrics.transactions.labels(call.function, FAILED).inc()
            raise
        self._metrics.transactions.labels(call.function, CONFIRMED).inc()
        self._metrics.seconds.labels(call.function).observe(confirmed.confirmed_at - received_at)
        self._metrics.gas.labels(call.function).observe(confirmed.gas)
        transaction = _transaction(call, confirmed, received_at)
        try:
            self._store.put_transaction(transaction)
            self._follower.catch_up(confirmed.block)
        except Exception as error:  # the transaction is on the chain, whatever fails here
            _log.warning("relayed, and not remembered", transaction=confirmed.transaction, error=str(error))
        return Relayed(_receipt(transaction), repeated=False)

    def _effect(
        self, name: EventName, job: str, number: int | None, arguments: Mapping[str, object]
    ) -> Callable[[], Event | None]:
        def look() -> Event | None:
            self._follower.catch_up()
            return _first_with(self._store.events_of_job(job, number), name, arguments)

        return look

    def _receipt_of(self, transaction: str) -> Receipt:
        """A transaction's receipt; after a crash between sending and remembering, as the chain has it."""
        known = self._store.transaction(transaction)
        if known is not None:
            return _receipt(known)
        block, gas, seconds = self._sender.receipt_of(transaction)
        moment = datetime.fromtimestamp(seconds, UTC)
        return Receipt(
            transaction=transaction, block=block, gas=gas, received_at=moment, sent_at=moment, confirmed_at=moment
        )


def _first_with(events: Iterable[Event], name: EventName, arguments: Mapping[str, object]) -> Event | None:
    return next(
        (event for event in events if event.name == name and event.arguments.items() >= arguments.items()), None
    )


def _transaction(call: Call, confirmed: Confirmed, received_at: float) -> Transaction:
    return Transaction(
        transaction=confirmed.transaction,
        block=confirmed.block,
        gas=confirmed.gas,
        received_at=datetime.fromtimestamp(received_at, UTC),
        sent_at=datetime.fromtimestamp(confirmed.sent_at, UTC),
        confirmed_at=datetime.fromtimestamp(confirmed.confirmed_at, UTC),
        function=call.function,
        job=call.job,
        round=call.round,
        hospital=call.hospital,
    )


def _receipt(transaction: Transaction) -> Receipt:
    return Receipt(**{name: getattr(transaction, name) for name in Receipt.model_fields})
