"""Jobs, rounds and nodes as the API shows them, put together from what is stored."""

from __future__ import annotations

import time
from typing import Any

from concilia_kit.wire.jobs import JobManifest, JobSpec, JobView, Phase, Rejected, RoundView, SiteScores
from concilia_kit.wire.nodes import Node, NodeRegistration
from concilia_kit.wire.privacy import Spent
from concilia_kit.wire.progress import Progress
from concilia_kit.wire.training import EvaluationReport

from concilia_aggregator.store import Store, moment, spec_of, state_of
from concilia_aggregator.tables import JobRow, RoundRow


def nodes(store: Store) -> list[Node]:
    """All nodes that ever registered."""
    now = time.time()
    return [
        Node(
            address=row.address,
            registration=NodeRegistration.model_validate(row.registration),
            seen_seconds_ago=max(0.0, now - row.seen_at),
        )
        for row in store.nodes()
    ]


def jobs(store: Store) -> list[JobView]:
    """All jobs, newest first."""
    return [job(store, row) for row in store.jobs()]


def job(store: Store, row: JobRow) -> JobView:
    """One job with its rounds."""
    state = state_of(row)
    reports, progresses = store.reports(row.id), store.progresses(row.id)
    sites = {node.address: node.registration.site for node in nodes(store)}
    spec = spec_of(row)
    return JobView(
        id=row.id,
        spec=spec,
        phase=state.phase,
        paused=state.paused,
        round=state.round,
        detail=state.detail,
        created_at=moment(row.created_at),
        created_by=row.created_by,
        model=state.head if state.phase is Phase.FINISHED else None,
        rounds=tuple(
            _round(item, reports.get(item.round, {}), progresses.get(item.round, {}), sites, spec)
            for item in store.rounds(row.id)
        ),
        manifest=JobManifest.model_validate(row.manifest) if row.manifest else None,
    )


def _round(
    row: RoundRow,
    reports: dict[str, EvaluationReport],
    progress: dict[str, Progress],
    sites: dict[str, str],
    spec: JobSpec,
) -> RoundView:
    summary = row.summary
    return RoundView(
        round=row.round,
        base=row.base,
        model=row.model,
        opened_at=moment(row.opened_at),
        closed_at=moment(row.closed_at),
        deadline=row.deadline,
        accepted=len(summary.get("accepted", ())),
        rejected=tuple(Rejected.model_validate(item) for item in summary.get("rejected", ())),
        **(_evaluated(reports, sites, spec) if reports else _NOT_EVALUATED),
        seconds_training=summary.get("seconds_training", 0.0),
        seconds_moving=summary.get("seconds_moving", 0.0),
        seconds_chain=summary.get("seconds_chain", 0.0),
        seconds_folding=summary.get("seconds_folding", 0.0),
        bytes_moved=summary.get("bytes_moved", 0),
        progress=progress,
        privacy={each: Spent.model_validate(spent) for each, spent in summary.get("privacy", {}).items()},
    )


_NOT_EVALUATED: dict[str, Any] = {"pooled": None, "confusion": None, "sites": (), "overlapping_lesions": None}


def _evaluated(reports: dict[str, EvaluationReport], sites: dict[str, str], spec: JobSpec) -> dict[str, Any]:
    """What a round's evaluations come to, as `RoundView` has it."""
    from concilia_aggregator import calibrating, scores  # and NumPy with them, which nothing else here needs

    classification = spec.classification
    everybody = list(reports.values())
    return {
        "pooled": scores.pooled(everybody, classification),
        "confusion": tuple(map(tuple, scores.confusion(everybody).tolist())),
        "sites": tuple(
            SiteScores(hospital=hospital, site=sites.get(hospital, ""), scores=own)
            for hospital, report in reports.items()
            if (own := scores.pooled([report], classification)) is not None
        ),
        "overlapping_lesions": sum(report.overlapping_lesions for report in everybody),
        "calibrated": calibrating.calibrated(everybody, spec),
    }
