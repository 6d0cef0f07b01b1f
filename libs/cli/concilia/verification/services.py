"""A job's evidence, told by the chain service: its events, the signatures that it relayed, and the metrics it keeps."""

from __future__ import annotations

from concilia_aggregator.verification.roles import ROLE_EVENTS
from concilia_kit.signing import Domain
from concilia_kit.wire.chain import LedgerEvent, RecordedEvent

from concilia.client import Client
from concilia.connection import UsageError
from concilia.verification.decoding import ChainEvent
from concilia.verification.evidence import Evidence, SignedUpdate
from concilia.verification.leaves import Leaf


def read(to: Client, job: str) -> Evidence:
    """What the chain service tells of a job. Raises `Problem`, and `UsageError` where it knows no such job."""
    own = to.events(job)
    if not own:
        raise UsageError(f"the ledger has no job {job}")
    rounds = to.ledger_job(job).rounds
    leaves = tuple(
        Leaf(index=item.index, update=item.update, signature=item.signature, metrics=item.metrics)
        for each in rounds
        for item in each.updates
        if item.index is not None
    )
    return Evidence(
        origin="services",
        domain=to.domain(),
        job=job,
        events=tuple(_event(each) for each in to.recorded_events(to_block=max(event.block for event in own))),
        updates=tuple(
            SignedUpdate(
                round=item.update.round,
                hospital=item.update.hospital,
                signature=item.signature,
                metrics=item.metrics,
            )
            for each in rounds
            for item in each.updates
            if item.index is None
        ),
        leaves=leaves or None,
    )


def about(to: Client, job: str, hospital: str) -> tuple[Domain, list[ChainEvent]]:
    """A job's events and a hospital's role's, as the chain service tells them. Raises `Problem`."""
    own = to.events(job)
    last = max((event.block for event in own), default=0)
    changes = to.recorded_events(last, names=sorted(ROLE_EVENTS), account=hospital)
    return to.domain(), [*(_event(each) for each in own), *(_event(each) for each in changes)]


def _event(recorded: RecordedEvent | LedgerEvent) -> ChainEvent:
    return ChainEvent(
        name=recorded.name,
        block=recorded.block,
        log_index=recorded.log_index,
        transaction=recorded.transaction,
        arguments=recorded.arguments,
    )
