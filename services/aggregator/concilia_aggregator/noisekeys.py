"""Which key a round's noise is of, by what it is folded from, as it is remembered before anything is folded with it.

The same updates always get the same key, and so the same bytes: a fold that a crash cut short, whose closing may be on
its way to the ledger already, is made again as it was, and so is a closed round's model whose file was lost. Other
updates get another key: with one key for two sums, the difference of the two models would be an update without noise.
"""

from __future__ import annotations

import sqlalchemy as sa
from concilia_kit.database import reading

from concilia_aggregator import tables

_keys = tables.noise_keys


class NoiseKeys:
    """Reads and writes of one database; each method is one transaction. What is kept are digests of artifacts."""

    def __init__(self, database: sa.Engine) -> None:
        self._database = database
        self._reading = reading(database)

    def known(self, job: str, round_: int, contributions: str) -> str | None:
        """The key that a round's contributions, by their digest, were given."""
        with self._reading.begin() as connection:
            return connection.execute(sa.select(_keys.c.key).where(*_of(job, round_, contributions))).scalar()

    def keep(self, job: str, round_: int, contributions: str, key: str) -> None:
        """Give contributions a key, in place of the one that they had."""
        place = {"job": job, "round": round_, "contributions": contributions}
        with self._database.begin() as connection:
            connection.execute(sa.delete(_keys).where(*_of(job, round_, contributions)))
            connection.execute(sa.insert(_keys), {**place, "key": key})


def _of(job: str, round_: int, contributions: str) -> tuple[sa.ColumnElement[bool], ...]:
    return _keys.c.job == job, _keys.c.round == round_, _keys.c.contributions == contributions
