"""From the ledger's record of a job to a model's lineage; pure."""

from __future__ import annotations

from dataclasses import dataclass

from concilia_kit.wire.chain import LedgerJob, RoundStatus

from concilia_model.errors import NotPublished


@dataclass(frozen=True)
class Lineage:
    """`initial` is the base of round 1; `models` the global digest of each closed round, in order; `contributors` the
    hospitals with an accepted update in any of them, in ascending order.
    """

    initial: str
    models: tuple[str, ...]
    contributors: tuple[str, ...]


def of(job: LedgerJob, digest: str) -> Lineage:
    """The lineage of a job's published model. Raises `NotPublished` where `digest` is not what the job published."""
    if not job.published or job.head != digest:
        raise NotPublished("the ledger does not say that this job published this model")
    closed = [item for item in job.rounds if item.status is RoundStatus.CLOSED]
    models = tuple(item.global_digest for item in closed if item.global_digest is not None)
    if not closed or models[-1:] != (digest,) or len(models) != len(closed):
        raise NotPublished("the ledger's rounds of this job do not lead to this model")
    contributors = {update.update.hospital for item in closed for update in item.accepted()}
    return Lineage(job.rounds[0].base, models, tuple(sorted(contributors, key=lambda address: int(address, 16))))
