"""From waiting orders to transactions in blocks that stay: sends, looks after what was sent, and tells who waits.

Exactly once, by three things together: what is signed is written down before it is broadcast; a nonce is mined at most
once, whatever was signed for it; and an order whose transaction came to nothing is tried again only after a dry run,
which the contract refuses where the effect is there already. So a step may be repeated after a crash at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from concilia_kit import logs
from concilia_kit.problems import Conflict, Problem

from concilia_chain import batching
from concilia_chain.answers import Answers, Outcome
from concilia_chain.calls import Call
from concilia_chain.errors import ChainUnavailable, Refused
from concilia_chain.events import Event
from concilia_chain.ledger import LedgerContract
from concilia_chain.metrics import CONFIRMED, REFUSED, REPEATED, ChainMetrics
from concilia_chain.orders import Attempt, Order, Sending, State
from concilia_chain.outbox import Outbox
from concilia_chain.relay import Answer, Head, Mined, Relay

_MOST_ORDERS = 1000
"""Orders looked at in one turn."""
_MOST_REVERTS = 3
"""An order whose dry run passes and whose transaction reverts is given up after so many: each costs gas."""
_LOOK_AGAIN_SECONDS = 1.0
"""How often a node without new blocks is asked about what was sent."""
_BROADCAST_AGAIN_SECONDS = 2.0
_SOON_SECONDS = 1.0
_MOST_WINDOWS = 4
_RECENT_SECONDS = 1.0  # blocks count whole seconds

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How sending goes: blocks until something is final, seconds until a higher fee, the batches' window and size."""

    confirmations: int
    bump_seconds: float
    coalesce_seconds: float
    batch_updates: int


