"""What the ledger says, as the REST interface tells it: the contract's word joined with its events. Writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from concilia_kit.roles import Role
from concilia_kit.signing import Update
from concilia_kit.wire.chain import (
    AccountRoles,
    ContractInfo,
    EventName,
    EventPage,
    Finality,
    Holders,
    InclusionProof,
    LedgerEvent,
    LedgerJob,
    LedgerRound,
    LedgerUpdate,
    Member,
    Reason,
    Receipt,
    RoleRecord,
    RoundStanding,
    Transaction,
)

from concilia_chain import membership, pages
from concilia_chain.calls import Call
from concilia_chain.commitments import Commitments, Leaf
from concilia_chain.errors import JobUnknown, RoundUnknown, UpdateUnknown
from concilia_chain.events import Event
from concilia_chain.follower import Follower
from concilia_chain.ledger import LedgerContract, StoredRound
from concilia_chain.orders import Standing, State
from concilia_chain.outbox import Outbox
from concilia_chain.pages import Place, Wanted
from concilia_chain.roster import Roll, Roster
from concilia_chain.rounds import KnownRound, Rounds, first
from concilia_chain.store import Store, ledger_event

_NO_SIGNATURE = "0x00"  # a wallet relayed the update in a form that hides it; it counts, and verifies nowhere


class Reading:
    """Everything the REST interface tells."""

    def __init__(
        self,
        ledger: LedgerContract,
        follower: Follower,
        store: Store,
        outbox: Outbox,
        commitments: Commitments,
        confirmations: int,
    ) -> None:
        self._ledger = ledger
        self._follower = follower
        self._store = store
        self._outbox = outbox
        self._commitments = commitments
        self._confirmations = confirmations
        self.rounds = Rounds(store)
        self._roster = Roster(store, confirmations)

    def contract(self) -> ContractInfo:
        """The ledger this service writes to."""
        known = self._store.deployment
        return ContractInfo(
            chain_id=known.chain_id,
            address=known.address,
            deployment_block=known.block,
            confirmations=self._confirmations,
        )

    # membership

    def member(self, address: str) -> Member:
        """An address with the roles that it holds now, by the contract's word."""
        return self._ledger.member(address)

    def account_roles(self, address: str) -> AccountRoles:
        """The roles that the followed events leave an address with: no call to the node. Raises `LedgerNotFollowed`."""
        self._follower.require_current()
        roll = self._roster.now()
        return AccountRoles(address=address, roles=roll.of(address), block=roll.block)

    def account_roles_at_once(self, address: str) -> AccountRoles | None:
        """The same where telling it needs no look at the database; None elsewhere."""
        roll = self._roll_at_once()
        return None if roll is None else AccountRoles(address=address, roles=roll.of(address), block=roll.block)

    def held(self, address: str) -> frozenset[Role]:
        """An address's roles, as `account_roles` tells them. Raises `LedgerNotFollowed`."""
        self._follower.require_current()
        return frozenset(self._roster.now().of(address))

    def held_at_once(self, address: str) -> frozenset[Role] | None:
        """The same where telling it needs no look at the database; None elsewhere."""
        roll = self._roll_at_once()
        return None if roll is None else frozenset(roll.of(address))

    def _roll_at_once(self) -> Roll | None:
        return self._roster.at_once() if self._follower.is_current else None

    def hospitals(self) -> int:
        """How many hold the hospital's role by the events stored so far."""
        return self._roster.now().count(Role.HOSPITAL)

    def recorded(self, job: str, number: int) -> int:
        """How many of a round's updates are on the chain, by the events stored so far."""
        return self.rounds.of(job, number).stored.submitted

    def roll(self) -> tuple[bytes, str]:
        """The roles of all, as JSON (`wire.chain.Roll`), and a tag as `holders` gives. Raises `LedgerNotFollowed`."""
        self._follower.require_current()
        roll = self._roster.now()
        return roll.document, roll.tag

    def holders(self, role: Role) -> tuple[Callable[[], Holders], str]:
        """Who holds a role by the followed events, made when asked for, and a tag that is another one whenever that may
        have changed.

        Raises `LedgerNotFollowed`.
        """
        self._follower.require_current()
        roll = self._roster.now()
        return lambda: Holders(role=role, addresses=roll.holders(role), block=roll.block), roll.tag

    def members(self, role: Role) -> list[Member]:
        """All who hold a role now, and for good: events tell whom to ask about, the contract decides."""
        self._follower.catch_up()
        known = self._store.accounts_granted(role.identifier.hex())
        roll = self._roster.now()
        held = [address for address in known if role in roll.of(address)]
        return [self._ledger.member(address) for address in held if self._ledger.has_role(role, address)]

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

    # jobs and rounds

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
        self._follower.catch_up()
        events = self._store.events_of_job(job, number)
        return self._round(job, number, KnownRound.of(events, _counted(events)).stored, events)

    def round_for(self, job: str, number: int, hospital: str) -> LedgerRound:
        """A round with one hospital's update only, by the events stored so far. Raises `RoundUnknown`."""
        known = self.rounds.of(job, number)
        if known.stored.status is None:  # opened a moment ago, or never
            self._follower.catch_up()
            known = self.rounds.of(job, number)
        events = [*known.events, *self._store.events_of_updates(job, number, hospital)]
        return self._round(job, number, known.stored, events, hospital)

    def standing(self, job: str, number: int) -> RoundStanding:
        """How far a round is, by the events stored so far. Raises `RoundUnknown`."""
        known = self.rounds.of(job, number)
        if known.stored.status is None:
            raise RoundUnknown("the ledger has no such round")
        return RoundStanding(
            job=job,
            round=number,
            status=known.stored.status,
            base=known.stored.base,
            deadline=known.stored.deadline,
            quorum=known.stored.quorum,
            updates=self._commitments.count(job, number) if known.is_collecting else known.stored.submitted,
            rejected=known.stored.rejected,
            merkle=known.merkle,
            committed=known.committed is not None,
        )

    def proof(self, job: str, number: int, hospital: str) -> InclusionProof:
        """Shows that a hospital's update is under its round's commitment. Raises `UpdateUnknown`."""
        committed = self.commitment(job, number)
        if committed is None:
            raise UpdateUnknown("the round has no commitment")
        return self._commitments.proof(job, number, hospital, committed.transaction, committed.block)

    def commitment(self, job: str, number: int) -> Event | None:
        """A round's commitment, as the ledger has it."""
        self._follower.catch_up()
        return first(self._store.events_of_job(job, number), EventName.UPDATES_COMMITTED)

    def is_merkle(self, job: str, number: int) -> bool:
        """Whether a round takes its updates as a commitment; by the events followed so far."""
        return self.rounds.of(job, number).merkle

    # events and transactions

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
        """What was asked of the relay and is on the chain, newest first."""
        return [transaction(standing, call) for standing, call in self._outbox.settled(job, limit)]

    def _round(
        self, job: str, number: int, stored: StoredRound, events: list[Event], hospital: str | None = None
    ) -> LedgerRound:
        """A round as it crosses the wire; with the update of one hospital only, where it is named."""
        if stored.status is None:
            raise RoundUnknown("the ledger has no such round")
        closed = first(events, EventName.ROUND_CLOSED)
        committed = first(events, EventName.UPDATES_COMMITTED)
        merkle = committed is not None or first(events, EventName.MERKLE_ROUND_OPENED) is not None
        updates = (
            self._recorded(stored, events)
            if committed is None
            else self._committed(self._commitments.committed(job, number, hospital), committed)
        )
        reasons = {
            event.account: Reason(int(event.arguments["reason"]))
            for event in events
            if event.name == EventName.UPDATE_REJECTED
        }
        return LedgerRound(
            job=job,
            round=number,
            status=stored.status,
            base=stored.base,
            deadline=stored.deadline,
            quorum=stored.quorum,
            submitted=stored.submitted,
            rejected=stored.rejected,
            global_digest=None if closed is None else str(closed.arguments["globalDigest"]),
            contributions=None if closed is None else str(closed.arguments["contributions"]),
            updates=tuple(each.model_copy(update={"reason": reasons.get(each.update.hospital)}) for each in updates),
            merkle=merkle,
            collected=(
                tuple(self._commitments.collected(job, number, hospital)) if merkle and committed is None else ()
            ),
            root=None if committed is None else str(committed.arguments["root"]),
        )

    def _recorded(self, stored: StoredRound, events: Sequence[Event]) -> list[LedgerUpdate]:
        recorded = [event for event in events if event.name == EventName.UPDATE_RECORDED]
        metrics = self._store.metrics([str(event.arguments["metrics"]) for event in recorded])
        return [
            LedgerUpdate(
                # The contract took no update whose base was not its round's.
                update=Update.model_validate({**event.arguments, "base": stored.base}),
                signature=event.signature or _NO_SIGNATURE,
                metrics=metrics.get(str(event.arguments["metrics"])),
                reason=None,
                transaction=event.transaction,
                block=event.block,
                finality=self._finality(event.block),
            )
            for event in recorded
        ]

    def _committed(self, leaves: Sequence[Leaf], event: Event) -> list[LedgerUpdate]:
        return [
            LedgerUpdate(
                update=leaf.submission.update,
                signature=leaf.submission.signature,
                metrics=leaf.submission.metrics,
                reason=None,
                transaction=event.transaction,
                block=event.block,
                index=leaf.index,
                finality=self._finality(event.block),
            )
            for leaf in leaves
        ]

    def _finality(self, block: int) -> Finality:
        deep = self._follower.standing().head - block >= self._confirmations
        return Finality.FINAL if deep else Finality.CONFIRMED


def receipt(standing: Standing) -> Receipt:
    """An order's receipt; of one that is on the chain."""
    return Receipt(**_told(standing))


def transaction(standing: Standing, call: Call) -> Transaction:
    """A receipt with what was asked."""
    return Transaction(
        **_told(standing), function=call.function, job=call.job, round=call.round, hospital=call.hospital
    )


def _told(standing: Standing) -> dict[str, object]:
    return {
        "transaction": standing.transaction,
        "block": standing.block,
        "gas": standing.gas,
        "received_at": datetime.fromtimestamp(standing.received_at, UTC),
        "sent_at": datetime.fromtimestamp(standing.sent_at, UTC),
        "confirmed_at": datetime.fromtimestamp(standing.mined_at, UTC),
        "orders": standing.orders,
        "finality": Finality.FINAL if standing.state is State.FINAL else Finality.CONFIRMED,
    }


def _counted(events: Sequence[Event]) -> Counter[str]:
    return Counter(event.name for event in events)
