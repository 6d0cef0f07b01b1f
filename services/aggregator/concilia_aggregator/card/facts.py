"""All that a card is made of, and where it is read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from concilia_kit.signing import Domain
from concilia_kit.wire.jobs import JobView
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.training import EvaluationReport
from concilia_kit.wire.verification import Verification, VerificationState

from concilia_aggregator import views
from concilia_aggregator.errors import NothingPublished
from concilia_aggregator.store import Store
from concilia_aggregator.verification.records import Verifications, shown


@dataclass(frozen=True)
class Facts:
    """What is known of a finished job and its model.

    `reports` are the sites' counts of the published model, by address, and `baseline` those of the initial one;
    `accepted` the hospitals whose updates a closed round's model is made of. `nodes` are all that took part, as they
    last registered. `verification` is the newest that came to a verdict.
    """

    job: JobView
    model: str
    reports: Mapping[str, EvaluationReport]
    baseline: Mapping[str, EvaluationReport]
    accepted: Mapping[int, tuple[str, ...]]
    nodes: Mapping[str, NodeRegistration]
    ledger: Domain
    verification: Verification | None

    @property
    def hospitals(self) -> list[str]:
        """Addresses of all that gave an update or evaluated, by their sites' names."""
        named = {each for accepted in self.accepted.values() for each in accepted} | set(self.reports)
        return sorted(named, key=lambda each: (self.site(each), each))

    def site(self, hospital: str) -> str:
        """A hospital's name for itself, its address where it has none."""
        node = self.nodes.get(hospital)
        return hospital if node is None else node.site

    def by_site(self) -> list[tuple[str, EvaluationReport]]:
        """Hospitals and their counts of the published model, by their sites' names."""
        return sorted(self.reports.items(), key=lambda each: (self.site(each[0]), each[0]))


def gather(store: Store, verifications: Verifications, ledger: Callable[[], Domain], job: str) -> Facts:
    """Read what there is of a job.

    Raises `JobNotFound`; `NothingPublished` where it has no model, or not yet; `Problem` where the ledger does not
    answer.
    """
    view = views.job(store, store.job(job))
    if view.model is None:
        raise NothingPublished(f"this job has published no model: it is {view.phase.value}")
    reports = store.reports(job)
    of_model = [number for number, told in reports.items() if any(each.model == view.model for each in told.values())]
    accepted = {
        row.round: tuple(row.summary.get("accepted", ())) for row in store.rounds(job) if row.model and row.round
    }
    done = [row for row in verifications.of(job) if row.state == VerificationState.DONE.value]
    taking_part = {each for hospitals in accepted.values() for each in hospitals}.union(*reports.values())
    return Facts(
        job=view,
        model=view.model,
        reports=reports[max(of_model)] if of_model else {},
        baseline=reports.get(0, {}),
        accepted=accepted,
        nodes={node.address: node.registration for node in views.nodes(store) if node.address in taking_part},
        ledger=ledger(),
        verification=shown(done[0]) if done else None,
    )
