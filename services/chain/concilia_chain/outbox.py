"""What is to reach the chain, and what became of it: orders, the transactions that carry them, their signed bytes.

An order is what somebody asked for, under a key by which a repetition is known. A sending is a transaction with its
nonce: it carries one order, or a batch of updates. An attempt is a signed form of a sending; a higher fee makes another
one, of which the chain takes at most one. All is written down before it is broadcast, so that whoever comes after a
crash can go on: broadcasting the same bytes twice is harmless, signing others for the same order is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from concilia_kit.database import reading
from concilia_kit.wire.chain import UpdateSubmission

from concilia_chain.calls import Call, Effect
from concilia_chain.fees import Offer
from concilia_chain.lease import Lease
from concilia_chain.orders import IN_A_BLOCK, Attempt, Order, Sending, Standing, State
from concilia_chain.relay import Mined, Signed
from concilia_chain.tables import attempts as _attempts
from concilia_chain.tables import orders as _orders
from concilia_chain.tables import put_metrics
from concilia_chain.tables import sendings as _sendings


class Outbox:
    """The orders and sendings of one ledger; each method is one transaction of the database, but `put`.

    Whatever changes a sending, or drops an order, raises `LeaseHeld` where another process may send by now: one that
    hung in a call to its node must not undo what its successor has done since.
    """

    def __init__(self, database: sa.Engine, deployment: int, lease: Lease) -> None:
        self._database = database
        self._reading = reading(database)
        self._deployment = deployment
        self._lease = lease
        self._read: dict[int, Order] = {}  # of those that wait

    # orders

    def put(self, key: str, call: Call, submission: UpdateSubmission | None, now: float) -> tuple[int, bool]:
        """Keep an order; its number, and whether it was there before."""
        values = {
            "deployment": self._deployment,
            "key": key,
            **_called(call),
            "hospital": call.hospital,
            "effect": None if call.effect is None else list(call.effect),
            "document": None if submission is None else submission.model_dump(mode="json"),
            "received_at": now,
            "reverts": 0,
        }
        with contextlib.suppress(sa.exc.IntegrityError), self._database.begin() as connection:
            if (found := connection.execute(self._of(key)).scalar()) is not None:
                return int(found), True
            made = connection.execute(sa.insert(_orders).values(**values).returning(_orders.c.id))
            return int(made.scalar_one()), False
        with self._reading.begin() as connection:  # another process put it meanwhile
            return int(connection.execute(self._of(key)).scalar_one()), True

    def known(self, key: str) -> bool:
        """Whether there is an order under a key."""
        with self._reading.begin() as connection:
            return connection.execute(self._of(key)).first() is not None

    def _of(self, key: str) -> sa.Select[Any]:
        return sa.select(_orders.c.id).where(_orders.c.deployment == self._deployment, _orders.c.key == key)

    def waiting(self, limit: int) -> list[Order]:
        """The oldest orders that no sending carries."""
        query = (
            sa.select(_orders.c.id, _orders.c.reverts)
            .where(_orders.c.deployment == self._deployment, _orders.c.sending.is_(None))
            .order_by(_orders.c.id)
            .limit(limit)
        )
        with self._reading.begin() as connection:
            waiting = [tuple(row) for row in connection.execute(query)]
            # Looked at every turn, and read once: reading a thousand updates takes longer than a turn should.
            unread = [order for order, _ in waiting if order not in self._read]
            read = sa.select(_orders).where(_orders.c.id.in_(unread))
            fresh = {row["id"]: _order(row) for row in connection.execute(read).mappings()} if unread else {}
        self._read = {order: fresh.get(order) or self._read[order] for order, _ in waiting}
        return [self._read[order]._replace(reverts=reverts) for order, reverts in waiting]

    def drop(self, order: int) -> None:
        """Forget an order that was refused, or that had its effect before; one that is carried is kept."""
        with self._database.begin() as connection:
            self._lease.require(connection)
            connection.execute(sa.delete(_orders).where(_orders.c.id == order, _orders.c.sending.is_(None)))

    def standing(self, order: int) -> Standing | None:
        """How an order stands; None for one that there is not."""
        found = self._standings(_orders.c.id == order, limit=1)
        return found[0] if found else None

    def carried(self, sending: int) -> list[Standing]:
        """How the orders stand that a sending carries."""
        return self._standings(_orders.c.sending == sending)

    def is_idle(self) -> bool:
        """Whether no order waits, and nothing that was sent may still change."""
        waiting = sa.select(_orders.c.id).where(_orders.c.deployment == self._deployment, _orders.c.sending.is_(None))
        sent = sa.select(_sendings.c.id).where(
            _sendings.c.deployment == self._deployment,
            _sendings.c.state.in_((State.PENDING.value, State.MINED.value)),
        )
        with self._reading.begin() as connection:
            return all(connection.execute(query.limit(1)).first() is None for query in (waiting, sent))

    # sendings

    def carry(self, orders: Sequence[Order], nonce: int, call: Call, gas: int, signed: Signed, now: float) -> Sending:
        """Write down a transaction and the orders that it carries; metrics of updates are kept from here on.

        Raises `LeaseHeld` where another process may send by now: this nonce may be its.
        """
        self._lease.hold()  # a turn with many batches may take longer than the lease
        with self._database.begin() as connection:
            self._lease.require(connection)
            made = connection.execute(
                sa.insert(_sendings)
                .values(
                    deployment=self._deployment,
                    nonce=nonce,
                    **_called(call),
                    gas_limit=gas,
                    state=State.PENDING.value,
                    sent_at=now,
                )
                .returning(_sendings.c.id)
            ).scalar_one()
            connection.execute(sa.insert(_attempts).values(_attempted(made, signed, now)))
            connection.execute(
                sa.update(_orders).where(_orders.c.id.in_([each.id for each in orders])).values(sending=made)
            )
            submissions = [each.submission for each in orders if each.submission is not None]
            put_metrics(connection, {each.update.metrics: each.metrics for each in submissions})
        return Sending(int(made), nonce, call, gas, State.PENDING, now, None, None, None)

    def attempt(self, sending: int, signed: Signed, now: float) -> None:
        """Write down another signed form of a sending. Raises `LeaseHeld`."""
        with self._database.begin() as connection:
            self._lease.require(connection)
            connection.execute(sa.insert(_attempts).values(_attempted(sending, signed, now)))

    def attempts(self, sending: int) -> list[Attempt]:
        """A sending's signed forms, newest first."""
        query = sa.select(_attempts).where(_attempts.c.sending == sending).order_by(_attempts.c.id.desc())
        with self._reading.begin() as connection:
            return [
                Attempt(row["transaction"], row["raw"], _offer(row), row["sent_at"])
                for row in connection.execute(query).mappings()
            ]

    def sendings(self, *states: State) -> list[Sending]:
        """Sendings in these states, by nonce."""
        query = (
            sa.select(_sendings)
            .where(_sendings.c.deployment == self._deployment, _sendings.c.state.in_(states))
            .order_by(_sendings.c.nonce)
        )
        with self._reading.begin() as connection:
            return [_sending(row) for row in connection.execute(query).mappings()]

    def last_sending(self) -> int:
        """The newest sending's number; 0 where there is none."""
        query = sa.select(sa.func.max(_sendings.c.id)).where(_sendings.c.deployment == self._deployment)
        with self._reading.begin() as connection:
            return int(connection.execute(query).scalar() or 0)

    def last_nonce(self) -> int | None:
        """The highest nonce that was given to a sending which may still come, or came."""
        query = sa.select(sa.func.max(_sendings.c.nonce)).where(
            _sendings.c.deployment == self._deployment, _sendings.c.state != State.VOID.value
        )
        with self._reading.begin() as connection:
            found = connection.execute(query).scalar()
        return None if found is None else int(found)

    def mined(self, sending: int, mined: Mined, now: float, *, final: bool) -> None:
        """A sending is in a block, perhaps in one that stays. The orders of one without effect wait again."""
        state = (State.FINAL if final else State.MINED) if mined.good else State.REVERTED
        self._lease.hold()
        with self._database.begin() as connection:
            self._lease.require(connection)
            connection.execute(
                sa.update(_sendings)
                .where(_sendings.c.id == sending)
                .values(
                    state=state.value,
                    block=mined.block,
                    block_hash=mined.block_hash,
                    transaction=mined.transaction,
                    gas=mined.gas,
                    mined_at=now,
                )
            )
            if not mined.good:
                connection.execute(
                    sa.update(_orders)
                    .where(_orders.c.sending == sending)
                    .values(sending=None, reverts=_orders.c.reverts + 1)
                )

    def final(self, sending: int) -> None:
        """A sending stays on the chain."""
        with self._database.begin() as connection:
            self._lease.require(connection)
            connection.execute(sa.update(_sendings).where(_sendings.c.id == sending).values(state=State.FINAL.value))

    def reopen(self, sending: int) -> None:
        """A sending's block was dropped from the chain: it is to be mined again."""
        with self._database.begin() as connection:
            self._lease.require(connection)
            connection.execute(
                sa.update(_sendings)
                .where(_sendings.c.id == sending, _sendings.c.state != State.VOID.value)
                .values(state=State.PENDING.value, block=None, block_hash=None, transaction=None)
            )

    def void(self, sending: int) -> None:
        """A sending will never be mined; its orders wait again."""
        with self._database.begin() as connection:
            self._lease.require(connection)
            connection.execute(sa.update(_sendings).where(_sendings.c.id == sending).values(state=State.VOID.value))
            connection.execute(sa.update(_orders).where(_orders.c.sending == sending).values(sending=None))

    def withdraw(self, sending: int) -> None:
        """A sending that no node ever took is as if it had not been; its orders wait again."""
        with self._database.begin() as connection:
            self._lease.require(connection)
            connection.execute(sa.update(_orders).where(_orders.c.sending == sending).values(sending=None))
            connection.execute(sa.delete(_attempts).where(_attempts.c.sending == sending))
            connection.execute(sa.delete(_sendings).where(_sendings.c.id == sending))

    # reading

    def settled(self, job: str | None, limit: int) -> list[tuple[Standing, Call]]:
        """Orders that are on the chain, the newest first, of one job or of all."""
        wanted: list[sa.ColumnElement[bool]] = [_sendings.c.state.in_(IN_A_BLOCK)]
        if job is not None:
            wanted.append(_orders.c.job == job)
        return self._with_calls(*wanted, limit=limit)

    def _standings(self, *wanted: sa.ColumnElement[bool], limit: int | None = None) -> list[Standing]:
        return [standing for standing, _ in self._with_calls(*wanted, limit=limit)]

    def _with_calls(self, *wanted: sa.ColumnElement[bool], limit: int | None) -> list[tuple[Standing, Call]]:
        beside = _orders.alias()
        together = (
            sa.select(sa.func.count()).where(beside.c.sending == _sendings.c.id).correlate(_sendings).scalar_subquery()
        )
        query = (
            sa.select(
                _orders.c.id,
                _orders.c.received_at,
                _orders.c.function,
                _orders.c.job,
                _orders.c.round,
                _orders.c.hospital,
                _sendings.c.state,
                _sendings.c.transaction,
                _sendings.c.block,
                _sendings.c.gas,
                _sendings.c.sent_at,
                _sendings.c.mined_at,
                together.label("together"),
            )
            .select_from(_orders.outerjoin(_sendings, _orders.c.sending == _sendings.c.id))
            .where(_orders.c.deployment == self._deployment, *wanted)
            .order_by(_sendings.c.mined_at.desc(), _orders.c.id.desc())
            .limit(limit)
        )
        with self._reading.begin() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            (
                Standing(
                    id=row["id"],
                    function=row["function"],
                    received_at=row["received_at"],
                    state=None if row["state"] is None else State(row["state"]),
                    transaction=row["transaction"],
                    block=row["block"] or 0,
                    gas=row["gas"] or 0,
                    sent_at=row["sent_at"] or 0.0,
                    mined_at=row["mined_at"] or 0.0,
                    orders=row["together"] or 1,
                ),
                Call(None, "", row["function"], row["job"], row["round"], row["hospital"]),
            )
            for row in rows
        ]


