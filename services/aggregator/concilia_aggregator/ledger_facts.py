"""A round as the ledger has it, put as the state machine looks at it. Pure."""

from __future__ import annotations

from concilia_kit.wire.chain import LedgerRound

from concilia_aggregator.rounds import RoundFacts


def of(recorded: LedgerRound, members: frozenset[str]) -> RoundFacts:
    """What the state machine needs of a round; who lost its role since its update was collected is not committed."""
    is_collecting = recorded.merkle and recorded.root is None
    return RoundFacts(
        status=recorded.status,
        base=recorded.base,
        deadline=recorded.deadline,
        recorded=frozenset(
            recorded.collected if is_collecting else (item.update.hospital for item in recorded.updates)
        ),
        accepted=len(members & set(recorded.collected) if is_collecting else recorded.accepted()),
        global_digest=recorded.global_digest,
        merkle=recorded.merkle,
        committed=recorded.root is not None,
    )
