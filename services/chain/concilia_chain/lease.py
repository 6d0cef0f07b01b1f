"""The one place from which a relay may send: a row in the database that its holder renews, and others wait for.

Nonces leave no room for two: what one signs, the other's transaction replaces or blocks. Whoever does not renew in
time, killed or cut off from the database, loses the lease; what it writes down, it writes with a look at the lease.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable

import sqlalchemy as sa

from concilia_chain.tables import leases as _leases


class LeaseHeld(Exception):
    """Another process holds the lease; the message says which, and for how long."""


class Lease:
    """A lease by its name. Times are the machines' clocks, which may differ by a fraction of `seconds`."""

    def __init__(self, database: sa.Engine, name: str, seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._name = name
        self._seconds = seconds
        self._clock = clock
        self._holder = f"{socket.gethostname()[:60]}, process {os.getpid()}, {secrets.token_hex(4)}"
        self._ends_at = 0.0

    def hold(self) -> None:
        """Take the lease, or renew it where a third of its time is over. Raises `LeaseHeld`."""
        now = self._clock()
        if now < self._ends_at - self._seconds * 2 / 3:
            return
        mine = {"holder": self._holder, "ends_at": now + self._seconds}
        free = sa.or_(_leases.c.holder == self._holder, _leases.c.ends_at <= now)
        with self._database.begin() as connection:
            taken = connection.execute(sa.update(_leases).where(_leases.c.name == self._name, free).values(mine))
            known = connection.execute(sa.select(_leases).where(_leases.c.name == self._name)).first()
        if known is None:
            try:
                with self._database.begin() as connection:
                    connection.execute(sa.insert(_leases).values(name=self._name, **mine))
            except sa.exc.IntegrityError:
                raise LeaseHeld("another process has just taken it") from None
        elif taken.rowcount != 1:
            self._ends_at = 0.0
            raise LeaseHeld(f"{known.holder} holds it for another {max(0.0, known.ends_at - now):.0f} s")
        self._ends_at = now + self._seconds

    def require(self, connection: sa.Connection) -> None:
        """See to it that the lease is still held when a transaction of the database ends. Raises `LeaseHeld`."""
        row = connection.execute(
            sa.select(_leases).where(_leases.c.name == self._name).with_for_update()  # nobody takes it meanwhile
        ).first()
        if row is None or row.holder != self._holder:
            self._ends_at = 0.0
            raise LeaseHeld("another process took it")

    def release(self) -> None:
        """Give the lease up, so that the next need not wait for its end."""
        self._ends_at = 0.0
        with self._database.begin() as connection:
            connection.execute(sa.delete(_leases).where(_leases.c.name == self._name, _leases.c.holder == self._holder))