def _called(call: Call) -> dict[str, Any]:
    return {"to": call.to, "data": call.data, "function": call.function, "job": call.job, "round": call.round}


def _attempted(sending: int, signed: Signed, now: float) -> dict[str, Any]:
    return {
        "sending": sending,
        "transaction": signed.transaction,
        "raw": signed.raw,
        "most_fee": signed.offer.most,
        "tip": signed.offer.tip,
        "sent_at": now,
    }


def _order(row: Mapping[Any, Any]) -> Order:
    document = row["document"]
    return Order(
        id=row["id"],
        call=Call(
            row["to"],
            row["data"],
            row["function"],
            row["job"],
            row["round"],
            row["hospital"],
            None if row["effect"] is None else Effect(*row["effect"]),
        ),
        submission=None if document is None else UpdateSubmission.model_validate(document),
        received_at=row["received_at"],
        reverts=row["reverts"],
    )


def _sending(row: Mapping[Any, Any]) -> Sending:
    return Sending(
        id=row["id"],
        nonce=row["nonce"],
        call=Call(row["to"], row["data"], row["function"], row["job"], row["round"]),
        gas=row["gas_limit"],
        state=State(row["state"]),
        sent_at=row["sent_at"],
        block=row["block"],
        block_hash=row["block_hash"],
        transaction=row["transaction"],
    )


def _offer(row: Mapping[Any, Any]) -> Offer:
    return Offer(row["most_fee"], row["tip"])
