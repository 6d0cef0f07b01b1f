"""A job's evidence, told by the chain service: its events, the signatures that it relayed, and the metrics it keeps."""

from __future__ import annotations

from concilia_kit.wire.chain import RecordedEvent

from concilia.client import Client
from concilia.connection import UsageError
from concilia.verification.decoding import ChainEvent
from concilia.verification.evidence import Evidence, SignedUpdate


def read(to: Client, job: str) -> Evidence:
    """What the chain service tells of a job. Raises `Problem`, and `UsageError` where it knows no such job."""
    own = to.events(job)
    if not own:
        raise UsageError(f"the ledger has no job {job}")
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
            for each in to.ledger_job(job).rounds
            for item in each.updates
        ),
    )


def _event(recorded: RecordedEvent) -> ChainEvent:
    return ChainEvent(
        name=recorded.name,
        block=recorded.block,
        log_index=recorded.log_index,
        transaction=recorded.transaction,
        arguments=recorded.arguments,
    )