class Sender:
    """Sends one ledger's orders. Not for several threads at once.

    Its methods raise `ChainUnavailable` where the node does not answer, `LeaseHeld` where another process may send,
    `sqlalchemy.exc.DBAPIError`: whatever was not done then is done by the next call. `missing` says how many updates a
    round may still get beside those that are on the chain.
    """

    def __init__(
        self,
        outbox: Outbox,
        relay: Relay,
        ledger: LedgerContract,
        answers: Answers,
        catch_up: Callable[[int | None], None],
        effect: Callable[[Call], Event | None],
        missing: Callable[[str, int], int],
        pace: Pace,
        metrics: ChainMetrics,
    ) -> None:
        self._outbox = outbox
        self._relay = relay
        self._ledger = ledger
        self._answers = answers
        self._catch_up = catch_up
        self._effect = effect
        self._missing = missing
        self._pace = pace
        self._metrics = metrics
        self._broadcast_at: dict[int, float] = {}  # by sending, monotonic
        self._held: dict[int, int] = {}  # orders that were refused, by the last sending of that moment
        self._looked_at = (-1, 0.0)  # at which head, and when
        self._launching_seconds = 0.0  # of the last batch
        self._is_under_way = True  # whether something sent may be in no block yet

    @property
    def eager(self) -> bool:
        """Whether something was broadcast so lately that a node which makes blocks at once may have made one."""
        return time.monotonic() - max(self._broadcast_at.values(), default=float("-inf")) < _SOON_SECONDS

    # what waits

    def send(self, head: Head) -> float | None:
        """Send what is due; seconds until more is, None where nothing waits."""
        soonest: float | None = None
        waiting = self._outbox.waiting(_MOST_ORDERS)
        complete = batching.complete(waiting, self._missing)
        # Where a transaction takes longer to be sent than usual, so may its updates to come together.
        patient = min(
            max(self._pace.coalesce_seconds, self._launching_seconds), _MOST_WINDOWS * self._pace.coalesce_seconds
        )
        for batch in batching.batches(waiting, self._pace.batch_updates):
            window = 0.0 if batching.round_of(batch[0]) in complete else patient
            wait = batching.due_in(batch, self._pace.batch_updates, window, time.time())
            if wait > 0:
                soonest = wait if soonest is None else min(soonest, wait)
            else:
                began = time.monotonic()
                self._send(batch, head)
                self._launching_seconds = time.monotonic() - began
        return soonest

    def _send(self, batch: Sequence[Order], head: Head) -> None:
        call = self._call(batch)
        try:
            gas = self._gas(batch, call, head)
        except Refused as refused:
            if len(batch) > 1:  # one of them spoils it for all: find it by halves
                self._halves(batch, head)
            else:
                self._refused(batch[0], refused, head)
            return
        if batch[0].reverts >= _MOST_REVERTS and len(batch) == 1:
            self._give_up(batch[0])
        elif len(batch) > 1 and gas > self._relay.most_gas(head):
            self._halves(batch, head)
        else:
            self._launch(batch, call, gas, head)

    def _gas(self, batch: Sequence[Order], call: Call, head: Head) -> int:
        """Gas for a call that the contract takes. Raises `Refused`."""
        # The estimate runs the call as well, but on the newest block alone: what waits for a block, or was mined in
        # vain, may have had the effect; and since that block's time a deadline may have passed.
        is_old = time.time() - head.time > _RECENT_SECONDS
        if self._is_under_way or is_old or any(each.reverts for each in batch):
            self._relay.dry_run(call)
        try:
            return self._relay.gas(call)
        except Refused:
            self._relay.dry_run(call)  # which nodes are more exact about
            raise

    def _halves(self, batch: Sequence[Order], head: Head) -> None:
        middle = len(batch) // 2
        self._send(batch[:middle], head)
        self._send(batch[middle:], head)

    def _call(self, batch: Sequence[Order]) -> Call:
        updates = [each.submission for each in batch if each.submission is not None]
        return self._ledger.submit_updates(*updates) if updates else batch[0].call

    def _launch(self, batch: Sequence[Order], call: Call, gas: int, head: Head) -> None:
        """Give a call its nonce, sign it, write it down, broadcast it."""
        last = self._outbox.last_nonce()
        nonce = max(self._relay.count(), 0 if last is None else last + 1)
        signed = self._relay.sign(call, gas, nonce, self._relay.offer(head))
        sending = self._outbox.carry(batch, nonce, call, gas, signed, time.time())
        self._is_under_way = True
        self._looked_at = (-1, 0.0)
        try:
            answer, words = self._relay.broadcast(signed.raw)
        except ChainUnavailable as error:
            # Whether it arrived is not known; it is looked for, and broadcast again.
            self._answers.fail_all((each.id for each in batch), error)
            raise
        if answer is not Answer.TAKEN and not self._relay.knows(signed.transaction):
            # The node does not want it: no nonce must be left open for it, or all that follow would be blocked.
            self._outbox.withdraw(sending.id)
            raise ChainUnavailable(f"the node does not take the transaction: {words[:200]}")
        self._broadcast_at[sending.id] = time.monotonic()
        for each in batch:
            self._held.pop(each.id, None)

    def _refused(self, order: Order, refused: Refused, head: Head) -> None:
        """The contract refuses an order: perhaps until something else is mined, perhaps since its effect is there."""
        try:
            effect = self._effect(order.call)
        except ChainUnavailable:
            return  # refused by a chain that is not what it was: nothing is judged until it is known what it is
        # What was sent before this was first refused may be what it waits for; also if a reorganisation reopens it now.
        last = self._held.setdefault(order.id, self._outbox.last_sending())
        if any(each.id <= last for each in self._outbox.sendings(State.PENDING)):
            return
        if effect is None or self._is_final(effect.block, head):
            del self._held[order.id]
        if effect is not None:
            final = self._is_final(effect.block, head)
            self._metrics.transactions.labels(order.call.function, REPEATED).inc()
            self._answers.settle(order.id, Outcome(None, effect), final=final)
            if final:
                self._outbox.drop(order.id)
            return
        self._outbox.drop(order.id)
        self._metrics.transactions.labels(order.call.function, REFUSED).inc()
        self._fail(order, refused)

    def _give_up(self, order: Order) -> None:
        self._outbox.drop(order.id)
        self._fail(
            order, Conflict("the transaction was mined and reverted, again and again", code="transaction_reverted")
        )

    def _fail(self, order: Order, problem: Problem) -> None:
        if not self._answers.fail(order.id, problem):
            _log.warning(
                "an order that nobody waits for is refused",
                function=order.call.function,
                job=order.call.job,
                round=order.call.round,
                hospital=order.call.hospital,
                code=problem.problem_code,
            )

    # what was sent

    def settle(self, head: Head) -> bool:
        """See what became of what was sent; whether there is anything to see to before long."""
        open_ = self._outbox.sendings(State.PENDING, State.MINED)
        if not open_:
            self._is_under_way = False
            return False
        now = time.monotonic()
        if self._looked_at[0] == head.number and now - self._looked_at[1] < _LOOK_AGAIN_SECONDS:
            return True
        self._is_under_way, missing = True, []
        for sending in open_:
            if sending.state is State.MINED:
                self._confirm(sending, head)
            else:
                attempts = self._outbox.attempts(sending.id)
                if not self._found(sending, attempts, head):
                    missing.append((sending, attempts))
        if missing:
            self._push(missing, head)
        self._is_under_way = bool(missing)
        self._looked_at = (head.number, now)
        return True

    def _found(self, sending: Sending, attempts: Sequence[Attempt], head: Head) -> bool:
        """Whether a sending is in a block; remembered, and told."""
        for attempt in attempts:
            if (mined := self._relay.mined(attempt.transaction)) is not None:
                self._remember(sending, mined, head)
                return True
        return False

    def _remember(self, sending: Sending, mined: Mined, head: Head) -> None:
        self._catch_up(mined.block)  # whoever is told finds the events
        now, final = time.time(), self._is_final(mined.block, head)
        self._outbox.mined(sending.id, mined, now, final=final)
        self._broadcast_at.pop(sending.id, None)
        function = sending.call.function
        if not mined.good:
            _log.warning("mined and reverted", transaction=mined.transaction, function=function)
            return
        self._metrics.gas.labels(function).observe(mined.gas)
        orders = self._outbox.carried(sending.id)
        _log.info("mined", transaction=mined.transaction, function=function, orders=len(orders), block=mined.block)
        for standing in orders:
            self._metrics.transactions.labels(function, CONFIRMED).inc()
            self._metrics.seconds.labels(function).observe(now - standing.received_at)
            self._answers.settle(standing.id, Outcome(standing), final=final)

    def _confirm(self, sending: Sending, head: Head) -> None:
        """Look again at what is in a block that may still be dropped."""
        assert sending.transaction is not None, "what is mined has a hash"
        mined = self._relay.mined(sending.transaction)
        if mined is None or mined.block_hash != sending.block_hash:
            _log.warning("its block was dropped from the chain", transaction=sending.transaction, nonce=sending.nonce)
            self._outbox.reopen(sending.id)
        elif self._is_final(mined.block, head):
            self._outbox.final(sending.id)
            for standing in self._outbox.carried(sending.id):
                self._answers.settle(standing.id, Outcome(standing), final=True)

    def _is_final(self, block: int, head: Head) -> bool:
        # The head was read before the block, perhaps.
        return max(block, head.number) - block >= self._pace.confirmations

    def _push(self, missing: Sequence[tuple[Sending, Sequence[Attempt]]], head: Head) -> None:
        """See to sendings that are in no block: dropped, offered too little, or never to come."""
        latest, spent = self._relay.count(), self._relay.count(self._pace.confirmations)
        for sending, attempts in missing:
            if sending.nonce < latest:
                # Something has its nonce. It may be the sending itself, mined since it was looked for.
                gone = sending.nonce < spent and not any(self._relay.knows(each.transaction) for each in attempts)
                if not self._found(sending, attempts, head) and gone:
                    _log.warning("something else was sent with its nonce", nonce=sending.nonce)
                    self._outbox.void(sending.id)
                continue
            newest = attempts[0]
            better = None
            if sending.nonce == latest and time.time() - newest.sent_at >= self._pace.bump_seconds:
                better = self._relay.better(newest.offer, head)
            if better is not None:
                signed = self._relay.sign(sending.call, sending.gas, sending.nonce, better)
                self._outbox.attempt(sending.id, signed, time.time())
                _log.warning("offering a higher fee", nonce=sending.nonce, most=better.most, tip=better.tip)
                self._broadcast(sending, signed.raw)
            elif time.monotonic() - self._broadcast_at.get(sending.id, float("-inf")) >= _BROADCAST_AGAIN_SECONDS:
                self._broadcast_at[sending.id] = time.monotonic()
                if not self._relay.knows(newest.transaction):
                    _log.warning("broadcasting again", transaction=newest.transaction, nonce=sending.nonce)
                    self._broadcast(sending, newest.raw)

    def _broadcast(self, sending: Sending, raw: str) -> None:
        self._broadcast_at[sending.id] = time.monotonic()
        self._looked_at = (-1, 0.0)
        answer, words = self._relay.broadcast(raw)
        if answer is not Answer.TAKEN:
            _log.warning("the node does not take it", nonce=sending.nonce, said=words[:200])
